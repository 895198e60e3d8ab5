"""What `generate` and `bench` draw with: a server, or this process."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sdxl_bento.cli.failures import ExitCode, Failure

if TYPE_CHECKING:
    from rich.console import Console

    from sdxl_bento.cli.fields import Fields
    from sdxl_bento.serving.results import Progress

OnProgress = Callable[["Progress"], None]


@dataclass(frozen=True, slots=True)
class Source:
    """A picture to redraw, as its file's bytes; `refine_only`: by the refiner alone."""

    data: bytes
    refine_only: bool = False


@dataclass(frozen=True, slots=True)
class Drawn:
    """A finished call.

    `about` is what the native protocol answers as JSON, without the pictures themselves: those are
    in `files`, one for each item of `about["images"]`.
    """

    about: dict[str, Any]
    files: tuple[bytes, ...]


class Drawer(Protocol):
    """Draws. Cancelling the awaiting task cancels the call."""

    async def draw(
        self, fields: Fields, source: Source | None = None, on_progress: OnProgress | None = None
    ) -> Drawn:
        """Run one call. Raises Failure or SDXLError."""
        ...


def drawer(
    url: str | None, model: str | None, console: Console, *, warm: bool, verbose: bool = False
) -> AbstractAsyncContextManager[Drawer]:
    """The server at `url`, or else this process, with `model` loaded.

    Args:
        url: of a server; None: load the model here.
        model: a tag in the store; None: that of the settings. A server is told by the call.
        console: where to show that the model is loading.
        warm: let the loaded model draw something first, so that timings are those of a server.
        verbose: show the log.
    """
    if url is not None:
        from sdxl_bento.cli.remote import RemoteDrawer

        return RemoteDrawer(url)
    from sdxl_bento.cli.local import LocalDrawer

    return LocalDrawer(model, console, warm=warm, verbose=verbose)


def read_picture(path: Path, *, refine_only: bool) -> Source:
    """The file of `--image`. Raises Failure."""
    try:
        return Source(path.read_bytes(), refine_only)
    except OSError as error:
        message = f"--image {path}: cannot be read ({error.strerror})"
        raise Failure.of(ExitCode.FAILED, "unreadable_file", message) from None


def server_url(option: str | None) -> str | None:
    """The server that `--url` or SDXL_URL names; None for none.

    Raises:
        Failure: it is no address.
    """
    from urllib.parse import urlsplit

    from sdxl_bento.config import server_url as from_environment

    text = (from_environment() or "") if option is None else option
    if not text.strip():
        return None
    url = text.strip().rstrip("/")
    url = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        message = f"--url is {text!r}, allowed: an address such as http://localhost:3000"
        raise Failure.of(ExitCode.USAGE, "usage", message)
    return url
