"""Which server a command uses, and the picture that it sends there."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from sdxl_bento.cli.connect import connect, read_init_image, server_url
from sdxl_bento.cli.drawer import InitImage
from sdxl_bento.cli.failures import ExitCode, Failure
from sdxl_bento.cli.local import LocalDrawer
from sdxl_bento.cli.remote import RemoteDrawer


@pytest.mark.parametrize(
    ("option", "variable", "url"),
    [
        (None, None, None),
        (None, "", None),
        (None, "server:3000", "http://server:3000"),
        ("other", "server", "http://other"),
        ("", "server", None),
        ("  ", "server", None),
        (" https://server/prefix// ", None, "https://server/prefix"),
        ("http://[::1]:65535", None, "http://[::1]:65535"),
    ],
)
def test_the_option_comes_before_the_variable(
    option: str | None, variable: str | None, url: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable is not None:
        monkeypatch.setenv("SDXL_URL", variable)
    assert server_url(option) == url


@pytest.mark.parametrize(
    "wrong", ["ftp://server", "http://", "server:0", "server:65536", "server:x", "http://[::1"]
)
def test_an_address_that_is_none(wrong: str) -> None:
    with pytest.raises(Failure, match="allowed: an address such as http://localhost:3000") as error:
        server_url(wrong)
    assert error.value.code is ExitCode.USAGE


async def test_with_an_address_nothing_is_loaded_here() -> None:
    remote = connect("http://server", None, Console(quiet=True), warm=False)
    assert isinstance(remote, RemoteDrawer)
    async with remote:
        pass
    local = connect(None, "tiny", Console(quiet=True), warm=True, verbose=True)
    assert isinstance(local, LocalDrawer)
    assert (local._model, local._warm, local._verbose) == ("tiny", True, True)


def test_the_picture_to_start_from(tmp_path: Path) -> None:
    path = tmp_path / "in.png"
    path.write_bytes(b"file")
    assert read_init_image(path, "refine") == InitImage(b"file", "refine")
    with pytest.raises(Failure, match=r"--image .*: cannot be read \(Is a directory\)"):
        read_init_image(tmp_path, "img2img")
