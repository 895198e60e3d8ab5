"""An error's body in the shape that the clients of each protocol read, chosen by the path.

Routes answer every error with the native body of `http.error_body`; on its way out
`http.ErrorBodies` puts it into the envelope of the route's protocol. The status stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

Envelope = Callable[[Mapping[str, Any], int], dict[str, Any]]


def native(error: Mapping[str, Any], status: int) -> dict[str, Any]:
    """`{"error": {"type", "message", "field", "value", "allowed", "request_id"}}`."""
    return {"error": dict(error)}


def openai(error: Mapping[str, Any], status: int) -> dict[str, Any]:
    """`{"error": {"message", "type", "param", "code"}}`; `code` is our name of the error."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": error["message"],
            "type": "rate_limit_error" if status == 429 else kind,
            "param": error.get("field"),
            "code": error["type"],
        }
    }


def automatic1111(error: Mapping[str, Any], status: int) -> dict[str, Any]:
    """`{"error", "detail", "body", "errors"}`, as its own handler of exceptions answers."""
    message = error["message"]
    return {"error": error["type"], "detail": message, "body": "", "errors": message}


def gradio(error: Mapping[str, Any], status: int) -> dict[str, Any]:
    """`{"detail": "message"}`, as FastAPI answers, in which Gradio is written."""
    return {"detail": error["message"]}


def kserve(error: Mapping[str, Any], status: int) -> dict[str, Any]:
    """`{"error": "message"}`, in V1 and in V2."""
    return {"error": error["message"]}


# The first that matches from the start of the path. The lists of models under /v1 are OpenAI's as
# much as KServe's, whose client takes either error.
_BY_PATH: tuple[tuple[re.Pattern[str], Envelope], ...] = (
    (re.compile(r"/v1/models/[^/]+:(predict|explain)\Z"), kserve),
    (re.compile(r"/v1/"), openai),
    (re.compile(r"/v2(/|\Z)"), kserve),
    (re.compile(r"/sdapi/"), automatic1111),
    (re.compile(r"/ui/"), gradio),
)


def envelope_of(path: str) -> Envelope:
    """The envelope of the protocol that `path` belongs to."""
    return next((shape for pattern, shape in _BY_PATH if pattern.match(path)), native)
