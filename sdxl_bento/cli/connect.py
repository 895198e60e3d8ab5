"""Which drawer a command uses: a running server, or a model loaded in this process."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from sdxl_bento.cli.drawer import InitImage
from sdxl_bento.cli.failures import ExitCode, Failure

if TYPE_CHECKING:
    from rich.console import Console

    from sdxl_bento.cli.drawer import Drawer
    from sdxl_bento.order import Task


def connect(
    url: str | None, model: str | None, console: Console, *, warm: bool, verbose: bool = False
) -> AbstractAsyncContextManager[Drawer]:
    """The server at `url`; without one, this process with `model` loaded.

    Args:
        url: the address of a server, or None to load the model here.
        model: a tag in the store, or None for the model of the settings. It is used only when the
            model is loaded here; a server reads the model's name from each call.
        console: shows that the model is loading.
        warm: draw something first, so that timings are those of a server that has warmed up.
        verbose: show the log.
    """
    if url is not None:
        from sdxl_bento.cli.remote import RemoteDrawer

        return RemoteDrawer(url)
    from sdxl_bento.cli.local import LocalDrawer

    return LocalDrawer(model, console, warm=warm, verbose=verbose)


def read_init_image(path: Path, task: Task) -> InitImage:
    """Read the file that `--image` names. Raises Failure if it cannot be read."""
    try:
        return InitImage(path.read_bytes(), task)
    except OSError as error:
        message = f"--image {path}: cannot be read ({error.strerror})"
        raise Failure.of(ExitCode.FAILED, "unreadable_file", message) from None


def server_url(option: str | None) -> str | None:
    """The server that `--url` or else SDXL_URL names, or None if neither names one.

    An address without a scheme is taken as http. Raises Failure if it is not an address.
    """
    from urllib.parse import urlsplit

    from sdxl_bento.config import server_url as from_environment

    text = (from_environment() or "") if option is None else option
    if not text.strip():
        return None
    url = text.strip()
    url = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        message = f"--url is {text!r}, allowed: an address such as http://localhost:3000"
        raise Failure.of(ExitCode.USAGE, "usage", message)
    return url.rstrip("/")
