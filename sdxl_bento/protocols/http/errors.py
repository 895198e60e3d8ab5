"""Which error is which status, and what its body says.

Every error that a client sees has this body, whichever route it came from, or what `envelopes`
makes of it for the route's protocol:

    {"error": {"type", "message", "field", "value", "allowed", "request_id"}}

409, not nginx's 499, is the answer to a cancelled request: clients which build an
`http.HTTPStatus` from the code (BentoML's own does) fail on an unregistered number.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import JSONResponse

from sdxl_bento import errors
from sdxl_bento.pictures.encode import ImageTooLarge

logger = logging.getLogger(f"bentoml.{__name__}")

MAX_MESSAGE_CHARS = 2_000
_MAX_VALUE_CHARS = 200


class MalformedBody(errors.InvalidInput):
    """The body is not what its content type says: JSON that does not parse, a broken form."""


class UnsupportedBody(errors.InvalidInput):
    """The body's content type is none that this route reads."""


class BodyTooLarge(errors.InvalidInput):
    """The body, or the picture in it, is larger than this server takes."""


class CrossOrigin(errors.InvalidInput):
    """A page of another site has sent this: see `cross_origin`."""


STATUS: Mapping[type[Exception], HTTPStatus] = {
    MalformedBody: HTTPStatus.BAD_REQUEST,
    UnsupportedBody: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    BodyTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ImageTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
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
_FIELDS: Mapping[type[errors.NotFound], str] = {
    errors.ModelNotFound: "model",
    errors.AdapterNotFound: "loras",
    errors.ImageNotFound: "image_id",
    errors.RequestNotFound: "request_id",
}


def status_of(error: Exception) -> HTTPStatus:
    """The status of an error: that of its nearest class in `STATUS`."""
    return status_of_class(type(error))


def status_of_class(error: type[Exception]) -> HTTPStatus:
    """The status of the errors of a class."""
    return next(STATUS[cls] for cls in error.__mro__ if cls in STATUS)


def error_body(error: Exception, request_id: str | None = None) -> dict[str, Any]:
    """The `{"error": …}` body of an exception. The text of an unexpected one stays in the log."""
    body: dict[str, Any] = {"type": _snake(type(error).__name__), "message": str(error)}
    if not isinstance(error, (errors.SDXLError, TimeoutError)):
        body = {"type": "internal_error", "message": "an unexpected error; the server's log has it"}
    body["message"] = body["message"][:MAX_MESSAGE_CHARS]
    body |= {"field": None, "value": None, "allowed": None}
    if isinstance(error, errors.InvalidInput):
        body |= {"field": error.field, "value": _shown(error.value), "allowed": error.allowed}
    elif isinstance(error, errors.NotFound):
        allowed = f"one of: {', '.join(error.available)}" if error.available else None
        body |= {"field": _FIELDS.get(type(error)), "value": _shown(error.name), "allowed": allowed}
    elif isinstance(error, errors.Refused):
        body["retry_after_s"] = round(error.retry_after_s, 3)
    return {"error": body | {"request_id": request_id}}


def error_headers(error: Exception) -> dict[str, str]:
    """`Retry-After` in whole seconds, at least one, for what is worth trying again."""
    if isinstance(error, errors.Refused):
        return {"Retry-After": str(max(1, round(error.retry_after_s + 0.499)))}
    return {}


def error_response(error: Exception, request_id: str | None = None) -> JSONResponse:
    """The whole answer to a call that failed with `error`."""
    headers = error_headers(error)
    if request_id is not None:
        headers["X-Request-Id"] = request_id
    return JSONResponse(error_body(error, request_id), status_of(error), headers)


def logged(error: Exception, request_id: str) -> Exception:
    """Log what is the server's fault, with its trace where it is unexpected. Returns the error."""
    if not isinstance(error, (errors.SDXLError, TimeoutError)):
        logger.error("request %s failed", request_id, exc_info=error)
    elif status_of(error) >= 500 and not isinstance(error, errors.NotReady):
        logger.warning("request %s: %s", request_id, error)
    return error


def _shown(value: object) -> object:
    """The caller's value as JSON can hold it, cut short."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _MAX_VALUE_CHARS else text[: _MAX_VALUE_CHARS - 1] + "…"


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
