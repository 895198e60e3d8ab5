"""The native routes, and those of BentoML's own."""

from __future__ import annotations

from typing import Any

from sdxl_bento import errors
from sdxl_bento.protocols.http.bodies import MAX_BATCH_ITEMS
from sdxl_bento.protocols.http.operations import (
    BASE64,
    CALL_HEADERS,
    DRAWS,
    FLAG,
    FORM,
    JSON,
    OBJECT,
    PICTURE_HEADERS,
    READS,
    REQUEST_ID_BACK,
    TEXT,
    WHOLE,
    Protocol,
    Schema,
    answer,
    body,
    events,
    header,
    listed,
    media,
    nullable,
    only,
    parameter,
    pictures,
    ref,
    some,
)
from sdxl_bento.protocols.http.schemas import NATIVE_ERROR

NATIVE = Protocol("Native", NATIVE_ERROR)
PROBES = Protocol("Probes and pages", NATIVE_ERROR)
_EXAMPLE = {"prompt": "a red circle on a blue background", "seed": 1, "num_inference_steps": 20}
_PICTURE_OR_JSON = answer(
    "The picture itself; JSON of several, or where `Accept` says `application/json`.",
    pictures(),
    media(JSON, ref("Answer")),
    headers=PICTURE_HEADERS,
)
_EVENTS = """Events, `event:` and `data:` with JSON:
`queued` (`request_id`, `index`, `stage`, `position`), `step` (`step` of `steps`), \
`preview` (`jpeg` in base64), and at last `done` (what `/generate` answers as JSON) \
or `error` (its error, with `status`)."""


def paths(params: Schema) -> dict[str, Any]:
    """`params` is the schema of the native fields."""
    return _calls(params) | _pictures() | _lists() | _probes()


def _calls(params: Schema) -> dict[str, Any]:
    call = {"fails": DRAWS, "parameters": CALL_HEADERS}
    generate = body(media(JSON, ref("GenerateParams"), _EXAMPLE))
    stored = (*DRAWS, errors.ImageNotFound, errors.StoreUnavailable)
    # Anything is taken as an item, for an error comes in its place.
    items = listed({"anyOf": [ref("GenerateParams"), {}]}, minItems=1, maxItems=MAX_BATCH_ITEMS)
    many = only({"requests": items}, required=["requests"])
    results = listed({"anyOf": [ref("Answer"), ref("BatchError")]}, minItems=1)
    happened = events("queued", "step", "preview", "done", "error")
    progress = answer(_EVENTS, happened, headers=REQUEST_ID_BACK)
    redrawn = {"body": _image_body(params), **call, "fails": stored}
    return {
        "/generate": NATIVE.post("Text to image.", _PICTURE_OR_JSON, body=generate, **call),
        "/generate/stream": NATIVE.post(
            "Text to image, with progress as server-sent events.", progress, body=generate, **call
        ),
        "/generate_batch": NATIVE.post(
            "Many calls in one; a call that fails has its error in its place.",
            answer("One result for each, in their order.", media(JSON, results)),
            body=body(media(JSON, many, {"requests": [_EXAMPLE, {"prompt": "a green square"}]})),
            fails=(*READS, errors.NotReady),
            parameters=CALL_HEADERS,
        ),
        "/img2img": NATIVE.post(
            "The base model redraws a picture, as far as `strength` says.",
            _PICTURE_OR_JSON,
            **redrawn,
        ),
        "/refine": NATIVE.post("The refiner redraws a picture.", _PICTURE_OR_JSON, **redrawn),
        "/cancel/{request_id}": NATIVE.post(
            "End a running call.",
            answer("It ends.", media(JSON, some({"request_id": TEXT, "cancelled": FLAG}))),
            fails=(errors.RequestNotFound,),
            parameters=[parameter("request_id", "path", "The call's `X-Request-Id`.")],
        ),
    }


def _image_body(params: Schema) -> dict[str, Any]:
    """The native fields and a picture: in a form as a file, in JSON as base64, or by its id."""
    ids = {
        "image_id": nullable(TEXT) | {"description": "A picture of this server, in its place."},
        "id": nullable(TEXT) | {"description": "The same as `image_id`."},
    }
    properties = {**params["properties"], **ids}
    file = {"description": "PNG, JPEG or WebP."}
    text = nullable(BASE64) | file
    as_json = only({**properties, "image": text}, required=["prompt"])
    as_form = only({**properties, "image": file}, required=["prompt"])
    example = {**_EXAMPLE, "strength": 0.6, "image_id": "U8E1P-6imjulik2hA08hQg"}
    return body(media(JSON, as_json, example), media(FORM, as_form))


def _pictures() -> dict[str, Any]:
    found = {
        "parameters": [parameter("image_id", "path", "Its id; a file's ending may follow.")],
        "fails": (errors.ImageNotFound, errors.StoreUnavailable),
    }
    known = answer("All parameters, and what drew it.", media(JSON, OBJECT))
    headers = {
        name: header(text)
        for name, text in (
            ("X-Image-Id", "Its id."),
            ("X-Seed", "The seed that draws it again."),
            ("Content-Disposition", "`inline` or `attachment`, and a file's name."),
        )
    }
    ok = answer("The picture.", pictures(), headers=headers)
    return {
        "/images/{image_id}": NATIVE.get("A picture that was made here, to look at.", ok, **found),
        "/download/{image_id}": NATIVE.get("The same, to save.", ok, **found),
        "/images/{image_id}/metadata": NATIVE.get("What is known of a picture.", known, **found),
    }


def _lists() -> dict[str, Any]:
    stats = some({"state": TEXT, "state_reason": TEXT, "running": WHOLE, "waiting": WHOLE})
    return {
        path: NATIVE.get(text, answer(text, media(JSON, schema)))
        for path, text, schema in (
            ("/models", "The loaded models.", some({"models": listed(ref("Model"))})),
            ("/loras", "The adapters that a call may name.", some({"loras": listed(ref("LoRA"))})),
            ("/samplers", "The samplers that a call may name.", some({"samplers": listed(TEXT)})),
            ("/stats", "What the engine does just now.", stats),
        )
    }


def _probes() -> dict[str, Any]:
    plain, page = media("text/plain", TEXT), media("text/html", TEXT)
    not_ready = (errors.NotReady,)
    found = {
        path: PROBES.get(text, answer(text, content), fails=fails)
        for path, text, content, fails in (
            ("/livez", "The process works.", plain, not_ready),
            ("/healthz", "The same.", plain, not_ready),
            ("/readyz", "Its models are loaded.", plain, not_ready),
            ("/metrics", "Prometheus' metrics.", plain, ()),
            ("/", "The page to draw with, or the way to it.", page, ()),
            ("/docs", "This document as a page.", page, ()),
            ("/docs.json", "This document.", media(JSON, OBJECT), ()),
            ("/schema.json", "What BentoML's clients read.", media(JSON, OBJECT), ()),
        )
    }
    found["/"]["get"]["responses"]["307"] = answer("A browser's way to the page at `/ui/`.")
    return found
