"""Run pytest in forks of this process, which has imported the heavy packages once for all.

Each runs in a copy of the project (`Tree`), so that a changed file is what every test imports, and
what every process imports that a test starts. The parent imports no module of the project that is
tested and computes nothing with torch, whose threads would not survive a fork.
"""

from __future__ import annotations

import compileall
import contextlib
import gc
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

from tools.mutants import launcher, tracing
from tools.mutants.plugin import RESULT

ROOT = Path(__file__).resolve().parents[2]
# Not onnxruntime and openvino: importing them starts threads.
HEAVY = """
    pytest pytest_asyncio.plugin xdist.plugin hypothesis _hypothesis_pytestplugin
    anyio.pytest_plugin schemathesis.pytest.plugin schemathesis.pytest.xdist
    schemathesis.graphql.loaders schemathesis.reporting.html
    schemathesis.reporting.junitxml execnet xdist.looponfail platformdirs.pytest_plugin pdb
    numpy PIL.Image torch torch.export safetensors.torch onnx peft diffusers diffusers.loaders.peft
    diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img
    transformers.models.clip.modeling_clip transformers.models.clip.tokenization_clip
    bentoml bentoml._internal.models _bentoml_sdk _bentoml_impl.server _bentoml_impl.client
    pydantic pydantic_settings starlette.testclient fastapi httpx openai
    fsspec s3fs gcsfs typer rich.progress
"""
CRASHED = 99
TOP = ("sdxl_bento", "export", "tests", "tools", "benchmarks")


class Tree:
    """A copy of the project's files, in which one file at a time may be changed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder.resolve()
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        for name in filter(None, done.stdout.split("\0")):
            if (ROOT / name).is_file():
                (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, self.folder / name)
        # Bytecode that is compared with its source by content: by time and size, a mutant that is
        # written within the same second would pass for the original.
        for top in ("sdxl_bento", "export"):
            compileall.compile_dir(
                self.folder / top, quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH
            )

    @contextlib.contextmanager
    def changed(self, file: str, text: str) -> Iterator[None]:
        """With `file` holding `text`."""
        path = self.folder / file
        before = path.read_text("utf-8")
        path.write_text(text, "utf-8")
        try:
            yield
        finally:
            path.write_text(before, "utf-8")


@dataclass(frozen=True)
class Outcome:
    """How a run of pytest ended: its exit status, or None if it ran out of time."""

    status: int | None
    seconds: float
    failed: Sequence[str]
    result: Mapping[str, Any]


@dataclass
class Run:
    """pytest in a fork, in a process group of its own."""

    tree: Tree
    arguments: Sequence[str]
    work: Path  # for its output, its result and temporary files
    models: Path  # parent of pytest's own folder: what fixtures export once is kept there
    timeout_s: float
    trace: Path | None = None
    pid: int = field(default=0, init=False)
    began: float = field(default=0.0, init=False)

    @property
    def log(self) -> Path:
        return self.work / "output.txt"

    @property
    def result(self) -> Path:
        return self.work / "result.json"

    def start(self) -> None:
        self.work.mkdir(parents=True, exist_ok=True)
        self.result.unlink(missing_ok=True)
        sys.stdout.flush()
        sys.stderr.flush()
        self.began = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            status = CRASHED
            try:
                status = self._in_child()
            except BaseException:
                traceback.print_exc()
            finally:
                with contextlib.suppress(Exception):
                    sys.stdout.flush()
                    sys.stderr.flush()
                os._exit(status)

    def poll(self) -> Outcome | None:
        """The outcome once it has ended or run out of time; its processes are gone then."""
        pid, wait_status = os.waitpid(self.pid, os.WNOHANG)
        seconds = time.monotonic() - self.began
        if pid == 0 and seconds < self.timeout_s:
            return None
        self.kill()
        if pid == 0:
            os.waitpid(self.pid, 0)
        status = None if pid == 0 else os.waitstatus_to_exitcode(wait_status)
        try:
            result = json.loads(self.result.read_text())
        except (OSError, ValueError):
            result = {}
        return Outcome(status, seconds, result.get("failed", ()), result)

    def kill(self) -> None:
        """End the fork and all that it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def _in_child(self) -> int:
        import pytest

        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _redirect(self.log)
        os.chdir(self.tree.folder)
        for name in [name for name in sys.modules if name.partition(".")[0] in TOP]:
            del sys.modules[name]
        here = str(self.tree.folder)
        site = [f"{here}/tools/mutants/site"] if self.trace else []
        sys.path[:] = [here, *(p for p in sys.path if p not in ("", str(ROOT)))]
        importlib.invalidate_caches()
        sys.dont_write_bytecode = False  # rewriting the tests' asserts each time takes a second
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        os.environ |= {
            "PYTHONPATH": os.pathsep.join([*site, here]),
            RESULT: str(self.result),
            # Lets the fixtures keep their exports beside the folder that pytest clears.
            "PYTEST_XDIST_WORKER": "gw0",
        }
        launcher.start(self.work / "bin")
        if self.trace:
            os.environ[tracing.VARIABLE] = str(self.trace)
            traced: Any = importlib.import_module("tools.mutants.tracing")
            traced.resume, write = traced.start(
                self.tree.folder, self.trace, most_calls=tracing.MOST_CALLS
            )
        status = pytest.main(
            [
                "-q", "-n0", "-p", "no:cacheprovider", "-p", "tools.mutants.plugin",
                # These packages are imported already, and so cannot be rewritten.
                "-W", "ignore::pytest.PytestAssertRewriteWarning",
                "--basetemp", str(self.models / self.work.name), *self.arguments,
            ]
        )  # fmt: skip
        if self.trace:
            write()
        return int(status)


def warm() -> None:
    """Import the heavy packages, with one thread for each that comes to compute."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["BENTOML_DO_NOT_TRACK"] = "True"
    for name in HEAVY.split():
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()  # so that a collection in a fork does not copy all of its pages


def _redirect(log: Path) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
