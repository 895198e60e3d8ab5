"""An error's body in the shape that the clients of each protocol read, chosen by the path.

Routes answer every error with the native body of `http.errors.error_body`. On the way out, the
middleware `ErrorBodies` converts it into the envelope of the route's protocol. The status stays.
The types of the envelopes are also their schemas in the OpenAPI document.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from typing_extensions import TypedDict

from sdxl_bento.protocols.http.errors import ErrorDetail

Envelope = Callable[[ErrorDetail, int], Mapping[str, Any]]


class NativeError(TypedDict):
    """An error of the native routes."""

    error: ErrorDetail


class OpenAIErrorDetail(TypedDict):
    """What went wrong, in the fields of OpenAI's errors. `code` is the native `type`."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str


class OpenAIError(TypedDict):
    """An error of OpenAI's routes."""

    error: OpenAIErrorDetail


class KServeError(TypedDict):
    """An error of KServe's routes, in V1 and in V2."""

    error: str


class Automatic1111Error(TypedDict):
    """An error of AUTOMATIC1111's routes, as its own exception handler answers."""

    error: str
    detail: str
    body: str
    errors: str


class GradioError(TypedDict):
    """An error of the page's routes, as FastAPI answers, in which Gradio is written."""

    detail: str


def native(error: ErrorDetail, status: int) -> NativeError:
    """The envelope of the native routes, and of paths that belong to no protocol."""
    return {"error": error}


def openai(error: ErrorDetail, status: int) -> OpenAIError:
    """The envelope of OpenAI's routes."""
    return {
        "error": {
            "message": error["message"],
            "type": _openai_type(status),
            "param": error.get("field"),
            "code": error["type"],
        }
    }


def automatic1111(error: ErrorDetail, status: int) -> Automatic1111Error:
    """The envelope of AUTOMATIC1111's routes."""
    message = error["message"]
    return {"error": error["type"], "detail": message, "body": "", "errors": message}


def gradio(error: ErrorDetail, status: int) -> GradioError:
    """The envelope of the page's routes."""
    return {"detail": error["message"]}


def kserve(error: ErrorDetail, status: int) -> KServeError:
    """The envelope of KServe's routes."""
    return {"error": error["message"]}


def _openai_type(
    status: int,
) -> Literal["invalid_request_error", "rate_limit_error", "server_error"]:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


# The first pattern that matches from the start of the path decides. The lists of models under /v1
# belong to OpenAI and KServe; KServe's client accepts either error.
_BY_PATH: tuple[tuple[re.Pattern[str], Envelope], ...] = (
    (re.compile(r"/v1/models/[^/]+:(predict|explain)\Z"), kserve),
    (re.compile(r"/v1/"), openai),
    (re.compile(r"/v2(/|\Z)"), kserve),
    (re.compile(r"/sdapi/"), automatic1111),
    (re.compile(r"/ui/"), gradio),
)


def envelope_of(path: str) -> Envelope:
    """The envelope of the protocol that `path` belongs to."""
    return next((envelope for pattern, envelope in _BY_PATH if pattern.match(path)), native)
