"""The elements of OpenAPI operations: bodies, parameters, responses, errors.

Schemas are JSON Schema 2020-12, which OpenAPI 3.1 and pydantic share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sdxl_bento import errors
from sdxl_bento.params import GenerateParams
from sdxl_bento.pictures.encode import MEDIA_TYPES
from sdxl_bento.protocols.http import errors as http
from sdxl_bento.protocols.http.bodies import FIELD_HEADERS, PICTURE_FIELDS

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
BASE64: Schema = {"type": "string", "contentEncoding": "base64"}
JSON, FORM, BINARY = "application/json", "multipart/form-data", "application/octet-stream"
EVENTS = "text/event-stream"

# Errors that several operations may answer with, for `Protocol.operation`.
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


REF = "#/components/schemas/{model}"


def ref(component: str | type[Any]) -> Schema:
    """A reference to a schema of the document's components, by its name or its Python type."""
    name = component if isinstance(component, str) else component.__name__
    return {"$ref": REF.format(model=name)}


def open_object(
    properties: Mapping[str, Schema], *, required: Iterable[str] | None = None
) -> Schema:
    """An object that may have further properties. All those named here are required by default."""
    names = list(properties if required is None else required)
    return {"type": "object", "properties": dict(properties), "required": names}


def closed_object(properties: Mapping[str, Schema], *, required: Iterable[str] = ()) -> Schema:
    """An object that has no further properties. None of those named here is required by default."""
    closed: Schema = {"type": "object", "properties": dict(properties)}
    return closed | {"required": list(required), "additionalProperties": False}


def array_of(item: Schema, **bounds: int) -> Schema:
    """An array of items, such as `array_of(STRING, minItems=1)`."""
    return {"type": "array", "items": item, **bounds}


def nullable(schema: Schema) -> Schema:
    """The schema, with null as another value."""
    if "type" in schema and isinstance(schema["type"], str) and "enum" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def picture_fields(media_type: str) -> dict[str, Schema]:
    """The schemas of `PICTURE_FIELDS` in a body of this media type."""
    schemas: dict[str, Schema] = {}
    for name, (text, is_file) in PICTURE_FIELDS.items():
        # OpenAPI 3.1 has no schema for a form's file.
        schema = ({} if media_type == FORM else nullable(BASE64)) if is_file else nullable(STRING)
        schemas[name] = {**schema, "description": text}
    return schemas


def media(kind: str, schema: Schema | None = None, example: object = None) -> dict[str, Any]:
    """One entry of `content`: a media type with its schema."""
    entry: dict[str, Any] = {} if schema is None else {"schema": schema}
    return {kind: entry if example is None else {**entry, "example": example}}


def picture_content() -> dict[str, Any]:
    """The `content` of a response that is a picture."""
    # OpenAPI 3.1 has no schema for bytes: the media type says everything.
    return {kind: {} for kind in MEDIA_TYPES.values()}


def event_content(*names: str) -> dict[str, Any]:
    """The `content` of a stream of server-sent events. The schema is that of one event."""
    data = {**STRING, "contentMediaType": JSON}
    return media(EVENTS, open_object({"event": {**STRING, "enum": list(names)}, "data": data}))


def request_body(*contents: Mapping[str, Any], required: bool = True) -> dict[str, Any]:
    """A `requestBody` in one of several media types."""
    return {"required": required, "content": _merged(contents)}


