"""What a runtime derives is read again only if it has not changed since it was written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sdxl_bento.backends import derived
from sdxl_bento.backends.derived import derived_files, remove_damaged
from sdxl_bento.errors import ConfigurationError
from tests.support.damage import flip_bit


@pytest.fixture(autouse=True)
def _nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(derived, "_CHECKED", {})


def run(folder: Path, *, verify: bool = True, **writes: bytes) -> dict[str, bytes]:
    """A start of a runtime that writes these files; returns what it finds before."""
    with derived_files(folder, verify=verify):
        found = {path.name: path.read_bytes() for path in folder.glob("*.blob")}
        for name, data in writes.items():
            (folder / f"{name}.blob").write_bytes(data)
    return found


def test_what_was_written_is_found_again(tmp_path: Path) -> None:
    assert run(tmp_path, a=b"one", b=b"two") == {}
    whole = {"a.blob": b"one", "b.blob": b"two"}
    assert run(tmp_path, c=b"three") == whole  # which grows at run time
    assert run(tmp_path, a=b"newer") == whole | {"c.blob": b"three"}
    assert run(tmp_path)["a.blob"] == b"newer"  # the runtime may write it anew


def test_one_bit_and_it_is_derived_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run(tmp_path, a=b"one", b=b"two")
    flip_bit(tmp_path / "a.blob")
    assert run(tmp_path, a=b"one") == {"b.blob": b"two"}
    assert f"{tmp_path / 'a.blob'} has changed since it was written" in caplog.text
    assert run(tmp_path) == {"a.blob": b"one", "b.blob": b"two"}


@pytest.mark.parametrize("notes", [None, "", "[]", '{"a.blob": 5}', "[" * 100_000])
def test_without_notes_nothing_is_trusted(tmp_path: Path, notes: str | None) -> None:
    """As after a process that was killed while it wrote."""
    run(tmp_path, a=b"one")
    (tmp_path / "digests.json").unlink()
    if notes is not None:
        (tmp_path / "digests.json").write_text(notes)
    assert run(tmp_path) == {}


def test_unverified_files_are_noted_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "old.blob").write_bytes(b"unknown")
    run(tmp_path, verify=False, a=b"one")
    assert list(json.loads((tmp_path / "digests.json").read_text())) == ["a.blob"]
    flip_bit(tmp_path / "a.blob")
    assert "a.blob" in run(tmp_path, verify=False)
    assert remove_damaged(tmp_path) == ["a.blob"]  # the other one has no digest, so has not changed
    assert not list(tmp_path.glob("*.blob"))


def test_what_cannot_be_removed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> None:
        raise PermissionError(13, "read-only")

    run(tmp_path, a=b"one")
    flip_bit(tmp_path / "a.blob")
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ConfigurationError, match=r"a\.blob has changed .*\(read-only\)"):
        run(tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    (tmp_path / "digests.json").rename(tmp_path / ".gone")
    assert run(tmp_path)  # an earlier export that is mounted read-only
