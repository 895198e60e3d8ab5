"""OpenAI's routes."""

from __future__ import annotations

from typing import Any

from sdxl_bento import errors
from sdxl_bento.protocols.http.operations import (
    BASE64,
    CALL_HEADERS,
    DRAWS,
    FLAG,
    FORM,
    JSON,
    MODEL,
    PICTURE_HEADERS,
    TEXT,
    WHOLE,
    Protocol,
    Schema,
    answer,
    body,
    events,
    listed,
    media,
    nullable,
    only,
    some,
)
from sdxl_bento.protocols.http.schemas import OPENAI_ERROR
from sdxl_bento.protocols.openai.fields import IGNORED, MAX_PARTIAL_IMAGES, RENAMED

OPENAI = Protocol("OpenAI Images", OPENAI_ERROR)
_EXAMPLE = {"prompt": "a red circle on a blue background", "size": "128x128", "n": 1, "seed": 1}
_EDIT = {"prompt": "a yellow circle", "strength": 0.6, "image_id": "U8E1P-6imjulik2hA08hQg"}
_EVENTS = """Whole pictures, or with `stream` events: `{kind}.partial_image` \
(`b64_json`, `partial_image_index`), `{kind}.completed` (`b64_json`, `usage`), `error`."""


def paths(params: Schema) -> dict[str, Any]:
    """`params` is the schema of the native fields, which are taken as an extra body."""
    fields = _fields(params)
    image = {
        "image": {"description": "One PNG, JPEG or WebP."},
        "image_id": {**nullable(TEXT), "description": "In its place, a picture of this server."},
    }
    drawn = media(JSON, only(fields, required=["prompt"]), _EXAMPLE)
    return {
        "/v1/images/generations": OPENAI.post(
            "Text to image.",
            _answer("image_generation"),
            body=body(drawn),
            fails=DRAWS,
            parameters=CALL_HEADERS,
        ),
        "/v1/images/edits": OPENAI.post(
            "Image to image: the whole picture is redrawn, as far as `strength` says.",
            _answer("image_edit"),
            body=body(media(FORM, only(fields | image, required=["prompt"]), _EDIT)),
            fails=(*DRAWS, errors.ImageNotFound),
            parameters=CALL_HEADERS,
        ),
        "/v1/models": OPENAI.get(
            "The loaded models; KServe's clients read `models`.",
            answer("The models.", media(JSON, _models())),
        ),
        "/v1/models/{model}": OPENAI.get(
            "A loaded model; KServe's clients read `name` and `ready`.",
            answer("It is loaded.", media(JSON, some({**_MODEL, "name": TEXT, "ready": FLAG}))),
            parameters=[MODEL],
            fails=(errors.ModelNotFound, errors.NotReady),
        ),
    }


def _fields(params: Schema) -> dict[str, Schema]:
    """Null is the same as nothing, for each of them."""
    native = params["properties"]
    size = {"type": "string", "pattern": "^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"}
    own: dict[str, Schema] = {
        "size": size | {"description": "Pixels, or `auto`: the model's own."},
        "output_compression": {"type": "integer", "minimum": 0, "maximum": 100},
        "response_format": {"type": "string", "enum": ["b64_json", "url"]},
        "stream": FLAG,
        "partial_images": {"type": "integer", "minimum": 0, "maximum": MAX_PARTIAL_IMAGES},
        "n": native["num_images"],
    }
    ignored: dict[str, Schema] = {
        name: {"description": "Taken and ignored."} for name in sorted(IGNORED)
    }
    rest = {name: each for name, each in native.items() if name not in RENAMED.values()}
    taken = {name: _with_null(each) for name, each in (rest | own).items()}
    return taken | {"prompt": native["prompt"]} | ignored


def _with_null(schema: Schema) -> Schema:
    if "anyOf" in schema:
        return schema
    about: Schema = {name: schema[name] for name in ("description", "default") if name in schema}
    rest = {name: each for name, each in schema.items() if name not in about}
    return {"anyOf": [rest, {"type": "null"}], **about}


def _answer(kind: str) -> dict[str, Any]:
    picture = some({"b64_json": BASE64, "url": TEXT, "seed": WHOLE, "image_id": nullable(TEXT)})
    picture["required"] = ["seed", "image_id"]
    details = some({"text_tokens": WHOLE, "image_tokens": WHOLE})
    usage = some(
        {
            "input_tokens": WHOLE,
            "input_tokens_details": details,
            "output_tokens": WHOLE,
            "output_tokens_details": details,
            "total_tokens": WHOLE,
        }
    )
    whole = some(
        {
            "created": WHOLE,
            "background": TEXT,
            "output_format": TEXT,
            "size": TEXT,
            "data": listed(picture, minItems=1),
            "usage": usage,
        }
    )
    text = _EVENTS.format(kind=kind)
    return answer(
        text,
        media(JSON, whole),
        events(f"{kind}.partial_image", f"{kind}.completed", "error"),
        headers=PICTURE_HEADERS,
    )


_MODEL = {"id": TEXT, "object": TEXT, "created": WHOLE, "owned_by": TEXT}


def _models() -> Schema:
    return some({"object": TEXT, "data": listed(some(_MODEL)), "models": listed(TEXT)})