def response(
    text: str, *contents: Mapping[str, Any], headers: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """One entry of `responses`."""
    entry: dict[str, Any] = {"description": text}
    if headers:
        entry["headers"] = dict(headers)
    return {**entry, "content": _merged(contents)} if contents else entry


def parameter(name: str, where: str, text: str, schema: Schema = STRING) -> dict[str, Any]:
    """A parameter in `path`, which is required, or in `query` or `header`, which is not."""
    entry = {"name": name, "in": where, "description": text, "schema": schema}
    return entry | {"required": True} if where == "path" else entry


def header(text: str, schema: Schema = STRING) -> dict[str, Any]:
    """A header of a response."""
    return {"description": text, "schema": schema}


def _merged(contents: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    return {kind: entry for content in contents for kind, entry in content.items()}


def field_header(name: str, field: str) -> dict[str, Any]:
    """A header that may take the place of a native field; its schema is the field's."""
    schema = GenerateParams.model_json_schema()["properties"][field]
    plain = schema.get("anyOf", [schema])[0]  # without null, which a header cannot be
    kept = {key: plain[key] for key in plain if key not in ("default", "description", "title")}
    return parameter(name, "header", f"`{field}`, unless the body has it.", kept)


REQUEST_ID = parameter(
    "X-Request-Id",
    "header",
    "The call's id, for `/cancel/{request_id}` and the log. If left out, the server makes one.",
    {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
)
CALL_HEADERS = [
    REQUEST_ID,
    parameter(
        "Cache-Control", "header", "`no-cache` or `no-store`, for servers that cache results."
    ),
    *(field_header(name, field) for name, field in FIELD_HEADERS.items()),
]
MODEL = parameter("model", "path", "Name or tag of a loaded model.")
REQUEST_ID_BACK = {"X-Request-Id": header("The call's id.")}
PICTURE_HEADERS = {
    **REQUEST_ID_BACK,
    "X-Seed": header("The seed that draws the picture again; of several, separated by commas."),
    "X-Image-Id": header("Its id for `/images/{image_id}`; of several, separated by commas."),
    "X-Cache": header("`hit` or `miss`, where results are cached."),
    "X-Model": header("What drew it."),
    "X-Cut-From": header("Size of the picture to redraw, if it had to be cropped or scaled."),
    "X-Warning": header("What the picture lacks of what was asked for, if anything."),
    "Server-Timing": header("Milliseconds in queue, encode, base, refine, decode, total."),
}
# What every request may be refused for, before it reaches its route.
_ANY = (http.MalformedRequest, http.TooManyConnections)
_POST = (http.CrossOrigin, http.BodyTooLarge, http.BodyTimeout)
_RETRY_AFTER = {"Retry-After": header("Seconds until a retry makes sense.", INTEGER)}


@dataclass(frozen=True, slots=True)
class Protocol:
    """A protocol of the document: `tag` is its name, `error` the type of its errors' bodies."""

    tag: str
    error: type[Any]

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
        """An operation whose response is `ok`, or an error of one of the classes `fails`."""
        may_fail = dict.fromkeys((*fails, *_ANY, *(_POST if post else ()), Exception))
        entry: dict[str, Any] = {"tags": [self.tag], "summary": text}
        if parameters:
            entry["parameters"] = list(parameters)
        if body is not None:
            entry["requestBody"] = dict(body)
        return {**entry, "responses": {"200": dict(ok), **self._failures([*may_fail])}}

    def get(self, text: str, ok: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """A path item with `operation` as its GET."""
        return {"get": self.operation(text, ok, **more)}

    def post(self, text: str, ok: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """A path item with `operation` as its POST."""
        return {"post": self.operation(text, ok, post=True, **more)}

    def _failures(self, fails: Sequence[type[Exception]]) -> dict[str, Any]:
        """The responses to errors, by the status that `http.errors.STATUS` gives them."""
        responses: dict[str, Any] = {}
        for error in sorted(fails, key=http.status_of_class):
            status = str(int(http.status_of_class(error)))
            entry = responses.setdefault(
                status, {"description": "", "content": media(JSON, ref(self.error))}
            )
            if issubclass(error, errors.Refused):
                entry["headers"] = _RETRY_AFTER
            words = _WORDS.get(error) or (error.__doc__ or "").split("\n")[0]
            entry["description"] = f"{entry['description']} {words}".strip()
        return responses


_WORDS: Mapping[type[Exception], str] = {
    Exception: "An unexpected error; the server's log has more.",
    TimeoutError: "It took longer than the server allows.",
    errors.ModelNotFound: "There is no such model.",
    errors.AdapterNotFound: "There is no such LoRA.",
    errors.ImageNotFound: "There is no such picture, or no longer.",
    errors.RequestNotFound: "No call with this id is running.",
    errors.InvalidInput: "A field is wrong.",
}
