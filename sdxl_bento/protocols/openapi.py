"""BentoML's OpenAPI document, with what it cannot know: our errors, our answers, our GET routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdxl_bento import __version__
from sdxl_bento.protocols import openapi_clients

TAG = "Service APIs"
DESCRIPTION = """\
Stable Diffusion XL: text to image, image to image, refiner and LoRAs.

A call is a flat JSON object. One picture comes back as it is, several as JSON with base64; \
`Accept: application/json` asks for JSON in any case. `X-Request-Id`, `X-SLO-MS` and `X-Priority` \
may be given as headers; `X-Seed`, `X-Image-Id`, `X-Model` and `Server-Timing` come back as such.
"""
_LISTED = {
    "/models": "The loaded models.",
    "/loras": "The adapters that a request may name.",
    "/samplers": "The samplers that a request may name.",
    "/stats": "What the engine does just now.",
}
_PICTURES = {
    "/images/{image_id}": "A generated picture, to look at.",
    "/download/{image_id}": "A generated picture, to save.",
}
_TEXT = {"type": "string"}
_NULLABLE_TEXT = {"type": "string", "nullable": True}
_ERROR = {
    "title": "Error",
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "required": ["type", "message", "field", "value", "allowed", "request_id"],
            "properties": {
                "type": {**_TEXT, "example": "invalid_input"},
                "message": _TEXT,
                "field": {**_NULLABLE_TEXT, "example": "width"},
                "value": {"nullable": True, "description": "What the field held."},
                "allowed": {**_NULLABLE_TEXT, "example": "an integer from 64 to 4096"},
                "request_id": _NULLABLE_TEXT,
                "retry_after_s": {"type": "number", "description": "With 429 and 503."},
            },
        }
    },
}


def completed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The document to publish, made of the one that BentoML generates."""
    paths = {path: _with_our_answers(path, item) for path, item in spec["paths"].items()}
    schemas = {**spec.get("components", {}).get("schemas", {}), "Error": _ERROR}
    info = {"title": "sdxl-bento", "version": __version__, "description": DESCRIPTION}
    return {
        **spec,
        "info": info,
        "paths": {**paths, **_own_paths(), **openapi_clients.paths()},
        "components": {**spec.get("components", {}), "schemas": schemas},
    }


def _with_our_answers(path: str, item: Mapping[str, Any]) -> dict[str, Any]:
    post = item.get("post")
    if post is None:
        return dict(item)
    answers = {"200": post["responses"].get("200", post["responses"].get(200, {})), **_failure()}
    if path == "/generate/stream":
        answers["200"] = {"description": "Events", "content": {"text/event-stream": {}}}
    elif path != "/generate_batch":
        picture = {"schema": {"type": "string", "format": "binary"}}
        formats = {f"image/{name}": picture for name in ("png", "webp", "jpeg")}
        content = {**formats, "application/json": {"schema": {"type": "object"}}}
        answers["200"] = {"description": "The picture, or JSON with base64", "content": content}
    return {**item, "post": {**post, "responses": answers}}


def _own_paths() -> dict[str, Any]:
    paths: dict[str, Any] = {path: {"get": _operation(text)} for path, text in _LISTED.items()}
    paths |= {path: {"get": _operation(text, "image_id")} for path, text in _PICTURES.items()}
    paths["/cancel/{request_id}"] = {"post": _operation("End a running call.", "request_id")}
    return paths


def _operation(text: str, parameter: str | None = None) -> dict[str, Any]:
    responses = {"200": {"description": "OK"}, **(_failure() if parameter else {})}
    operation: dict[str, Any] = {"description": text, "tags": [TAG], "responses": responses}
    if parameter is not None:
        operation["parameters"] = [
            {"name": parameter, "in": "path", "required": True, "schema": _TEXT}
        ]
    return operation


def _failure() -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/Error"}
    return {
        "default": {
            "description": "What went wrong",
            "content": {"application/json": {"schema": schema}},
        }
    }
