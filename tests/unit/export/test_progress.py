"""What the export's user sees of its stages."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from export.progress import Durations, Progress


def console(*, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, highlight=False)


def shown(screen: Console) -> str:
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_a_stage_is_named_with_its_time_and_marked_when_it_fails() -> None:
    screen = console()
    progress = Progress(screen)
    with progress.stage("Write [base]"):
        pass
    with pytest.raises(ValueError, match="broken"), progress.stage("Verify"):
        raise ValueError("broken")
    lines = shown(screen).splitlines()
    assert lines[0].startswith("+ Write [base]")
    assert lines[0].endswith(" s")
    assert lines[1].startswith("x Verify")


def test_what_took_long_before_is_announced_with_that_time(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "durations.json"
    Durations(path).note("Compile", 42.0)
    Durations(path).note("Write", 1.0)
    screen = console()
    progress = Progress(screen, Durations(path))
    for title in ("Compile", "Write"):
        with progress.stage(title):
            pass
    assert "Compile: about 42 s" in shown(screen)
    assert "Write: about" not in shown(screen)


def test_on_a_terminal_the_time_moves_beside_what_is_expected(tmp_path: Path) -> None:
    durations = Durations(tmp_path / "durations.json")
    durations.note("Compile", 42.0)
    screen = console(terminal=True)
    with Progress(screen, durations).stage("Compile"):
        pass
    assert "of about 42 s" in shown(screen)


def test_only_what_ended_well_is_remembered(tmp_path: Path) -> None:
    path = tmp_path / "durations.json"
    progress = Progress(console(), Durations(path))
    with pytest.raises(KeyboardInterrupt), progress.stage("Compile"):
        raise KeyboardInterrupt
    with progress.stage("Write"):
        pass
    assert Durations(path).expected("Compile") is None
    assert Durations(path).expected("Write") is not None


@pytest.mark.parametrize("content", ["", "[]", '{"a": "b"}', "\x00"])
def test_a_broken_file_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "durations.json"
    path.write_text(content)
    durations = Durations(path)
    assert durations.expected("a") is None
    durations.note("a", 3.0)
    assert Durations(path).expected("a") == 3.0


def test_the_file_does_not_grow_without_end(tmp_path: Path) -> None:
    path = tmp_path / "durations.json"
    durations = Durations(path)
    for i in range(Durations.MOST + 10):
        durations.note(str(i), 1.0)
    again = Durations(path)
    assert again.expected("9") is None
    assert again.expected("10") == 1.0
