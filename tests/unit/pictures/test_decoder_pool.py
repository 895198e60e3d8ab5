"""Decoding in processes: the same pictures, and an end to each process whose time has come."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from sdxl_bento.config import Settings
from sdxl_bento.errors import InvalidInput, Overloaded
from sdxl_bento.pictures import decoder_pool
from sdxl_bento.pictures.decode import ImageTooLarge, decode
from sdxl_bento.pictures.decoder_pool import DecoderPool
from sdxl_bento.pictures.decoder_process import JOB
from tests.support.odd_pictures import MAX_PIXELS, many_scans, mutated, png, samples

SAMPLES = samples()
DATA = SAMPLES["png-rgba"]
SETTINGS = Settings(max_pixels=MAX_PIXELS, decode_processes=1, max_queue=1, decode_timeout_s=60)


@pytest.fixture
async def pool() -> AsyncIterator[DecoderPool]:
    pool = DecoderPool(SETTINGS)
    yield pool
    pool.close()


def the_process(pool: DecoderPool) -> int:
    (process,) = pool._processes
    return process.pid


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def exists(pid: int) -> bool:
    """Whether there is such a process, even one that has ended and that nobody has asked after."""
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


async def hanging(pool: DecoderPool) -> tuple[int, asyncio.Task[object]]:
    """A call whose process hangs, as one does whose decoder never ends; it is simply stopped."""
    await pool.decode(DATA)
    pid = the_process(pool)
    os.kill(pid, signal.SIGSTOP)
    task: asyncio.Task[object] = asyncio.create_task(pool.decode(DATA))
    await asyncio.sleep(0.02)
    assert not task.done()
    return pid, task


async def test_the_same_as_in_this_process(pool: DecoderPool) -> None:
    for data in SAMPLES.values():
        image, expected = await pool.decode(data), decode(data, MAX_PIXELS)
        assert (image.mode, image.size) == (expected.mode, expected.size)
        assert image.tobytes() == expected.tobytes()
    first = the_process(pool)
    refused = [b"", png(50_000, 50_000), many_scans(3000), DATA[:90]]
    for data in (*refused, *(data for _, data in mutated(60))):
        try:
            wanted: object = decode(data, MAX_PIXELS, "mask").tobytes()
        except InvalidInput as error:
            with pytest.raises(InvalidInput) as caught:
                await pool.decode(data, "mask")
            assert (type(caught.value), str(caught.value)) == (type(error), str(error))
        else:
            assert (await pool.decode(data, "mask")).tobytes() == wanted
    assert the_process(pool) == first  # it is kept


async def test_a_caller_that_leaves_ends_its_process(pool: DecoderPool) -> None:
    pid, task = await hanging(pool)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not exists(pid)
    assert (await pool.decode(DATA)).size == (24, 16)
    assert the_process(pool) != pid


async def test_a_picture_that_takes_too_long_is_refused(pool: DecoderPool) -> None:
    await pool.decode(DATA)
    pid = the_process(pool)
    os.kill(pid, signal.SIGSTOP)
    pool._timeout_s = 0.1
    with pytest.raises(ImageTooLarge, match=r"image: got .*bytes.*decoded within 0\.1 s"):
        await pool.decode(DATA)
    assert not exists(pid)
    pool._timeout_s = 60
    assert (await pool.decode(DATA)).size == (24, 16)


async def test_a_decoder_that_crashes_costs_only_its_file(pool: DecoderPool) -> None:
    pid, task = await hanging(pool)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(InvalidInput, match="a broken file"):
        await task
    assert (await pool.decode(DATA)).size == (24, 16)
    os.kill(the_process(pool), signal.SIGKILL)  # and one that ends between two files, nobody
    await until(lambda: not next(iter(pool._processes)).is_alive())
    assert (await pool.decode(DATA)).size == (24, 16)


async def test_only_so_many_at_once_and_in_the_queue(pool: DecoderPool) -> None:
    pid, task = await hanging(pool)
    waiting = asyncio.create_task(pool.decode(DATA))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as refused:
        await pool.decode(DATA)
    assert refused.value.retry_after_s > 0
    assert len(pool._processes) == 1
    os.kill(pid, signal.SIGCONT)
    assert len(await asyncio.gather(task, waiting)) == 2
    assert the_process(pool) == pid


async def test_small_files_do_not_wait_for_large_ones() -> None:
    pool = DecoderPool(SETTINGS.model_copy(update={"decode_processes": 2}))
    large = DATA + b"\0" * (1 << 20)  # what follows the end of a picture does not matter
    assert (await pool.decode(large)).size == (24, 16)
    pid = the_process(pool)
    os.kill(pid, signal.SIGSTOP)
    tasks = [asyncio.create_task(pool.decode(large)) for _ in range(2)]
    await asyncio.sleep(0)
    for _ in range(3):
        assert (await pool.decode(DATA)).size == (24, 16)
    with pytest.raises(Overloaded):
        await pool.decode(large)
    assert not any(task.done() for task in tasks)
    os.kill(pid, signal.SIGCONT)
    await asyncio.gather(*tasks)
    pool.close()


async def test_closing_ends_all_processes_even_busy_ones() -> None:
    pool = DecoderPool(SETTINGS)
    pid, task = await hanging(pool)
    pool.close()
    assert not exists(pid)
    with pytest.raises(InvalidInput):
        await task


async def test_a_forgotten_pool_leaves_no_process() -> None:
    pool = DecoderPool(SETTINGS)
    await pool.decode(DATA)
    pid = the_process(pool)
    del pool
    gc.collect()
    await until(lambda: not exists(pid))


async def test_a_program_that_does_not_start_is_no_ones_picture(
    pool: DecoderPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_pool, "_PROGRAM", "")
    with pytest.raises(RuntimeError, match="does not start"):
        await pool.decode(DATA)
    monkeypatch.undo()
    assert (await pool.decode(DATA)).size == (24, 16)


_PARENT = """
import asyncio, os, sys
from sdxl_bento.config import Settings
from sdxl_bento.pictures.decoder_pool import DecoderPool

