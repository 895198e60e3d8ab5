"""`bentoml` as a command, with or without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from tests.support.server import ROOT

_NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
_INDEXES = ("PIP_INDEX_URL", "UV_DEFAULT_INDEX")
OFFLINE = dict.fromkeys((*_PROXIES, *_INDEXES), _NOWHERE) | {"PIP_NO_INDEX": "1", "UV_OFFLINE": "1"}


@cache
def no_network() -> tuple[str, ...]:
    """A command's prefix that gives it a network without devices; empty where that is forbidden."""
    prefix = ("unshare", "--net", "--map-root-user")
    try:
        done = subprocess.run([*prefix, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        return ()
    return prefix if done.returncode == 0 else ()


def bentoml(*arguments: str, home: Path, cwd: Path = ROOT, **variables: str) -> str:
    """What `bentoml …` prints, run without a network. It must succeed."""
    env = {**os.environ, **OFFLINE, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    command = [*no_network(), sys.executable, "-m", "bentoml", *arguments]
    done = subprocess.run(
        command, cwd=cwd, env=env | variables, capture_output=True, text=True, timeout=180,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def build(*options: str, home: Path, **variables: str) -> str:
    """Build a bento of this project without a network; its tag."""
    printed = bentoml("build", "--output", "tag", *options, home=home, **variables)
    return printed.removeprefix("__tag__:")
