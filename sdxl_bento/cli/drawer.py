"""The contract of what draws for a command: its input, its result, its one method.

`local` and `remote` implement it; `connect` picks one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sdxl_bento.cli.fields import Fields
    from sdxl_bento.order import Task
    from sdxl_bento.serving.results import Progress

OnProgress = Callable[["Progress"], None]


@dataclass(frozen=True, slots=True)
class InitImage:
    """The picture that an image-to-image call starts from.

    `data` is the content of its file, `task` what redraws it: `img2img` or `refine`.
    """

    data: bytes
    task: Task = "img2img"


@dataclass(frozen=True, slots=True)
class Result:
    """A finished call.

    `answer` is the JSON of the native protocol without the pictures. Those are in `files`, encoded,
    one for each item of `answer["images"]`.
    """

    answer: dict[str, Any]
    files: tuple[bytes, ...]


class Drawer(Protocol):
    """Draws pictures. Cancelling the awaiting task cancels the call."""

    async def draw(
        self,
        fields: Fields,
        init_image: InitImage | None = None,
        on_progress: OnProgress | None = None,
    ) -> Result:
        """Run one call with the native `fields`. Raises Failure or SDXLError."""
        ...
