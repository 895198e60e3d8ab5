"""Reading the bodies of the native routes.

BentoML validates a body before our method sees it, and answers in its own words. The classes here
give BentoML the schema, which its clients and the OpenAPI page need, but read the request
themselves and hand the method an unvalidated `Call`: so a bad field can be answered with our error
body, and one bad item of a batch does not fail the others.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import bentoml
import pydantic
import pydantic_core
from bentoml.exceptions import BentoMLException
from pydantic import Field, WithJsonSchema
from starlette.requests import Request

from sdxl_bento.errors import InvalidInput, SDXLError
from sdxl_bento.params import GenerateParams
from sdxl_bento.pictures.cache import CacheControl
from sdxl_bento.protocols.http.errors import (
    BodyTooLarge,
    Caller,
    MalformedBody,
    UnsupportedBody,
    error_body,
    limited,
    request_id_of,
    status_of,
)
from sdxl_bento.protocols.http.forms import read_multipart, read_urlencoded
from sdxl_bento.protocols.http.validation import parse_params

MAX_JSON_BYTES = 1 << 20
MAX_BATCH_BYTES = 16 << 20
MAX_UPLOAD_BYTES = 32 << 20
MAX_BATCH_ITEMS = 256


@dataclass(frozen=True, slots=True)
class Call:
    """One call as it arrived. `fields` is decoded, not validated; `error` says why it is not.

    An adapter of another protocol makes one, too: of the native fields that it has translated to.
    """

    request_id: str
    wants_json: bool
    fields: object
    caller: Caller
    error: SDXLError | None = None
    protocol: str = "native"
    cache: CacheControl = field(default_factory=CacheControl)

    def params(self) -> GenerateParams:
        """The validated parameters. Raises InvalidInput."""
        if self.error is not None:
            raise self.error
        return parse_params(self.fields)


class _Handed(pydantic.BaseModel):
    """What BentoML passes on: it calls the method with this model's fields as keywords."""

    call: Any


class _HandedBatch(pydantic.BaseModel):
    calls: list[Any]


class GenerateBody(GenerateParams, bentoml.IODescriptor):  # type: ignore[misc]
    """The flat JSON body of /generate."""

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> Any:
        """BentoML's hook: called for every request to a route with this input."""
        return _Handed(call=await read_call(request, MAX_JSON_BYTES))


class ImageBody(GenerateParams, bentoml.IODescriptor):  # type: ignore[misc]
    """A picture and how to redraw it: a multipart form, or JSON with the picture in base64."""

    # The schema is written out: BentoML writes that of a file only where it is not optional.
    image: Annotated[
        Path | None,
        WithJsonSchema({"anyOf": [{"type": "file", "format": "image"}, {"type": "null"}]}),
    ] = Field(None, description="PNG, JPEG or WebP: a file of the form, or base64 in JSON.")
    image_id: str | None = Field(
        None, description="In its place, a picture of this server: the X-Image-Id it came with."
    )
    id: str | None = Field(None, description="The same as `image_id`.")

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> Any:
        """BentoML's hook: called for every request to a route with this input."""
        return _Handed(call=await read_call(request, MAX_UPLOAD_BYTES))


class BatchBody(bentoml.IODescriptor):  # type: ignore[misc]
    """`{"requests": […]}`, each item as for /generate."""

    requests: list[GenerateParams] = Field(min_length=1, max_length=MAX_BATCH_ITEMS)

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> Any:
        """BentoML's hook. A batch's calls share one method call, so a bad body ends here."""
        try:
            return _HandedBatch(calls=await _read_batch(request))
        except SDXLError as error:
            body = json.dumps(error_body(error))
            raise BentoMLException(body, error_code=status_of(error)) from None


async def read_call(request: Request, max_bytes: int) -> Call:
    """Read a request of a native route. It never raises: what is wrong is the call's `error`."""
    error: SDXLError | None = None
    fields: object = None
    request_id = "invalid"
    try:
        request_id = request_id_of(request.headers)
        fields = with_headers(await _read_fields(limited(request, max_bytes)), request.headers)
    except SDXLError as exc:
        error = exc
    wants_json = "application/json" in request.headers.get("accept", "")
    control = CacheControl.of(request.headers)
    return Call(request_id, wants_json, fields, Caller(request.receive), error, cache=control)


async def _read_batch(request: Request) -> list[Call]:
    request_id = request_id_of(request.headers)
    with_headers({}, request.headers)  # a wrong one is no item's own
    fields = await _read_fields(limited(request, MAX_BATCH_BYTES))
    items = fields.get("requests") if isinstance(fields, Mapping) else None
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_BATCH_ITEMS:
        shown = f"{len(items)} items" if isinstance(items, list) else items
        allowed = f"a list of 1 to {MAX_BATCH_ITEMS} objects, each as for /generate"
        raise InvalidInput("requests", shown, allowed)
    caller = Caller(request.receive)
    headers = request.headers
    control = CacheControl.of(headers)
    return [
        Call(f"{request_id}.{index}", True, with_headers(item, headers), caller, cache=control)
        for index, item in enumerate(items)
    ]


async def _read_fields(request: Request) -> object:
    kind = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await read_multipart(request, MAX_JSON_BYTES)
    if kind not in ("application/json", "application/x-www-form-urlencoded"):
        raise UnsupportedBody("Content-Type", kind, "application/json or multipart/form-data")
    body = (await request.body()).strip()
    # `curl -d` calls JSON a form unless it is told otherwise, and no form begins like this.
    if kind == "application/json" or body.startswith(b"{"):
        return read_json(body)
    return read_urlencoded(body)


def read_json(body: bytes) -> object:
    """Decode a body, `{}` if it is empty. Raises MalformedBody."""
    try:
        return pydantic_core.from_json(body or b"{}", allow_inf_nan=False)
    except ValueError as error:
        shown = body[:80].decode("utf-8", "replace")
        raise MalformedBody("body", shown, f"JSON; this is wrong: {error}") from None


def with_headers(fields: object, headers: Mapping[str, str]) -> object:
    """Fields that may come as headers instead. A field in the body wins.

    Raises InvalidInput for a wrong header, also where the body has the field.
    """
    given = {
        field: headers[header]
        for header, field in (("x-slo-ms", "slo_ms"), ("x-priority", "priority"))
        if header in headers
    }
    if given:
        parse_params({"prompt": "", **given})
    return {**given, **fields} if isinstance(fields, Mapping) else fields


def picture_bytes(value: object) -> bytes:
    """The field `image`: a form's file as it is, or base64 text. Raises InvalidInput."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        if len(value) > MAX_UPLOAD_BYTES:
            raise BodyTooLarge("image", f"{len(value)} characters", f"at most {MAX_UPLOAD_BYTES}")
        data = value.partition(",")[2] if value.startswith("data:image/") else value
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            pass
    raise InvalidInput("image", value, "a PNG, JPEG or WebP file, or one in base64; no addresses")
