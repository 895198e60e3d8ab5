"""AUTOMATIC1111's routes as the OpenAPI document describes them."""

from __future__ import annotations

from typing import Any

from sdxl_bento import errors
from sdxl_bento.protocols.a1111 import answers, fields, neutral
from sdxl_bento.protocols.http.envelopes import Automatic1111Error
from sdxl_bento.protocols.http.operations import (
    BASE64,
    BOOLEAN,
    CALL_HEADERS,
    DRAWS,
    JSON,
    NUMBER,
    OBJECT,
    PICTURE_HEADERS,
    READS,
    STRING,
    Protocol,
    Schema,
    array_of,
    closed_object,
    media,
    nullable,
    parameter,
    ref,
    request_body,
    response,
)
from sdxl_bento.protocols.http.schemas import answer_components
from sdxl_bento.sampler_names import A1111_SAMPLERS, A1111_SCHEDULERS

A1111 = Protocol("AUTOMATIC1111", Automatic1111Error)
_EXAMPLE = {"prompt": "a red circle <lora:striped:0.8>", "seed": 1, "steps": 20, "width": 128}
_BLACK = (  # a PNG of 64x64
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQAAAACCEkxzAAAAD0lEQVR42mNgGAWjgHwAAAJAAAHgTR1EAAAAAElFTkSuQmCC"
)
_REDRAW = {"prompt": "a red circle", "init_images": [_BLACK], "denoising_strength": 0.6}
_IGNORED: Schema = {"description": "Accepted and ignored."}
_COUNT: Schema = {"type": "integer", "minimum": 1}


def components() -> dict[str, Schema]:
    """The schemas of answers and errors."""
    lists = (
        *(answers.Automatic1111Model, answers.Automatic1111Sampler, answers.Automatic1111Scheduler),
        *(answers.Automatic1111Lora, answers.Automatic1111Scripts, answers.Automatic1111Options),
    )
    calls = (answers.Automatic1111Images, answers.Automatic1111Progress)
    return answer_components(*calls, *lists, Automatic1111Error)


def paths(params: Schema) -> dict[str, Any]:
    """The path items. `params` is the schema of the native fields."""
    items = _calls(params) | _control() | _lists()
    return {f"/sdapi/v1/{name}": item for name, item in items.items()}


def _calls(params: Schema) -> dict[str, Any]:
    text_to_image = _fields(params["properties"])
    text_to_image["denoising_strength"] = _IGNORED
    strength = params["properties"]["strength"]
    picture = {
        "init_images": array_of(BASE64, minItems=1, maxItems=1),
        "denoising_strength": nullable({**strength, "default": fields.DENOISING_STRENGTH}),
    }
    ok = response(
        "The pictures.", media(JSON, ref(answers.Automatic1111Images)), headers=PICTURE_HEADERS
    )
    call = {"fails": DRAWS, "parameters": CALL_HEADERS}
    return {
        "txt2img": A1111.post(
            "Text to image.",
            ok,
            body=request_body(media(JSON, _body(text_to_image), _EXAMPLE), required=False),
            **call,
        ),
        "img2img": A1111.post(
            "Image to image.",
            ok,
            body=request_body(media(JSON, _body(text_to_image | picture, "init_images"), _REDRAW)),
            **call,
        ),
    }


def _control() -> dict[str, Any]:
    option = _settings(
        {fields.CHECKPOINT: nullable(STRING), "samples_format": {"enum": ["png", None]}}
    )
    skip = parameter("skip_current_image", "query", "Leave out the preview.", BOOLEAN)
    return {
        "progress": A1111.get(
            "The progress of the call that has been running for longest.",
            response("The progress.", media(JSON, ref(answers.Automatic1111Progress))),
            parameters=[skip],
            fails=(errors.InvalidInput,),
        ),
        "interrupt": A1111.post(
            "Cancel the call that has been running for longest.",
            response("It is cancelled, if there is one.", media(JSON, OBJECT)),
        ),
        "options": {
            **A1111.get(
                "The model of calls that name none.",
                response("The model.", media(JSON, ref(answers.Automatic1111Options))),
            ),
            **A1111.post(
                "Choose the model of calls that name none.",
                response("It is chosen.", media(JSON, {"type": "null"})),
                body=request_body(media(JSON, option), required=False),
                fails=(*READS, errors.ModelNotFound, errors.NotReady),
            ),
        },
    }


