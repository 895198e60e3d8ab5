"""The page's HTML says what is the case, and nobody's text becomes markup."""

from __future__ import annotations

import pytest

from sdxl_bento.errors import EngineDead, InvalidInput, Overloaded
from sdxl_bento.protocols.http.errors import error_body
from sdxl_bento.ui import render
from sdxl_bento.ui.album import Album, Entry
from sdxl_bento.ui.progress import Snapshot

EVIL = '<img src=x onerror="alert(1)">'
CALL = {
    "prompt": EVIL,
    "negative_prompt": EVIL,
    "model": EVIL,
    "sampler": "euler",
    "num_inference_steps": 25,
    "guidance_scale": 5.0,
    "loras": [{"name": EVIL, "scale": 0.5}],
    "strength": 0.3,
}


def album(count: int = 1) -> Album:
    made = Album()
    made.pictures = [Entry(f"id{i}", "png", i, 128, 96, CALL, 1.5) for i in range(count)]
    made.chosen = 0
    return made


def test_text_stays_text() -> None:
    one = album()
    error = error_body(InvalidInput("prompt", EVIL, EVIL))["error"]
    pages = [
        render.details(one.picture),
        render.gallery(one),
        render.finished(one),
        render.chips([EVIL]),
        render.headline((), "dead", EVIL),
        render.failure(error),
        render.remark(EVIL),
    ]
    for page in pages:
        assert "onerror" in page
        assert "<img src=x" not in page
        assert 'onerror="' not in page


@pytest.mark.parametrize(
    ("snapshot", "words"),
    [
        (Snapshot("", 0, 25, 3, 0.0, ()), "Waiting in the queue: 2 before yours"),
        (Snapshot("", 0, 25, 1, 0.0, ()), "Waiting in the queue: yours is next"),
        (Snapshot("", 0, 0, 0, 0.0, ()), "Starting"),
        (Snapshot("encode", 0, 25, 0, 0.0, ()), "Reading the prompt"),
        (Snapshot("base", 7, 25, 0, 0.28, ()), "Drawing: step 7 of 25"),
        (Snapshot("refine", 21, 25, 0, 0.84, ()), "Refining: step 21 of 25"),
        (Snapshot("decode", 25, 25, 0, 1.0, ()), "Developing"),
    ],
)
def test_progress_in_words(snapshot: Snapshot, words: str) -> None:
    assert render.doing(snapshot) == words
    assert words in render.at_work(snapshot)


def test_an_error_names_what_is_given_and_allowed() -> None:
    error = error_body(InvalidInput("num_inference_steps", 500, "at most 150 on this server"))
    html = render.failure(error["error"])
    assert "Steps: this does not fit" in html
    assert "Given: 500" in html
    assert "Allowed: at most 150 on this server" in html


def test_a_busy_server_says_when_to_come_back() -> None:
    html = render.failure(error_body(Overloaded("the queue is full", 3.2))["error"])
    assert "The server is busy" in html
    assert "Try again in 4 s." in html


def test_an_error_of_ours_says_so() -> None:
    assert "engine has ended" in render.failure(error_body(EngineDead("gone"))["error"])
    html = render.failure(error_body(RuntimeError("secret"))["error"])
    assert "secret" not in html


def test_a_picture_is_chosen_by_its_number_only() -> None:
    some = album(3)
    assert some.choose(2) is some.pictures[2]
    assert some.choose(3) is None
    assert some.choose(-1) is None
    assert some.chosen == 2
    assert render.gallery(some).count('aria-pressed="true"') == 1
