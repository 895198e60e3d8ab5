"""AUTOMATIC1111's routes."""

from __future__ import annotations

from typing import Any

from sdxl_bento import errors
from sdxl_bento.protocols.a1111 import fields as a1111_fields
from sdxl_bento.protocols.http.operations import (
    BASE64,
    CALL_HEADERS,
    DRAWS,
    FLAG,
    JSON,
    NUMBER,
    OBJECT,
    PICTURE_HEADERS,
    READS,
    TEXT,
    Protocol,
    Schema,
    answer,
    body,
    listed,
    media,
    nullable,
    only,
    parameter,
    some,
)
from sdxl_bento.protocols.http.schemas import A1111_ERROR
from sdxl_bento.sampler_names import A1111_SAMPLERS, A1111_SCHEDULERS

A1111 = Protocol("AUTOMATIC1111", A1111_ERROR)
_EXAMPLE = {"prompt": "a red circle <lora:striped:0.8>", "seed": 1, "steps": 20, "width": 128}
_BLACK = (  # a PNG of 64x64
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQAAAACCEkxzAAAAD0lEQVR42mNgGAWjgHwAAAJAAAHgTR1EAAAAAElFTkSuQmCC"
)
_REDRAW = {"prompt": "a red circle", "init_images": [_BLACK], "denoising_strength": 0.6}
_COUNT: Schema = {"type": "integer", "minimum": 1}
_OPTIONS = {"sd_model_checkpoint": TEXT}


def paths(params: Schema) -> dict[str, Any]:
    """`params` is the schema of the native fields."""
    return {f"/sdapi/v1/{name}": item for name, item in (_calls(params) | _asks()).items()}


def _calls(params: Schema) -> dict[str, Any]:
    fields = _fields(params["properties"])
    strength = params["properties"]["strength"]
    picture = {
        "init_images": listed(BASE64, minItems=1, maxItems=1),
        "denoising_strength": nullable({**strength, "default": a1111_fields.DENOISING_STRENGTH}),
    }
    drawn = some(
        {
            "images": listed(BASE64),
            "parameters": {**OBJECT, "description": "The call's fields."},
            "info": {**TEXT, "description": "JSON: `seed`, `all_seeds`, `infotexts`, …"},
        }
    )
    call = {"fails": DRAWS, "parameters": CALL_HEADERS}
    ok = answer("The pictures.", media(JSON, drawn), headers=PICTURE_HEADERS)
    return {
        "txt2img": A1111.post(
            "Text to image.",
            ok,
            body=body(media(JSON, _body(fields), _EXAMPLE), required=False),
            **call,
        ),
        "img2img": A1111.post(
            "Image to image.",
            ok,
            body=body(media(JSON, _body(fields | picture, "init_images"), _REDRAW)),
            **call,
        ),
        "interrupt": A1111.post(
            "End the call at work for longest.",
            answer("It ends, if there is one.", media(JSON, OBJECT)),
        ),
        "options": {
            **A1111.get(
                "The model of calls that name none.",
                answer("It is this.", media(JSON, some(_OPTIONS))),
            ),
            **A1111.post(
                "Choose that model.",
                answer("It is chosen.", media(JSON, {"type": "null"})),
                body=body(media(JSON, only(_OPTIONS, required=["sd_model_checkpoint"]))),
                fails=(*READS, errors.ModelNotFound, errors.NotReady),
            ),
        },
    }


def _fields(native: Schema) -> dict[str, Schema]:
    """Those that mean something, and those that may only ask for nothing."""
    samplers, schedulers = ", ".join(A1111_SAMPLERS), ", ".join(A1111_SCHEDULERS)
    own: dict[str, Schema] = {
        "prompt": {**TEXT, "description": "With `<lora:name:weight>`."},
        "negative_prompt": TEXT,
        "seed": {"type": "integer", "minimum": -1, "description": "-1: a random one."},
        "batch_size": _COUNT,
        "n_iter": _COUNT,
        "sampler_name": {
            **TEXT,
            "description": f"One of {samplers}, in any case.",
        },
        "sampler_index": {**TEXT, "description": "Where `sampler_name` is empty."},
        "scheduler": {**TEXT, "description": f"One of {schedulers}, in any case."},
        "override_settings": _OVERRIDES,
        "refiner_checkpoint": {**TEXT, "description": "A name with `refiner` in it."},
        "refiner_switch_at": NUMBER,
        "send_images": FLAG,
    }
    own |= {name: native[field] for name, field in a1111_fields.SAME.items()}
    nothing = {name: {"enum": [*values]} for name, values in a1111_fields.NOTHING.items() if values}
    return {name: nullable(each) for name, each in (nothing | own).items()}


_OVERRIDES = {
    "type": "object",
    "properties": {
        "sd_model_checkpoint": nullable(TEXT),
        "samples_format": {"enum": ["png", "jpg", "jpeg", "webp", None]},
    },
    "additionalProperties": False,
}


def _body(fields: dict[str, Schema], *required: str) -> Schema:
    """Of what is ignored only the names are known."""
    ignored = {f"^({a1111_fields.IGNORED.pattern})$": {"description": "Ignored."}}
    return {**only(fields, required=required), "patternProperties": ignored}


def _asks() -> dict[str, Any]:
    name = some({"name": TEXT})
    model = some({"title": TEXT, "model_name": TEXT, "filename": TEXT})
    scheduler = some({"name": TEXT, "label": TEXT})
    scripts = some({"txt2img": listed(TEXT), "img2img": listed(TEXT)})
    lists: tuple[tuple[str, str, Schema], ...] = (
        ("sd-models", "The loaded models.", listed(model)),
        ("samplers", "The samplers, by its names.", listed(name)),
        ("schedulers", "The schedulers, by its names.", listed(scheduler)),
        ("loras", "The adapters that `<lora:name:weight>` may name.", listed(name)),
        ("scripts", "There are none.", scripts),
    )
    found = {
        path: A1111.get(text, answer(text, media(JSON, schema))) for path, text, schema in lists
    }
    skip = parameter("skip_current_image", "query", "Without the preview.", FLAG)
    progress = some({"progress": NUMBER, "eta_relative": NUMBER, "state": OBJECT})
    progress["properties"]["current_image"] = nullable(BASE64)
    return found | {
        "progress": A1111.get(
            "How far the call is that has been at work for longest.",
            answer("So far.", media(JSON, progress)),
            parameters=[skip],
            fails=(errors.InvalidInput,),
        )
    }
