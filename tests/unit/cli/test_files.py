"""Where pictures go, and that nothing is overwritten or left half-written."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sdxl_bento.cli.failures import ExitCode, Failure
from sdxl_bento.cli.files import Target, create, replace, slug

ABOUT = [{"seed": 7, "format": "png"}, {"seed": 8, "format": "png"}]


def names(folder: Path = Path()) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_name_from_prompt_and_seed() -> None:
    assert Target(None).write([b"1"], ABOUT[:1], "A red circle, 2/3 on blue!") == [
        Path("a-red-circle-2-3-on-blue-7.png")
    ]
    assert slug("") == slug("?!") == "picture"
    assert slug("Ein grüner Kreis / ../etc") == "ein-grüner-kreis-etc"
    assert len(slug("word " * 100)) <= 48
    assert len(slug("w" * 100)) == 48


def test_nothing_is_overwritten() -> None:
    target = Target("picture.png")
    for expected in ("picture.png", "picture-2.png", "picture-3.png"):
        assert target.write([expected.encode()], ABOUT[:1], "x") == [Path(expected)]
    assert Path("picture.png").read_bytes() == b"picture.png"
    assert Target("picture.png", force=True).write([b"new"], ABOUT[:1], "x") == [
        Path("picture.png")
    ]
    assert Path("picture.png").read_bytes() == b"new"
    assert names() == ["picture-2.png", "picture-3.png", "picture.png"]


def test_several_pictures_are_numbered() -> None:
    assert Target("a.png").write([b"1", b"2"], ABOUT, "x") == [Path("a-1.png"), Path("a-2.png")]
    target = Target("new/folder/")
    target.prepare()
    assert target.write([b"1", b"2"], ABOUT, "x") == [
        Path("new/folder/x-7.png"),
        Path("new/folder/x-8.png"),
    ]


def test_parents_are_made() -> None:
    target = Target("deep/down/picture.png")
    target.prepare()
    assert target.write([b"1"], ABOUT[:1], "x") == [Path("deep/down/picture.png")]


def test_two_at_once_do_not_take_the_same_name() -> None:
    data = [f"{number}".encode() for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda one: create(Path("picture.png"), one), data))
    assert [path.read_bytes() for path in paths] == data
    assert len(names()) == 40


@pytest.mark.parametrize("write", [create, replace])
def test_a_full_disk_leaves_nothing(write: object, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("picture.png").write_bytes(b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    target = Target("picture.png", force=write is replace)
    with pytest.raises(Failure, match=r"picture\.png: cannot be written \(No space left") as caught:
        target.write([b"new"], ABOUT[:1], "x")
    assert caught.value.code is ExitCode.FAILED
    assert names() == ["picture.png"]
    assert Path("picture.png").read_bytes() == b"old"


def test_a_file_system_without_hard_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert [create(Path("a.png"), data).name for data in (b"1", b"2")] == ["a.png", "a-2.png"]
    assert [Path(name).read_bytes() for name in names()] == [b"2", b"1"]


def test_the_format_is_as_the_name_ends() -> None:
    assert Target("a.JPG").format(None) == "jpeg"
    assert Target("a.webp").format("webp") == "webp"
    assert Target("a.tmp4").format(None) is None
    assert Target(None).format("jpeg") == "jpeg"


def test_a_folder_that_is_none() -> None:
    Path("file").write_bytes(b"")
    with pytest.raises(Failure, match="file: cannot be written"):
        Target("file/picture.png").prepare()
