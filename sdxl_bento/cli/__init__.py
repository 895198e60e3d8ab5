"""The command line `sdxl-bento`. See docs/guides/command-line.md.

A command imports what it needs when it runs, because `--help` and shell completion have to be
quick.
"""

from __future__ import annotations

import signal
from types import FrameType


def main() -> None:
    """Entry point."""
    from sdxl_bento.cli.app import app

    signal.signal(signal.SIGTERM, _terminate)
    app(prog_name="sdxl-bento")


def _terminate(_number: int, _frame: FrameType | None) -> None:
    """End by an exception, so that calls are cancelled and temporary files are removed."""
    raise SystemExit(143)