async def main():
    pool = DecoderPool(Settings(decode_processes=1))
    await pool.decode(open(sys.argv[1], "rb").read())
    (process,) = pool._processes
    environ = open(f"/proc/{process.pid}/environ").read()
    print(process.pid, os.getpgid(process.pid), environ.split("\\0"), flush=True)
    os._exit(9) if sys.argv[2] == "dies" else None

asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["dies", "returns"])
async def test_no_process_outlives_its_server(end: str, tmp_path: Path) -> None:
    """Whether the server ends as it should or is killed. And no secret of the server is in it."""
    file = tmp_path / "picture"
    file.write_bytes(DATA)
    command = [sys.executable, "-c", _PARENT, str(file), end]
    env = os.environ | {"AWS_SECRET_ACCESS_KEY": "secret"}
    done = await asyncio.to_thread(
        partial(subprocess.run, command, env=env, capture_output=True, text=True, timeout=120)
    )
    assert done.returncode == (9 if end == "dies" else 0), done.stderr
    assert done.stderr == ""
    pid, group, environ = done.stdout.split(maxsplit=2)
    assert group == pid  # Ctrl+C in the server's terminal does not reach it
    assert "secret" not in environ
    await until(lambda: not exists(int(pid)) or _state(int(pid)) == "Z")


async def test_a_process_ends_itself_in_time() -> None:
    """For one that is busy when its server is killed, and so does not see the end of its input."""
    process = decoder_pool._Process(1000, seconds=0.2)
    process._jobs.write(JOB.pack(10))  # it waits for the ten bytes
    process._jobs.flush()
    await until(lambda: not process.is_alive())
    assert process.end.alive


def _state(pid: int) -> str:
    """The state of a process; "Z" if it has ended and its parent has not asked after it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"
