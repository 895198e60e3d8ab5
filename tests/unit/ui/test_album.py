"""What a visit remembers of its pictures."""

from __future__ import annotations

import base64

from sdxl_bento.drawing import Answer
from sdxl_bento.order import Resolved
from sdxl_bento.params import ResolvedParams
from sdxl_bento.pictures.publish import Picture
from sdxl_bento.serving.results import Generation, Timings
from sdxl_bento.ui.album import MOST, Album, Start


def ordered(prompt: str) -> Resolved:
    params = ResolvedParams(prompt=prompt, model="m", width=8, height=8, sampler="euler", seed=1)
    return Resolved("generate", params)


def test_a_picture_that_was_not_stored_is_shown_all_the_same() -> None:
    generation = Generation("r", ordered("a"), (), Timings(0, 0, 0, 0, 0, 0))
    pictures = (Picture(b"one", "png", "i" * 22, 1, 8, 8), Picture(b"two", "webp", None, 2, 8, 8))
    album = Album()
    album.add(Answer(generation, pictures), None)
    stored, lost = album.pictures
    assert (stored.src, stored.download) == (
        f"../images/{'i' * 22}.png",
        f"../download/{'i' * 22}.png",
    )
    assert lost.src == lost.download
    assert base64.b64decode(lost.src.removeprefix("data:image/webp;base64,")) == b"two"


def test_the_newest_pictures_come_first_and_the_oldest_go() -> None:
    album = Album()
    start = Start("shown", image_id="i")
    for call in range(MOST // 2 + 1):
        order = ordered(f"{call}")
        pictures = tuple(Picture(b"", "png", f"{call}-{i}", i, 8, 9) for i in range(2))
        answer = Answer(Generation("r", order, (), Timings(0, 0, 0, 0, 0, 1.5)), pictures)
        album.choose(1)
        album.add(answer, start)
        assert album.chosen == 0
    assert len(album.pictures) == MOST
    assert [entry.image_id for entry in album.pictures[:3]] == ["30-0", "30-1", "29-0"]
    assert album.pictures[-1].image_id == "1-1"
    first = album.picture
    assert first is not None
    assert (first.seed, first.width, first.height, first.total_s) == (0, 8, 9, 1.5)
    assert (first.call["prompt"], first.start) == ("30", start)


def test_an_empty_album_shows_nothing() -> None:
    album = Album()
    assert album.picture is None
    assert album.choose(0) is None
