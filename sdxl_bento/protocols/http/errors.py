"""The HTTP status and the body of each error.

Every error has the body `{"error": ErrorDetail}`, whichever route it comes from. For the routes of
other protocols `envelopes` converts it into their format.

A cancelled request is answered with 409 and not with nginx's 499, because clients that build an
`http.HTTPStatus` from the code, such as BentoML's own, fail on an unregistered number.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any, NotRequired

from pydantic import Field
from starlette.responses import JSONResponse
from typing_extensions import TypedDict

from sdxl_bento import errors
from sdxl_bento.pictures.decode import ImageTooLarge

logger = logging.getLogger(f"bentoml.{__name__}")

MAX_MESSAGE_CHARS = 2_000
_MAX_VALUE_CHARS = 200


class MalformedBody(errors.InvalidInput):
    """The body does not match its content type: JSON that does not parse, or a broken form."""


class UnsupportedBody(errors.InvalidInput):
    """This route does not read bodies of this content type."""


class BodyTooLarge(errors.InvalidInput):
    """The body, or the picture in it, is larger than this server accepts."""


class MalformedRequest(errors.InvalidInput):
    """The address or a header is malformed or too long."""


class MethodNotAllowed(MalformedRequest):
    """No route has this method."""


class BodyTimeout(errors.InvalidInput):
    """The body was not complete in time."""


class TooManyConnections(errors.Overloaded):
    """This address has too many connections, or all callers together send too much."""


class CrossOrigin(errors.InvalidInput):
    """A page of another site has sent the request: see `cross_origin`."""


class ErrorDetail(TypedDict):
    """What went wrong, and for a wrong field its name, its value, and what it may hold."""

    type: Annotated[str, Field(examples=["invalid_input"])]
    message: Annotated[str, Field(examples=["width: got 100, allowed: a multiple of 32"])]
    field: Annotated[str | None, Field(examples=["width"])]
    value: Annotated[Any, Field(description="What the field held.")]
    allowed: Annotated[str | None, Field(examples=["a multiple of 32"])]
    request_id: str | None
    retry_after_s: NotRequired[Annotated[float, Field(description="With 429 and 503.")]]


STATUS: Mapping[type[Exception], HTTPStatus] = {
    MalformedBody: HTTPStatus.BAD_REQUEST,
    UnsupportedBody: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ImageTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    MalformedRequest: HTTPStatus.BAD_REQUEST,
    MethodNotAllowed: HTTPStatus.METHOD_NOT_ALLOWED,
    BodyTimeout: HTTPStatus.REQUEST_TIMEOUT,
    CrossOrigin: HTTPStatus.FORBIDDEN,
    errors.InvalidInput: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.NotFound: HTTPStatus.NOT_FOUND,
    errors.NotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.Overloaded: HTTPStatus.TOO_MANY_REQUESTS,
    errors.DeadlineInfeasible: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.StoreUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.RequestCancelled: HTTPStatus.CONFLICT,
    errors.EngineDead: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.SDXLError: HTTPStatus.INTERNAL_SERVER_ERROR,
    TimeoutError: HTTPStatus.GATEWAY_TIMEOUT,
    Exception: HTTPStatus.INTERNAL_SERVER_ERROR,
}


def status_of(error: Exception) -> HTTPStatus:
    """The status of an error: that of its nearest class in `STATUS`."""
    return status_of_class(type(error))


def status_of_class(error: type[Exception]) -> HTTPStatus:
    """The status of the errors of a class."""
    return next(STATUS[cls] for cls in error.__mro__ if cls in STATUS)


def error_body(error: Exception, request_id: str | None = None) -> dict[str, Any]:
    """The `{"error": …}` body of an exception."""
    return {"error": error_detail(error, request_id)}


def error_detail(error: Exception, request_id: str | None = None) -> ErrorDetail:
    """What a client is told of an exception. The text of an unexpected one stays in the log."""
    detail: ErrorDetail = {
        "type": _snake(type(error).__name__),
        "message": str(error)[:MAX_MESSAGE_CHARS],
        "field": None,
        "value": None,
        "allowed": None,
        "request_id": request_id,
    }
    if not isinstance(error, (errors.SDXLError, TimeoutError)):
        detail["type"] = "internal_error"
        detail["message"] = "an unexpected error; the server's log has it"
    elif isinstance(error, errors.InvalidInput):
        detail["field"], detail["value"] = error.field, _shown(error.value)
        detail["allowed"] = error.allowed
    elif isinstance(error, errors.NotFound):
        detail["field"], detail["value"] = error.field, _shown(error.name)
        detail["allowed"] = f"one of: {', '.join(error.available)}" if error.available else None
    elif isinstance(error, errors.Refused):
        detail["retry_after_s"] = round(error.retry_after_s, 3)
    return detail


def error_headers(error: Exception) -> dict[str, str]:
    """`Retry-After` in whole seconds, rounded up and at least one, for requests worth retrying."""
    if isinstance(error, errors.Refused):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    return {}


def error_response(error: Exception, request_id: str | None = None) -> JSONResponse:
    """The response to a call that failed with `error`."""
    headers = error_headers(error)
    if request_id is not None:
        headers["X-Request-Id"] = request_id
    return JSONResponse(error_body(error, request_id), status_of(error), headers)


def logged(error: Exception, request_id: str) -> Exception:
    """Log an error that is the server's fault, an unexpected one with its trace. Returns it."""
    if not isinstance(error, (errors.SDXLError, TimeoutError)):
        logger.error("request %s failed", request_id, exc_info=error)
    elif status_of(error) >= 500 and not isinstance(error, errors.NotReady):
        logger.warning("request %s: %s", request_id, error)
    return error


def _shown(value: object) -> object:
    """The caller's value in a form that JSON can represent, shortened."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int) and value.bit_length() <= 64:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if not isinstance(value, str):
        return errors.shown(value, _MAX_VALUE_CHARS)
    return value if len(value) <= _MAX_VALUE_CHARS else value[: _MAX_VALUE_CHARS - 1] + "…"


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
