"""Logs hold nothing that a caller has written."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from http import HTTPStatus

import pytest
from bentoml.exceptions import BentoMLException, ServiceUnavailable

from sdxl_bento.errors import InvalidInput, OutOfMemory
from sdxl_bento.protocols.http.logs import describe, ignore_callers_errors, keep_callers_out

BENTOML = "bentoml._internal.server.http_app"


@pytest.fixture
def kept_out() -> Iterator[None]:
    factory, logger = logging.getLogRecordFactory(), logging.getLogger(BENTOML)
    filters = list(logger.filters)
    ignore_callers_errors()
    yield
    logging.setLogRecordFactory(factory)
    logger.filters[:] = filters


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("my prompt"), False),
        (KeyError("my prompt"), False),
        (InvalidInput("prompt", "my prompt", "less"), False),
        (RecursionError("my prompt"), False),
        (OutOfMemory("my device"), True),
        (RuntimeError("my device"), True),
        (MemoryError("my device"), True),
        (OSError(28, "my device", "/images/my prompt"), True),
    ],
)
def test_messages_of_the_machine_are_told(error: BaseException, told: bool) -> None:
    text = describe(raised(error, raised(ValueError("my prompt"))))
    assert "my prompt" not in text
    assert ("my device" in text) == told
    assert text.count("Traceback") == 2
    assert f"{type(error).__qualname__}: " in text
    assert "in raised" in text


async def test_log_lines(kept_out: None, caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    keep_callers_out(loop)
    text = "my " + "prompt"
    try:
        logging.getLogger("any").error("it failed", exc_info=raised(ValueError(text)))
        lost = OSError(28, "my device", "/images/my prompt")
        logging.getLogger("any").warning("not stored: %s, %s", lost, OSError("no route"))
        loop.call_soon(lambda: int(text))
        await asyncio.sleep(0.01)
    finally:
        loop.set_exception_handler(None)
    assert "it failed" in caplog.text
    assert "not stored: [Errno 28] my device, no route" in caplog.text
    assert caplog.text.count("Traceback") == 2
    assert "ValueError" in caplog.text
    assert "my prompt" not in caplog.text


@pytest.mark.parametrize("kept", [True, False])
def test_mistakes_of_callers_are_no_events(
    kept: bool, kept_out: None, caplog: pytest.LogCaptureFixture
) -> None:
    if kept:
        loop = asyncio.new_event_loop()
        keep_callers_out(loop)
        loop.close()
    logger = logging.getLogger(BENTOML)
    for error in (
        BentoMLException("wrong", error_code=HTTPStatus.UNPROCESSABLE_ENTITY),
        ServiceUnavailable("process is overloaded"),
        BentoMLException("ours"),
        ValueError("ours"),
    ):
        logger.error("Exception on /x", exc_info=raised(error))
    assert len(caplog.records) == 2
