"""Logs that hold nothing a caller has written.

The messages of many exceptions quote the value that was wrong, so a traceback may contain a prompt.
In a server, the messages of exceptions are therefore left out, except of those that speak of the
machine. `SDXL_LOG_ERROR_MESSAGES` keeps them all.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Iterator
from typing import Any

from bentoml.exceptions import ServiceUnavailable

from sdxl_bento.errors import InvalidInput, NotFound, SDXLError

logger = logging.getLogger(f"bentoml.{__name__}")

# Errors of the machine, the device and this package, and those among them that quote callers.
_TOLD = (SDXLError, OSError, MemoryError, RuntimeError, ImportError)
_WITHHELD = (InvalidInput, NotFound, RecursionError, NotImplementedError)
_MESSAGE = "(its message is withheld; SDXL_LOG_ERROR_MESSAGES shows it)"
# BentoML logs the exceptions of its routes here.
_BENTOML = "bentoml._internal.server.http_app"


def keep_callers_out(loop: asyncio.AbstractEventLoop) -> None:
    """Keep what callers write out of all logs of this process, and of the loop's own errors."""
    make_record = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        if record.exc_info and record.exc_info[1] is not None:
            record.exc_text = describe(record.exc_info[1])
            record.__dict__["error_code"] = getattr(record.exc_info[1], "error_code", None)
            record.exc_info = None
        if isinstance(record.args, tuple):
            record.args = tuple(map(_without_path, record.args))
        return record

    logging.setLogRecordFactory(factory)
    loop.set_exception_handler(_report)


def ignore_callers_errors() -> None:
    """Log nothing for BentoML's answers to mistakes of callers, and to more calls than it takes."""
    logging.getLogger(_BENTOML).addFilter(_is_event)


def describe(error: BaseException) -> str:
    """The traceback of an exception and of its causes, without what may quote a caller."""
    return "\n".join(_lines(error, set()))


def _lines(error: BaseException, seen: set[int]) -> Iterator[str]:
    seen.add(id(error))
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and id(cause) not in seen:
        yield from _lines(cause, seen)
        yield ""
    yield "Traceback (most recent call last):"
    yield from (line.rstrip("\n") for line in traceback.format_tb(error.__traceback__))
    yield f"{type(error).__module__}.{type(error).__qualname__}: {_message(error)}"


def _message(error: BaseException) -> str:
    told = isinstance(error, _TOLD) and not isinstance(error, _WITHHELD)
    return str(_without_path(error)) if told else _MESSAGE


def _without_path(argument: object) -> object:
    """An error of the operating system without the path, which may hold the id of a picture."""
    if isinstance(argument, OSError) and argument.filename is not None:
        return f"[Errno {argument.errno}] {argument.strerror}"
    return argument


def _is_event(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    code = getattr(record, "error_code", getattr(error, "error_code", None))
    return code is None or (code >= 500 and code != ServiceUnavailable.error_code)


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """asyncio's own handler would write the `repr` of the exception into the line itself."""
    error = context.get("exception")
    logger.error("%s", str(context.get("message")).partition("\n")[0], exc_info=error)
