"""The schemas that operations share: the native fields and answers, and each protocol's error."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import models_json_schema

from sdxl_bento.params import GenerateParams
from sdxl_bento.protocols.http.operations import (
    BASE64,
    NUMBER,
    TEXT,
    WHOLE,
    Schema,
    listed,
    nullable,
    ref,
    some,
)
from sdxl_bento.serving.results import LoraSummary, ModelSummary, Timings

REF = "#/components/schemas/{model}"
NATIVE_ERROR, OPENAI_ERROR, KSERVE_ERROR, A1111_ERROR = (
    f"{protocol}Error" for protocol in ("Native", "OpenAI", "KServe", "AUTOMATIC1111")
)


def components() -> dict[str, Schema]:
    """All of them by name."""
    _, params = models_json_schema([(GenerateParams, "validation")], ref_template=REF)
    return {
        **params["$defs"],
        "Model": _summary(ModelSummary),
        "LoRA": _summary(LoraSummary),
        "Picture": PICTURE,
        "Answer": ANSWER,
        NATIVE_ERROR: native_error(),
        "BatchError": native_error(status=WHOLE),
        OPENAI_ERROR: _OPENAI_ERROR,
        KSERVE_ERROR: some({"error": TEXT}),
        A1111_ERROR: some(dict.fromkeys(("error", "detail", "body", "errors"), TEXT)),
    }


def native_error(**more: Schema) -> Schema:
    """`{"error": {…}}`, with `more` fields in it."""
    fields: dict[str, Schema] = {
        "type": {**TEXT, "examples": ["invalid_input"]},
        "message": {**TEXT, "examples": ["width: got 100, allowed: a multiple of 32"]},
        "field": {**nullable(TEXT), "examples": ["width"]},
        "value": {"description": "What the field held."},
        "allowed": {**nullable(TEXT), "examples": ["a multiple of 32"]},
        "request_id": nullable(TEXT),
        **more,
    }
    inner = some(fields)
    inner["properties"]["retry_after_s"] = {**NUMBER, "description": "With 429 and 503."}
    return some({"error": inner})


def _summary(cls: type[Any]) -> Schema:
    schema = TypeAdapter(cls).json_schema(mode="serialization", ref_template=REF)
    schema["description"] = str(cls.__doc__)
    return schema


_MILLISECONDS = {f"{name.removesuffix('_s')}_ms": NUMBER for name in Timings.__dataclass_fields__}
PICTURE = some(
    {
        "b64_json": BASE64,
        "format": {**TEXT, "enum": ["png", "webp", "jpeg"]},
        "seed": WHOLE,
        "image_id": {**nullable(TEXT), "description": "Null where the store did not take it."},
        "width": WHOLE,
        "height": WHOLE,
    }
)
PICTURE["properties"]["cache"] = {
    **TEXT,
    "enum": ["hit", "miss"],
    "description": "Only where results are cached.",
}
ANSWER = some(
    {
        "id": {**nullable(TEXT), "description": "The first picture's."},
        "request_id": TEXT,
        "model": TEXT,
        "images": listed(ref("Picture"), minItems=1),
        "params": {**ref("GenerateParams"), "description": "Every default filled in."},
        "timings": some(_MILLISECONDS),
    }
)
_OPENAI_ERROR = some(
    {
        "error": some(
            {
                "message": TEXT,
                "type": {
                    **TEXT,
                    "enum": ["invalid_request_error", "rate_limit_error", "server_error"],
                },
                "param": nullable(TEXT),
                "code": TEXT,
            }
        )
    }
)