def _lists() -> dict[str, Any]:
    lists: tuple[tuple[str, str, Schema], ...] = (
        ("sd-models", "The loaded models.", array_of(ref(answers.Automatic1111Model))),
        ("samplers", "The samplers' names.", array_of(ref(answers.Automatic1111Sampler))),
        ("schedulers", "The schedulers' names.", array_of(ref(answers.Automatic1111Scheduler))),
        (
            "loras",
            "The adapters for `<lora:name:weight>`.",
            array_of(ref(answers.Automatic1111Lora)),
        ),
        ("scripts", "There are none.", ref(answers.Automatic1111Scripts)),
    )
    refresh = A1111.post(
        "Look for adapters again.", response("It was done.", media(JSON, {"type": "null"}))
    )
    return {
        path: A1111.get(text, response(text, media(JSON, schema))) for path, text, schema in lists
    } | {"refresh-loras": refresh}


def _fields(native: Schema) -> dict[str, Schema]:
    """The fields of txt2img that have an effect, and those that must ask for none."""
    samplers, schedulers = ", ".join(A1111_SAMPLERS), ", ".join(A1111_SCHEDULERS)
    own: dict[str, Schema] = {
        "prompt": {**STRING, "description": "May contain `<lora:name:weight>`."},
        "negative_prompt": STRING,
        "seed": {
            "anyOf": [{"type": "integer", "minimum": -1}, {"enum": [*fields.RANDOM]}],
            "description": "-1: a random one.",
        },
        "batch_size": _COUNT,
        "n_iter": _COUNT,
        "sampler_name": {**STRING, "description": f"One of {samplers}, in any case."},
        "sampler_index": {**STRING, "description": "Used if `sampler_name` is empty."},
        "scheduler": {**STRING, "description": f"One of {schedulers}, in any case."},
        "override_settings": _settings(
            {
                fields.CHECKPOINT: nullable(STRING),
                "samples_format": {"enum": ["png", "jpg", "jpeg", "webp", None]},
                "jpeg_quality": nullable(native["output_quality"]),
            }
        ),
        "refiner_checkpoint": {**STRING, "description": "A name that contains `refiner`."},
        "refiner_switch_at": NUMBER,
        "send_images": BOOLEAN,
    }
    own |= {name: native[field] for name, field in fields.SAME.items()}
    own |= {
        fields.SCRIPTS: {**OBJECT, "description": "Scripts that are turned off."},
        fields.NOISE: {**NUMBER, "description": "1, or any with a sampler without noise."},
    }
    off = {name: _enum(values) for name, values in neutral.NEUTRAL.items()}
    for name, value in neutral.EXAMPLE.items():
        off[name] = _enum((*neutral.NEUTRAL[name], value))
    return {name: nullable(each) for name, each in (off | own).items()}


def _settings(own: dict[str, Schema]) -> Schema:
    """The schema of AUTOMATIC1111's settings, of which `own` have an effect."""
    off = {name: nullable(_enum(values)) for name, values in neutral.NEUTRAL_SETTINGS.items()}
    ignored: dict[str, Schema] = dict.fromkeys(sorted(neutral.IGNORED_SETTINGS), _IGNORED)
    return closed_object({**ignored, **off, **own})


def _enum(values: tuple[object, ...]) -> Schema:
    return {"enum": [*values]}


def _body(properties: dict[str, Schema], *required: str) -> Schema:
    """Of fields that are ignored only the names are known."""
    ignored: dict[str, Schema] = dict.fromkeys(sorted(neutral.IGNORED), _IGNORED)
    return closed_object({**ignored, **properties}, required=required)
