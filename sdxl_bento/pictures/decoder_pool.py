"""Decodes uploaded pictures in a few processes, each of which can be ended at any time.

A thread cannot be ended, so a file that takes long to decode would keep one busy after its caller
has left. A process can, and what it has allocated goes with it.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from weakref import finalize

import PIL
from PIL import Image as PILImage

import sdxl_bento
from sdxl_bento.errors import InvalidInput, Overloaded
from sdxl_bento.pictures.decode import ImageTooLarge, broken
from sdxl_bento.pictures.decoder_process import JOB, READY, RESULT

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdxl_bento.config import Settings

_START_S = 30.0  # in which a process has to be ready; it takes a tenth of a second
_GRACE_S = 5.0  # after which a process ends itself, if nobody else does
_LARGE = 1 << 20  # bytes
_PROGRAM = (
    "import sys; n = int(sys.argv.pop()); sys.path[:] = sys.argv[-n:]; "
    "from sdxl_bento.pictures.decoder_process import main; main()"
)


class DecoderPool:
    """Processes for decoding, which are started when they are needed and kept.

    Files over a mebibyte, of which some take long, never take the last free process, so that small
    ones do not wait for them. With a single process they do.

    An object belongs to one event loop. Its processes end with it, and with this process.
    """

    def __init__(self, settings: Settings) -> None:
        """
        Args:
            settings: of the service: `max_pixels` of a picture, `decode_timeout_s` for each,
                `decode_processes` that run at once, and `max_queue` pictures that wait for one.
        """
        self._max_pixels = settings.max_pixels
        self._timeout_s = settings.decode_timeout_s
        self._max_waiting = settings.max_queue
        self._slots = asyncio.Semaphore(settings.decode_processes)
        self._large = asyncio.Semaphore(max(settings.decode_processes - 1, 1))
        # Each thread waits for one process.
        self._threads = ThreadPoolExecutor(settings.decode_processes, "sdxl-decode")
        self._processes: set[_Process] = set()
        self._idle: list[_Process] = []
        self._waiting = 0

    async def decode(self, data: bytes, field: str = "image") -> Image:
        """`decode.decode` in a process. Cancelling the awaiting task ends the process.

        Raises:
            ImageTooLarge: the picture is too large, or takes too long to decode.
            InvalidInput: the file is no picture, or a broken one.
            Overloaded: too many pictures are waiting to be decoded.
        """
        slots = (self._large, self._slots) if len(data) > _LARGE else (self._slots,)
        if self._waiting >= self._max_waiting and any(slot.locked() for slot in slots):
            raise Overloaded("too many uploaded pictures are waiting to be decoded", 1.0)
        async with AsyncExitStack() as held:
            self._waiting += 1
            try:
                for slot in slots:
                    await held.enter_async_context(slot)
            finally:
                self._waiting -= 1
            return await self._run(data, field)

    def close(self) -> None:
        """End the processes, also those that are decoding."""
        for process in self._processes:
            process.end()
        self._processes.clear()
        self._idle.clear()
        self._threads.shutdown(wait=True)

    async def _run(self, data: bytes, field: str) -> Image:
        """Decode in a process, which is kept only if it has answered."""
        process = await self._process()
        self._processes.add(process)
        job = asyncio.get_running_loop().run_in_executor(self._threads, process.run, data)
        job.add_done_callback(lambda done: done.cancelled() or done.exception())
        answered = False
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await asyncio.shield(job)
            answered = True
        except TimeoutError:
            value = f"a file of {len(data)} bytes"
            allowed = f"a picture that is decoded within {self._timeout_s:g} s"
            raise ImageTooLarge(field, value, allowed) from None
        except EOFError:
            raise broken(field, "it ends the program that decodes it") from None
        finally:
            if answered:
                self._idle.append(process)
            else:
                self._processes.discard(process)
                process.end()
        if isinstance(answer, PILImage.Image):
            return answer
        kind = ImageTooLarge if answer["too_large"] else InvalidInput
        raise kind(field, answer["value"], answer["allowed"])

    async def _process(self) -> _Process:
        """A process that waits for a job. Raises RuntimeError if a new one does not start."""
        while self._idle:
            process = self._idle.pop()
            if process.is_alive():
                return process
            self._processes.discard(process)
        start = partial(_Process, self._max_pixels, self._timeout_s + _GRACE_S)
        return await asyncio.get_running_loop().run_in_executor(self._threads, start)


class _Process:
    """One process, which is ended with this object at the latest."""

    def __init__(self, max_pixels: int, seconds: float) -> None:
        """Block until the program has started. Raises RuntimeError if it does not."""
        # It gets no environment, which may hold passwords, and starts without `site`.
        libraries = os.environ.get("LD_LIBRARY_PATH")
        env = {"MALLOC_MMAP_THRESHOLD_": "1048576"}  # so that large blocks are given back
        folders = [_folder_of(sdxl_bento), _folder_of(PIL), *sys.path]
        arguments = [str(max_pixels), str(seconds), *folders, str(len(folders))]
        process = subprocess.Popen(  # noqa: S603  our own program
            [sys.executable, "-I", "-S", "-c", _PROGRAM, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env if libraries is None else env | {"LD_LIBRARY_PATH": libraries},
            start_new_session=True,  # signals to the server's group are not for it
        )
        assert process.stdin is not None and process.stdout is not None
        self.pid, self._process = process.pid, process
        self._jobs, self._results = process.stdin, process.stdout
        self.end = finalize(self, _end, process)
        started = select.poll()
        started.register(process.stdout, select.POLLIN)
        if not started.poll(_START_S * 1e3) or self._results.read(len(READY)) != READY:
            raise RuntimeError("the program that decodes pictures does not start")

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def run(self, data: bytes) -> Image | dict[str, Any]:
        """Block until a file is decoded: its picture, or what `decoder_process` says is wrong.

        Raises EOFError if the process has ended.
        """
        try:
            self._jobs.write(JOB.pack(len(data)))
            self._jobs.write(data)
            self._jobs.flush()
            length, size = RESULT.unpack(self._read(RESULT.size))
            text, pixels = self._read(length), self._read(size)
        except (OSError, ValueError):  # the pipe is broken, or was closed by `end`
            raise EOFError from None
        answer: dict[str, Any] = json.loads(text)
        return PILImage.frombytes("RGB", answer["size"], pixels) if pixels else answer

    def _read(self, size: int) -> bytes:
        data = self._results.read(size)
        if len(data) < size:
            raise EOFError
        return data


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # what is still to be written cannot be
            assert pipe is not None
            pipe.close()


def _folder_of(package: ModuleType) -> str:
    assert package.__file__ is not None
    return str(Path(package.__file__).parent.parent)
