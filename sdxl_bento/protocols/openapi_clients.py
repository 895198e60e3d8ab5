"""OpenAPI paths of the protocols that came with their own clients: OpenAI's and AUTOMATIC1111's."""

from __future__ import annotations

from typing import Any

from sdxl_bento.params import GenerateParams
from sdxl_bento.protocols import a1111_fields, openai_fields
from sdxl_bento.protocols.a1111_samplers import SAMPLERS, SCHEDULERS

OPENAI, A1111 = "OpenAI Images", "AUTOMATIC1111"
_TEXT: dict[str, Any] = {"type": "string"}
_WHOLE: dict[str, Any] = {"type": "integer", "minimum": 1}
_OPENAI_BODY: dict[str, Any] = {
    "n": {**_WHOLE, "description": "Pictures."},
    "size": {**_TEXT, "example": "1024x1024", "description": "Or `auto`, the model's own."},
    "output_compression": {"type": "integer", "minimum": 0, "maximum": 100},
    "response_format": {"type": "string", "enum": ["b64_json", "url"]},
    "stream": {"type": "boolean"},
    "partial_images": {
        "type": "integer",
        "minimum": 0,
        "maximum": openai_fields.MAX_PARTIAL_IMAGES,
    },
}
_A1111_BODY: dict[str, Any] = {
    "prompt": {**_TEXT, "example": "a red circle <lora:striped:0.8>"},
    "negative_prompt": _TEXT,
    "seed": {"type": "integer", "description": "-1: a random one."},
    "steps": {**_WHOLE, "maximum": 200},
    "cfg_scale": {"type": "number", "minimum": 0, "maximum": 50},
    "width": _WHOLE,
    "height": _WHOLE,
    "batch_size": _WHOLE,
    "n_iter": _WHOLE,
    "sampler_name": {"type": "string", "enum": list(SAMPLERS)},
    "scheduler": {"type": "string", "enum": list(SCHEDULERS)},
    "override_settings": {"type": "object"},
    "refiner_checkpoint": _TEXT,
    "refiner_switch_at": {"type": "number"},
    "send_images": {"type": "boolean"},
    "slo_ms": {"type": "number"},
    "priority": {"type": "integer"},
}
_INIT = {
    "init_images": {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 1},
    "denoising_strength": {"type": "number", "default": a1111_fields.DENOISING_STRENGTH},
}
_LISTS = {
    "sd-models": "The loaded models.",
    "samplers": "The samplers, by its names.",
    "schedulers": "The schedulers, by its names.",
    "loras": "The adapters that `<lora:name:weight>` may name.",
    "scripts": "No scripts.",
    "progress": "How far the oldest running call is.",
    "options": "The model of calls that name none.",
}


def paths() -> dict[str, Any]:
    """The paths of both."""
    return _openai_paths() | _a1111_paths()


def _openai_paths() -> dict[str, Any]:
    error = dict.fromkeys(("message", "type", "code"), _TEXT)
    error["param"] = {**_TEXT, "nullable": True}
    failure = _failure({"error": {"type": "object", "properties": error}})
    native = GenerateParams.model_json_schema(ref_template="#/components/schemas/{model}")
    renamed = ("num_images", "output_quality", "width", "height")
    own = {name: each for name, each in native["properties"].items() if name not in renamed}
    fields = own | _OPENAI_BODY
    picture = {"image": {"type": "string", "format": "binary"}}
    body = {"type": "object", "required": ["prompt"], "properties": fields}
    form = {**body, "properties": picture | fields}
    content = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}}
    answers = {"200": {"description": "Pictures, or events", "content": content}, **failure}
    model = {"name": "model", "in": "path", "required": True, "schema": _TEXT}
    return {
        "/v1/images/generations": _post(
            "Text to image.", OPENAI, answers, {"application/json": {"schema": body}}
        ),
        "/v1/images/edits": _post(
            "Image to image.", OPENAI, answers, {"multipart/form-data": {"schema": form}}
        ),
        "/v1/models": {"get": _operation("The loaded models.", OPENAI, _json(failure))},
        "/v1/models/{model}": {
            "get": {**_operation("A loaded model.", OPENAI, _json(failure)), "parameters": [model]}
        },
    }


def _a1111_paths() -> dict[str, Any]:
    failure = _failure(dict.fromkeys(("error", "detail", "body", "errors"), _TEXT))
    found: dict[str, Any] = {
        f"/sdapi/v1/{name}": {"get": _operation(text, A1111, _json(failure))}
        for name, text in _LISTS.items()
    }
    skip = {"name": "skip_current_image", "in": "query", "schema": {"type": "boolean"}}
    found["/sdapi/v1/progress"]["get"]["parameters"] = [skip]
    for name, text, more in (
        ("txt2img", "Text to image.", {}),
        ("img2img", "Image to image.", _INIT),
        ("interrupt", "End the oldest running call.", None),
        ("options", "Choose the model of calls that name none.", None),
    ):
        body: dict[str, Any] = {"type": "object"}
        if more is not None:
            body["properties"] = _A1111_BODY | more
        if name == "options":
            body["properties"] = {"sd_model_checkpoint": _TEXT}
        content = {"application/json": {"schema": body}} if name != "interrupt" else None
        post = _post(text, A1111, _json(failure), content)
        found.setdefault(f"/sdapi/v1/{name}", {}).update(post)
    return found


def _post(
    text: str, tag: str, answers: dict[str, Any], content: dict[str, Any] | None
) -> dict[str, Any]:
    operation = _operation(text, tag, answers)
    if content is not None:
        operation["requestBody"] = {"required": True, "content": content}
    return {"post": operation}


def _operation(text: str, tag: str, answers: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "tags": [tag], "responses": answers}


def _failure(properties: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": properties}
    content = {"application/json": {"schema": schema}}
    return {"default": {"description": "What went wrong", "content": content}}


def _json(failure: dict[str, Any]) -> dict[str, Any]:
    return {"200": {"description": "OK", "content": {"application/json": {}}}, **failure}
