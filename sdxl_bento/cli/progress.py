"""Progress bars on a terminal, one for each picture of a call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

if TYPE_CHECKING:
    from rich.console import Console

    from sdxl_bento.serving.results import Progress

_STAGES = {
    "encode": "reading the prompt",
    "image": "reading the picture",
    "base": "drawing",
    "refine": "refining",
    "decode": "decoding",
}


class Bars:
    """The bars of one call. They show nothing if the console is no terminal."""

    def __init__(self, console: Console, pictures: int) -> None:
        self._bars = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._names = [
            f"picture {index + 1} of {pictures}" if pictures > 1 else ""
            for index in range(pictures)
        ]
        self._tasks = [
            self._bars.add_task(self._text(index, "waiting"), total=None)
            for index in range(pictures)
        ]

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def update(self, progress: Progress) -> None:
        """Show the progress of one picture."""
        if progress.index >= len(self._tasks):
            return
        what = _STAGES.get(progress.stage, progress.stage)
        if progress.stage == "queued":
            what = f"queued, number {progress.position}" if progress.position else "queued"
        self._bars.update(
            self._tasks[progress.index],
            description=self._text(progress.index, what),
            completed=progress.step,
            total=progress.steps or None,
        )

    def _text(self, index: int, what: str) -> str:
        name = self._names[index]
        return f"{name}: {what}" if name else what
