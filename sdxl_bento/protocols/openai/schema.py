"""OpenAI's routes as the OpenAPI document describes them."""

from __future__ import annotations

from typing import Any

from sdxl_bento import errors
from sdxl_bento.protocols.http.envelopes import OpenAIError
from sdxl_bento.protocols.http.operations import (
    BOOLEAN,
    CALL_HEADERS,
    DRAWS,
    FORM,
    JSON,
    MODEL,
    PICTURE_HEADERS,
    Protocol,
    Schema,
    closed_object,
    event_content,
    media,
    picture_fields,
    ref,
    request_body,
    response,
)
from sdxl_bento.protocols.http.schemas import answer_components
from sdxl_bento.protocols.openai.answers import LoadedModel, OpenAIImages, OpenAIModels
from sdxl_bento.protocols.openai.fields import IGNORED, MAX_PARTIAL_IMAGES, RENAMED

OPENAI = Protocol("OpenAI Images", OpenAIError)
_EXAMPLE = {"prompt": "a red circle on a blue background", "size": "128x128", "n": 1, "seed": 1}
_EDIT = {"prompt": "a yellow circle", "strength": 0.6, "image_id": "U8E1P-6imjulik2hA08hQg"}
_EVENTS = """Pictures, or with `stream` events: `{kind}.partial_image` \
(`b64_json`, `partial_image_index`), `{kind}.completed` (`b64_json`, `usage`), `error`."""


def components() -> dict[str, Schema]:
    """The schemas of answers and errors."""
    return answer_components(OpenAIImages, OpenAIError, OpenAIModels, LoadedModel)


def paths(params: Schema) -> dict[str, Any]:
    """The path items. `params` is the schema of the native fields, which clients send as extras."""
    fields = _fields(params)
    call = media(JSON, closed_object(fields, required=["prompt"]), _EXAMPLE)
    edit = media(FORM, closed_object(fields | picture_fields(FORM), required=["prompt"]), _EDIT)
    return {
        "/v1/images/generations": OPENAI.post(
            "Text to image.",
            _pictures("image_generation"),
            body=request_body(call),
            fails=DRAWS,
            parameters=CALL_HEADERS,
        ),
        "/v1/images/edits": OPENAI.post(
            "Image to image: the whole picture is redrawn. `strength` says how much may change.",
            _pictures("image_edit"),
            body=request_body(edit),
            fails=(*DRAWS, errors.ImageNotFound),
            parameters=CALL_HEADERS,
        ),
        "/v1/models": OPENAI.get(
            "The loaded models. KServe's clients read `models`.",
            response("The models.", media(JSON, ref(OpenAIModels))),
        ),
        "/v1/models/{model}": OPENAI.get(
            "A loaded model. KServe's clients read `name` and `ready`.",
            response("It is loaded.", media(JSON, ref(LoadedModel))),
            parameters=[MODEL],
            fails=(errors.ModelNotFound, errors.NotReady),
        ),
    }


def _fields(params: Schema) -> dict[str, Schema]:
    """The fields of a call. All but the prompt may be null, which is the same as no value."""
    native = params["properties"]
    size = {"type": "string", "pattern": "^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"}
    own: dict[str, Schema] = {name: native[field] for name, field in RENAMED.items()}
    own |= {
        "size": size | {"description": "Pixels, or `auto` for the model's own size."},
        "output_compression": {"type": "integer", "minimum": 0, "maximum": 100},
        "response_format": {"type": "string", "enum": ["b64_json", "url"]},
        "stream": BOOLEAN,
        "partial_images": {"type": "integer", "minimum": 0, "maximum": MAX_PARTIAL_IMAGES},
    }
    ignored: dict[str, Schema] = {
        name: {"description": "Accepted and ignored."} for name in sorted(IGNORED)
    }
    rest = {name: each for name, each in native.items() if name not in RENAMED.values()}
    fields = {name: _with_null(each) for name, each in (rest | own).items()}
    return fields | {"prompt": native["prompt"]} | ignored


def _with_null(schema: Schema) -> Schema:
    if "anyOf" in schema:
        return schema
    kept: Schema = {name: schema[name] for name in ("description", "default") if name in schema}
    rest = {name: each for name, each in schema.items() if name not in kept}
    return {"anyOf": [rest, {"type": "null"}], **kept}


def _pictures(kind: str) -> dict[str, Any]:
    """The response to a call whose events have names that begin with `kind`."""
    return response(
        _EVENTS.format(kind=kind),
        media(JSON, ref(OpenAIImages)),
        event_content(f"{kind}.partial_image", f"{kind}.completed", "error"),
        headers=PICTURE_HEADERS,
    )
