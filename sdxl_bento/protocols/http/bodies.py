"""From an HTTP request to a `Call`, whose fields are decoded but not validated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pydantic_core
from starlette.requests import Request

from sdxl_bento.errors import InvalidInput, SDXLError
from sdxl_bento.params import GenerateParams
from sdxl_bento.pictures.cache import CacheControl
from sdxl_bento.protocols.http.caller import Caller, limited, request_id_of, whole_body
from sdxl_bento.protocols.http.errors import MalformedBody, UnsupportedBody
from sdxl_bento.protocols.http.forms import read_multipart, read_urlencoded
from sdxl_bento.protocols.http.json_bounds import check_json
from sdxl_bento.protocols.http.off_loop import off_loop
from sdxl_bento.protocols.http.translation import Sent, Translation
from sdxl_bento.protocols.http.validation import parse_params
from sdxl_bento.serving.results import CallWarning

MAX_JSON_BYTES = 1 << 20
MAX_BATCH_BYTES = 16 << 20
MAX_UPLOAD_BYTES = 32 << 20
MAX_BATCH_ITEMS = 256
# Native fields that a call may have as headers instead, which a proxy can set for all calls.
FIELD_HEADERS: Mapping[str, str] = {"X-SLO-MS": "slo_ms", "X-Priority": "priority"}
# Fields of calls that redraw a picture, beside those of `GenerateParams`: each with what it holds,
# and whether that is a file, which forms carry as it is and JSON in base64.
PICTURE_FIELDS: Mapping[str, tuple[str, bool]] = {
    "image": ("One PNG, JPEG or WebP.", True),
    "image_id": ("A picture of this server, instead of `image`.", False),
}


@dataclass(frozen=True, slots=True)
class Call:
    """One HTTP call as it arrived, with what it asks for in native fields.

    Attributes:
        request_id: the caller's, or one that the server made.
        wants_json: the caller prefers JSON to a picture.
        fields: the native fields, decoded and not validated.
        caller: tells when the client has disconnected.
        error: why the fields could not be read, or what is already known to be wrong with them.
        protocol: the adapter's name, for metrics.
        cache: what the caller allows the result cache to do.
        validated: the parameters, if the adapter had to validate them to say where an error is.
        headers: the native fields that were sent as headers.
        translation: what the adapter noted while it translated the fields into native ones. None:
            they are as the caller has sent them.
        warnings: about the body that the call was in, if it had several.
    """

    request_id: str
    wants_json: bool
    fields: object
    caller: Caller
    error: SDXLError | None = None
    protocol: str = "native"
    cache: CacheControl = field(default_factory=CacheControl)
    validated: GenerateParams | None = None
    headers: Mapping[str, Sent] = field(default_factory=dict)
    translation: Translation | None = None
    warnings: tuple[CallWarning, ...] = ()

    @property
    def model(self) -> object:
        """The model that the caller names, not validated. None stands for the default model."""
        if self.validated is not None:
            return self.validated.model
        return self.fields.get("model") if isinstance(self.fields, Mapping) else None


async def read_call(request: Request, max_bytes: int) -> Call:
    """Read a request. It never raises an error of this package: that becomes the call's `error`."""
    error: SDXLError | None = None
    fields: object = None
    request_id = "invalid"
    headers: Mapping[str, Sent] = {}
    try:
        request_id = request_id_of(request.headers)
        body = await read_fields(limited(request, max_bytes))
        fields = with_headers(body, request.headers)
        headers = sent_as_headers(body, request.headers)
    except SDXLError as exc:
        error = exc
    wants_json = "application/json" in request.headers.get("accept", "")
    control = cache_control(request.headers)
    caller = Caller(request.receive)
    return Call(request_id, wants_json, fields, caller, error, cache=control, headers=headers)


async def read_fields(request: Request) -> object:
    """Decode a body by its content type: JSON or a form. Raises InvalidInput or a subclass."""
    refuse_compressed(request.headers)
    kind = request.headers.get("content-type", "application/json").split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await read_multipart(request, MAX_JSON_BYTES)
    if kind not in ("application/json", "application/x-www-form-urlencoded"):
        raise UnsupportedBody("Content-Type", kind, "application/json or multipart/form-data")
    body = (await whole_body(request)).strip()
    # `curl -d` labels JSON as a form unless told otherwise. No form begins with a brace.
    is_json = kind == "application/json" or body.startswith(b"{")
    return await off_loop(len(body), read_json if is_json else read_urlencoded, body)


def refuse_compressed(headers: Mapping[str, str]) -> None:
    """Raises UnsupportedBody for a compressed body, which could grow when it is unpacked."""
    coding = headers.get("content-encoding", "").strip()
    if coding.lower() not in ("", "identity"):
        raise UnsupportedBody("Content-Encoding", coding, "identity: nothing compressed")


def cache_control(headers: Mapping[str, str]) -> CacheControl:
    """What a request's `Cache-Control` allows the result cache to do (RFC 9111, 5.2.1)."""
    listed = headers.get("cache-control", "").lower().split(",")
    directives = {each.strip().replace(" ", "") for each in listed}
    return CacheControl(
        read=directives.isdisjoint({"no-cache", "max-age=0"}),
        write="no-store" not in directives,
    )


def read_json(body: bytes) -> object:
    """Decode a body, `{}` if it is empty. Raises MalformedBody, or InvalidInput for a number.

    Its bounds are those of `json_bounds`.
    """
    check_json(body)
    try:
        return pydantic_core.from_json(body or b"{}", allow_inf_nan=False)
    except ValueError as error:
        shown = body[:80].decode("utf-8", "replace")
        raise MalformedBody("body", shown, f"JSON; this is wrong: {error}") from None


def with_headers(fields: object, headers: Mapping[str, str]) -> object:
    """Add the fields that the caller sent as headers. A field in the body takes precedence.

    `headers` are looked up in lower case. Raises InvalidInput for a wrong header, even if the body
    has the field.
    """
    sent = {
        field: headers[header.lower()]
        for header, field in FIELD_HEADERS.items()
        if header.lower() in headers
    }
    if sent:
        try:
            parse_params({"prompt": "", **sent})
        except InvalidInput as error:
            raise Translation(sent=sent_as_headers({}, headers)).told(error) from None
    return {**sent, **fields} if isinstance(fields, Mapping) else fields


def sent_as_headers(fields: object, headers: Mapping[str, str]) -> dict[str, Sent]:
    """The native fields for which `with_headers` takes a header: native field → the header."""
    if not isinstance(fields, Mapping):
        return {}
    return {
        field: Sent(field, headers[header.lower()], header=header)
        for header, field in FIELD_HEADERS.items()
        if header.lower() in headers and field not in fields
    }
