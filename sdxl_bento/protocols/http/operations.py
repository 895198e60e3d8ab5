"""What OpenAPI operations are put together from: bodies, parameters, answers, failures.

Schemas are JSON Schema 2020-12, which OpenAPI 3.1 and pydantic share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdxl_bento import errors
from sdxl_bento.pictures.encode import MEDIA_TYPES
from sdxl_bento.protocols.http import errors as http

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
FLAG: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
BASE64: Schema = {"type": "string", "contentEncoding": "base64"}
JSON, FORM, BINARY = "application/json", "multipart/form-data", "application/octet-stream"
EVENTS = "text/event-stream"

# What may go wrong, for `Protocol.operation`.
READS = (http.MalformedBody, http.UnsupportedBody, http.BodyTooLarge, errors.InvalidInput)
DRAWS = (
    *READS,
    errors.ModelNotFound,
    errors.AdapterNotFound,
    errors.RequestCancelled,
    errors.Overloaded,
    errors.NotReady,
    errors.DeadlineInfeasible,
    errors.EngineDead,
    TimeoutError,
)


def ref(name: str) -> Schema:
    """A schema of the document's components."""
    return {"$ref": f"#/components/schemas/{name}"}


def some(properties: Mapping[str, Schema], *, required: Iterable[str] | None = None) -> Schema:
    """An object with these properties; all of them are there unless `required` says which."""
    needed = list(properties if required is None else required)
    return {"type": "object", "properties": dict(properties), "required": needed}


def only(properties: Mapping[str, Schema], *, required: Iterable[str] = ()) -> Schema:
    """An object that has no other properties. None of them has to be there unless named."""
    closed: Schema = {"type": "object", "properties": dict(properties)}
    return closed | {"required": list(required), "additionalProperties": False}


def listed(item: Schema, **bounds: int) -> Schema:
    """A list of items, such as `listed(TEXT, minItems=1)`."""
    return {"type": "array", "items": item, **bounds}


def nullable(schema: Schema) -> Schema:
    """The same, or null."""
    if "type" in schema and isinstance(schema["type"], str) and "enum" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def media(kind: str, schema: Schema | None = None, example: object = None) -> dict[str, Any]:
    """One entry of `content`."""
    about: dict[str, Any] = {} if schema is None else {"schema": schema}
    return {kind: about if example is None else {**about, "example": example}}


def pictures() -> dict[str, Any]:
    """The `content` of an answer that is a picture."""
    # OpenAPI 3.1 has no schema for bytes: the media type says it all.
    return {kind: {} for kind in MEDIA_TYPES.values()}


def events(*names: str) -> dict[str, Any]:
    """The `content` of a stream of server-sent events; the schema is that of one event."""
    data = {**TEXT, "contentMediaType": JSON}
    return media(EVENTS, some({"event": {**TEXT, "enum": list(names)}, "data": data}))


def body(*contents: Mapping[str, Any], required: bool = True) -> dict[str, Any]:
    """A `requestBody` in one of several media types."""
    merged = {kind: about for content in contents for kind, about in content.items()}
    return {"required": required, "content": merged}


def answer(
    text: str, *contents: Mapping[str, Any], headers: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """One entry of `responses`."""
    described: dict[str, Any] = {"description": text}
    if headers:
        described["headers"] = dict(headers)
    merged = {kind: about for content in contents for kind, about in content.items()}
    return {**described, "content": merged} if merged else described


def parameter(name: str, where: str, text: str, schema: Schema = TEXT) -> dict[str, Any]:
    """A parameter in `path`, which is required, or in `query` or `header`, which is not."""
    about = {"name": name, "in": where, "description": text, "schema": schema}
    return about | {"required": True} if where == "path" else about


def header(text: str, schema: Schema = TEXT) -> dict[str, Any]:
    """A header of an answer."""
    return {"description": text, "schema": schema}


REQUEST_ID = parameter(
    "X-Request-Id",
    "header",
    "The call's id, for `/cancel/{request_id}` and the log; made up if left out.",
    {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
)
CALL_HEADERS = [
    REQUEST_ID,
    parameter("Cache-Control", "header", "`no-cache`, `no-store`: where results are cached."),
    parameter(
        "X-SLO-MS",
        "header",
        "`slo_ms`, unless the body has it.",
        {"type": "number", "exclusiveMinimum": 0, "maximum": 3_600_000},
    ),
    parameter(
        "X-Priority",
        "header",
        "`priority`, unless the body has it.",
        {"type": "integer", "minimum": -10, "maximum": 10},
    ),
]
MODEL = parameter("model", "path", "Name or tag of a loaded model.")
REQUEST_ID_BACK = {"X-Request-Id": header("The call's id.")}
PICTURE_HEADERS = {
    **REQUEST_ID_BACK,
    "X-Seed": header("The seed that draws the picture again; of several, separated by commas."),
    "X-Image-Id": header("Its id for `/images/{image_id}`; of several, separated by commas."),
    "X-Cache": header("`hit` or `miss`, where results are cached."),
    "X-Model": header("What drew it."),
    "Server-Timing": header("Milliseconds in queue, encode, base, refine, decode, total."),
}
_RETRY_AFTER = {"Retry-After": header("Seconds until a retry makes sense.", WHOLE)}


@dataclass(frozen=True, slots=True)
class Protocol:
    """A protocol of the document: `tag` is its name, `error` the schema of its errors."""

    tag: str
    error: str

    def operation(
        self,
        text: str,
        ok: Mapping[str, Any],
        *,
        fails: Sequence[type[Exception]] = (),
        parameters: Sequence[Mapping[str, Any]] = (),
        body: Mapping[str, Any] | None = None,
        post: bool = False,
    ) -> dict[str, Any]:
        """An operation that answers 200 with `ok`, or as `fails` has it."""
        may_fail = (*fails, *((http.CrossOrigin,) if post else ()), Exception)
        about: dict[str, Any] = {"tags": [self.tag], "summary": text}
        if parameters:
            about["parameters"] = list(parameters)
        if body is not None:
            about["requestBody"] = dict(body)
        return {**about, "responses": {"200": dict(ok), **self._failures(may_fail)}}

    def get(self, text: str, ok: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """A path item with `operation` as its GET."""
        return {"get": self.operation(text, ok, **more)}

    def post(self, text: str, ok: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """A path item with `operation` as its POST."""
        return {"post": self.operation(text, ok, post=True, **more)}

    def _failures(self, fails: Sequence[type[Exception]]) -> dict[str, Any]:
        """The responses to errors, by the status that the one table gives them."""
        found: dict[str, Any] = {}
        for error in sorted(fails, key=http.status_of_class):
            status = str(int(http.status_of_class(error)))
            response = found.setdefault(
                status, {"description": "", "content": media(JSON, ref(self.error))}
            )
            if issubclass(error, errors.Refused):
                response["headers"] = _RETRY_AFTER
            words = _WORDS.get(error) or (error.__doc__ or "").split("\n")[0]
            response["description"] = f"{response['description']} {words}".strip()
        return found


_WORDS: Mapping[type[Exception], str] = {
    Exception: "An error of the server's; its log has more.",
    TimeoutError: "It took longer than the server allows.",
    errors.ModelNotFound: "No such model.",
    errors.AdapterNotFound: "No such LoRA.",
    errors.ImageNotFound: "No such picture, or no longer.",
    errors.RequestNotFound: "No call of that id is at work.",
    errors.InvalidInput: "A field is wrong.",
}
