"""Pictures and notes that were cut, emptied, changed or exchanged are absent, and are removed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from sdxl_bento.errors import ImageNotFound
from sdxl_bento.pictures.notes import Damaged, Note
from sdxl_bento.pictures.store import ImageStore

KEY, OTHER_KEY = "0123456789abcdef" * 4, "f" * 64
DATA = bytes(range(256)) * 4
OLD_ID = "awFg2-qBFNRlFlu89xv67Q"


def flipped(data: bytes, place: int = 100) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(*fsspec.core.url_to_fs(str(tmp_path)), ttl_s=60, max_bytes=10**6)


PICTURES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-1],
    "longer": lambda data: data + b"\0",
    "one bit": flipped,
    "another's": lambda data: bytes(len(data)),
}
NOTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda note: b"",
    "cut": lambda note: note[:-1],
    "object": lambda note: b"{}",
    "list": lambda note: b"[]",
    "null": lambda note: b"null",
    "number": lambda note: b"1" * 5000,
    "deep list": lambda note: b"[" * 100_000,
    "deep object": lambda note: b'{"a":' * 900 + b"1" + b"}" * 900,
    "not unicode": lambda note: b"\xff" * 9,
    "one bit of the metadata": lambda note: note.replace(b'"seed": 3', b'"seed": 2'),
    "other types": lambda note: json.dumps(
        {"format": ["png"], "bytes": "4", "metadata": None}
    ).encode(),
    "no format of ours": lambda note: note.replace(b'"png"', b'"exe"'),
    "another format": lambda note: note.replace(b'"png"', b'"webp"'),
    "without digests": lambda note: json.dumps(
        {"format": "png", "bytes": len(DATA), "metadata": {}}
    ).encode(),
}


@pytest.mark.parametrize(
    ("suffix", "change"),
    [
        *(pytest.param("png", change, id=f"picture: {name}") for name, change in PICTURES.items()),
        *(pytest.param("json", change, id=f"note: {name}") for name, change in NOTES.items()),
    ],
)
def test_what_is_damaged_is_absent_counted_and_removed(
    store: ImageStore, tmp_path: Path, suffix: str, change: Callable[[bytes], bytes]
) -> None:
    counted: list[None] = []
    store.on_damaged = lambda: counted.append(None)
    metadata = {"params": {"seed": 3}}
    damaged, whole = (store.put(DATA, "png", metadata, key) for key in (KEY, OTHER_KEY))
    file = tmp_path / f"{damaged}.{suffix}"
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(ImageNotFound):
        store.get(damaged)
    assert store.get_result(KEY, "png") is None
    assert len(counted) == 2
    if suffix == "json":
        with pytest.raises(ImageNotFound):
            store.describe(damaged)
    store.sweep()
    assert not list(tmp_path.rglob(f"{damaged}*"))
    assert store.get(whole).data == DATA


@pytest.mark.parametrize("suffix", ["png", "json"])
def test_a_file_without_end_is_not_read_to_it(
    store: ImageStore, tmp_path: Path, suffix: str
) -> None:
    damaged = store.put(DATA, "png", {}, KEY)
    os.truncate(tmp_path / f"{damaged}.{suffix}", 1 << 40)
    with pytest.raises(ImageNotFound):
        store.get(damaged)
    assert store.get_result(KEY, "png") is None
    store.sweep()
    assert not list(tmp_path.rglob(f"{damaged}*"))


def test_a_file_that_cannot_be_read_is_absent_and_stays(store: ImageStore, tmp_path: Path) -> None:
    """The store as a whole works, so others must not be told that it does not."""
    unreadable = store.put(DATA, "png", {}, KEY)
    file, kept = tmp_path / f"{unreadable}.png", tmp_path / "kept"
    file.rename(kept)
    file.symlink_to(file)
    with pytest.raises(ImageNotFound, match="cannot be read"):
        store.get(unreadable)
    assert store.get_result(KEY, "png") is None
    store.sweep()
    kept.replace(file)
    assert store.get(unreadable).data == DATA


def test_what_is_whole_again_stays(store: ImageStore, tmp_path: Path) -> None:
    """A note may have been read while another process was still writing it."""
    image_id = store.put(DATA, "png", {})
    note = tmp_path / f"{image_id}.json"
    content = note.read_bytes()
    note.write_bytes(content[:9])
    with pytest.raises(ImageNotFound):
        store.get(image_id)
    note.write_bytes(content)
    store.sweep()
    assert store.get(image_id).data == DATA


def test_pictures_that_were_exchanged_with_their_notes(store: ImageStore, tmp_path: Path) -> None:
    one, other = store.put(DATA, "png", {}), store.put(DATA[::-1], "png", {})
    for suffix in ("png", "json"):
        (tmp_path / f"{one}.{suffix}").write_bytes((tmp_path / f"{other}.{suffix}").read_bytes())
    with pytest.raises(ImageNotFound):
        store.get(one)


def test_a_result_answers_for_its_own_key_only(store: ImageStore, tmp_path: Path) -> None:
    store.put(DATA, "png", {}, KEY)
    (tmp_path / "results" / KEY).rename(tmp_path / "results" / OTHER_KEY)
    assert store.get_result(OTHER_KEY, "png") is None


def test_a_folder_in_the_place_of_a_picture(store: ImageStore, tmp_path: Path) -> None:
    image_id = store.put(DATA, "png", {})
    (tmp_path / f"{image_id}.png").unlink()
    (tmp_path / f"{image_id}.png").mkdir()
    with pytest.raises(ImageNotFound):
        store.get(image_id)


def test_pictures_of_earlier_versions_can_be_read(tmp_path: Path) -> None:
    store = ImageStore(
        *fsspec.core.url_to_fs(str(tmp_path)), ttl_s=60, max_bytes=10**6, clock=lambda: 1795252450
    )
    note = {"format": "png", "bytes": len(DATA), "metadata": {"params": {"seed": 3}}}
    (tmp_path / f"{OLD_ID}.json").write_text(json.dumps(note))
    (tmp_path / f"{OLD_ID}.png").write_bytes(DATA)
    assert store.get(OLD_ID).metadata == {"params": {"seed": 3}}
    (tmp_path / f"{OLD_ID}.png").write_bytes(DATA[:-1])
    with pytest.raises(ImageNotFound):
        store.get(OLD_ID)


@pytest.mark.parametrize("metadata", [{}, {"a": (1, 2)}, {"prompt": "\ud800ä\n"}, {"x": 1e300}])
def test_a_note_is_read_as_it_was_written(metadata: dict[str, object]) -> None:
    note = Note.of("a" * 28, DATA, "png", metadata, KEY)
    assert Note.read(note.written(), "a" * 28).written() == note.written()
    with pytest.raises(Damaged):
        Note.read(note.written(), "b" * 28)


def test_each_picture_has_the_time_of_the_server_that_stored_it(tmp_path: Path) -> None:
    """Two servers on one store: neither removes what the other has promised to keep."""
    now = 1_000_000.0

    def opened(ttl_s: float) -> ImageStore:
        files, root = fsspec.core.url_to_fs(str(tmp_path))
        return ImageStore(files, root, ttl_s=ttl_s, max_bytes=10**6, clock=lambda: now)

    brief, patient = opened(20), opened(3600)
    short, long = brief.put(DATA, "png", {}), patient.put(DATA, "png", {})
    now += 30
    for store in (brief, patient):
        store.sweep()
        assert store.get(long).data == DATA
        with pytest.raises(ImageNotFound, match="20 seconds"):
            store.get(short)
        assert not store.is_ageing(long)
    assert not list(tmp_path.glob(f"{short}*"))
