"""The bodies of the native routes, as BentoML knows them.

BentoML would validate a body before the service's method sees it, and answer with its own error.
The classes here give BentoML the schema, which its clients need, but read the request themselves
and pass an unvalidated `Call` to the method. So a wrong field is answered with this package's error
body, and one wrong item of a batch does not fail the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import bentoml
import pydantic
from bentoml.exceptions import BentoMLException
from pydantic import Field, WithJsonSchema
from starlette.requests import Request

from sdxl_bento.errors import InvalidInput, SDXLError
from sdxl_bento.params import GenerateParams
from sdxl_bento.protocols.http.bodies import (
    MAX_BATCH_BYTES,
    MAX_BATCH_ITEMS,
    MAX_JSON_BYTES,
    MAX_UPLOAD_BYTES,
    Call,
    cache_control,
    read_call,
    read_fields,
    sent_as_headers,
    with_headers,
)
from sdxl_bento.protocols.http.caller import Caller, limited, request_id_of
from sdxl_bento.protocols.http.errors import error_body, status_of
from sdxl_bento.protocols.http.translation import Rules, Translation

_BESIDE = "requests alone; each of them has its own fields"


class _Arguments(pydantic.BaseModel):
    """What BentoML passes on: it calls the method with this model's fields as keyword arguments."""

    call: Any


class _BatchArguments(pydantic.BaseModel):
    """The same for a method that takes a batch."""

    calls: list[Any]


class GenerateBody(GenerateParams, bentoml.IODescriptor):  # type: ignore[misc]
    """The flat JSON body of /generate."""

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> Any:
        """BentoML's hook: called for every request to a route with this input."""
        return _Arguments(call=await read_call(request, MAX_JSON_BYTES))


class ImageBody(GenerateParams, bentoml.IODescriptor):  # type: ignore[misc]
    """A picture and how to redraw it: a multipart form, or JSON with the picture in base64."""

    # The schema is written out because BentoML writes that of a file only if it is not optional.
    image: Annotated[
        Path | None,
        WithJsonSchema({"anyOf": [{"type": "file", "format": "image"}, {"type": "null"}]}),
    ] = Field(None, description="PNG, JPEG or WebP: a file of the form, or base64 in JSON.")
    image_id: str | None = Field(
        None, description="Instead of `image`: the X-Image-Id of a picture of this server."
    )
    id: str | None = Field(None, description="The same as `image_id`.")

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> Any:
        """BentoML's hook: called for every request to a route with this input."""
        return _Arguments(call=await read_call(request, MAX_UPLOAD_BYTES))


class BatchBody(bentoml.IODescriptor):  # type: ignore[misc]
    """`{"requests": […]}`, each item as for /generate. The service sets the `rules`."""

    rules: ClassVar[Rules] = Rules()
    requests: list[GenerateParams] = Field(min_length=1, max_length=MAX_BATCH_ITEMS)

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> Any:
        """BentoML's hook. A batch's calls share one method call, so a bad body ends here."""
        try:
            return _BatchArguments(calls=await _read_batch(request, cls.rules))
        except SDXLError as error:
            body = json.dumps(error_body(error))
            raise BentoMLException(body, error_code=status_of(error)) from None


async def _read_batch(request: Request, rules: Rules) -> list[Call]:
    request_id = request_id_of(request.headers)
    with_headers({}, request.headers)  # a wrong header fails the batch, not each item
    fields = await read_fields(limited(request, MAX_BATCH_BYTES))
    envelope = Translation(rules)
    if isinstance(fields, Mapping):
        fields = envelope.known(fields, ("requests",), allowed=_BESIDE)
    items = fields.get("requests") if isinstance(fields, Mapping) else None
    if not isinstance(items, list) or not 1 <= len(items) <= MAX_BATCH_ITEMS:
        shown = f"{len(items)} items" if isinstance(items, list) else items
        allowed = f"a list of 1 to {MAX_BATCH_ITEMS} objects, each as for /generate"
        raise InvalidInput("requests", shown, allowed)
    caller = Caller(request.receive)
    headers = request.headers
    control = cache_control(headers)
    return [
        Call(
            f"{request_id}.{index}",
            True,
            with_headers(item, headers),
            caller,
            cache=control,
            headers=sent_as_headers(item, headers),
            warnings=tuple(envelope.warnings),
        )
        for index, item in enumerate(items)
    ]
