"""The native routes, BentoML's own and the pages, as the OpenAPI document describes them."""

from __future__ import annotations

from typing import Any

from sdxl_bento import errors
from sdxl_bento.protocols.http.bodies import MAX_BATCH_ITEMS
from sdxl_bento.protocols.http.envelopes import NativeError
from sdxl_bento.protocols.http.operations import (
    CALL_HEADERS,
    DRAWS,
    FORM,
    INTEGER,
    JSON,
    OBJECT,
    PICTURE_HEADERS,
    READS,
    REQUEST_ID_BACK,
    STRING,
    Protocol,
    Schema,
    array_of,
    closed_object,
    event_content,
    header,
    media,
    nullable,
    open_object,
    parameter,
    picture_content,
    picture_fields,
    ref,
    request_body,
    response,
)
from sdxl_bento.protocols.http.schemas import answer_components
from sdxl_bento.protocols.native.answers import (
    BatchError,
    Cancelled,
    LoraList,
    ModelList,
    NativeAnswer,
    SamplerList,
)

NATIVE = Protocol("Native", NativeError)
PROBES = Protocol("Probes and pages", NativeError)
_EXAMPLE = {"prompt": "a red circle on a blue background", "seed": 1, "num_inference_steps": 20}
_PICTURE_OR_JSON = response(
    "The picture itself. Several pictures are JSON, as is one if `Accept` is `application/json`.",
    picture_content(),
    media(JSON, ref(NativeAnswer)),
    headers=PICTURE_HEADERS,
)
_EVENTS = """Events, `event:` and `data:` with JSON:
`queued` (`request_id`, `index`, `stage`, `position`), `step` (`step` of `steps`), \
`preview` (`jpeg` in base64), and last of all `done` (the JSON that `/generate` answers) \
or `error` (its error, with `status`)."""


def components() -> dict[str, Schema]:
    """The schemas of answers and errors."""
    types = (NativeAnswer, NativeError, BatchError, ModelList, LoraList, SamplerList, Cancelled)
    schemas = answer_components(*types)
    params = {**ref("GenerateParams"), "description": "All parameters, with defaults filled in."}
    schemas[NativeAnswer.__name__]["properties"]["params"] = params
    return schemas


def paths(params: Schema) -> dict[str, Any]:
    """The path items. `params` is the schema of the native fields."""
    return _calls(params) | _pictures() | _lists() | _probes()


def _calls(params: Schema) -> dict[str, Any]:
    call = {"fails": DRAWS, "parameters": CALL_HEADERS}
    generate = request_body(media(JSON, ref("GenerateParams"), _EXAMPLE))
    stored = (*DRAWS, errors.ImageNotFound, errors.StoreUnavailable)
    # Anything is accepted as an item: an error is answered in its place.
    items = array_of({"anyOf": [ref("GenerateParams"), {}]}, minItems=1, maxItems=MAX_BATCH_ITEMS)
    many = closed_object({"requests": items}, required=["requests"])
    results = array_of({"anyOf": [ref(NativeAnswer), ref(BatchError)]}, minItems=1)
    progress_events = event_content("queued", "step", "preview", "done", "error")
    progress = response(_EVENTS, progress_events, headers=REQUEST_ID_BACK)
    redraw = {"body": _image_body(params), **call, "fails": stored}
    return {
        "/generate": NATIVE.post("Text to image.", _PICTURE_OR_JSON, body=generate, **call),
        "/generate/stream": NATIVE.post(
            "Text to image, with progress as server-sent events.", progress, body=generate, **call
        ),
        "/generate_batch": NATIVE.post(
            "Many calls in one. A call that fails has its error in its place.",
            response("One result for each, in their order.", media(JSON, results)),
            body=request_body(
                media(JSON, many, {"requests": [_EXAMPLE, {"prompt": "a green square"}]})
            ),
            fails=(*READS, errors.NotReady),
            parameters=CALL_HEADERS,
        ),
        "/img2img": NATIVE.post(
            "The base model redraws a picture. `strength` says how much of it may change.",
            _PICTURE_OR_JSON,
            **redraw,
        ),
        "/refine": NATIVE.post("The refiner redraws a picture.", _PICTURE_OR_JSON, **redraw),
        "/cancel/{request_id}": NATIVE.post(
            "End a running call.",
            response("It ends.", media(JSON, ref(Cancelled))),
            fails=(errors.RequestNotFound,),
            parameters=[parameter("request_id", "path", "The call's `X-Request-Id`.")],
        ),
    }


def _image_body(params: Schema) -> dict[str, Any]:
    """The native fields and a picture: in a form as a file, in JSON as base64, or by its id."""
    alias = {"id": nullable(STRING) | {"description": "The same as `image_id`."}}
    as_json, as_form = (
        closed_object(
            {**params["properties"], **picture_fields(kind), **alias}, required=["prompt"]
        )
        for kind in (JSON, FORM)
    )
    example = {**_EXAMPLE, "strength": 0.6, "image_id": "U8E1P-6imjulik2hA08hQg"}
    return request_body(media(JSON, as_json, example), media(FORM, as_form))


def _pictures() -> dict[str, Any]:
    picture = {
        "parameters": [parameter("image_id", "path", "Its id. A file extension may follow.")],
        "fails": (errors.ImageNotFound, errors.StoreUnavailable),
    }
    metadata = response("All parameters, and what drew it.", media(JSON, OBJECT))
    headers = {
        name: header(text)
        for name, text in (
            ("X-Image-Id", "Its id."),
            ("X-Seed", "The seed that draws it again."),
            ("Content-Disposition", "`inline` or `attachment`, and a file's name."),
        )
    }
    ok = response("The picture.", picture_content(), headers=headers)
    return {
        "/images/{image_id}": NATIVE.get("A picture of this server, to look at.", ok, **picture),
        "/download/{image_id}": NATIVE.get("The same picture, to save.", ok, **picture),
        "/images/{image_id}/metadata": NATIVE.get(
            "A picture's parameters and origin.", metadata, **picture
        ),
    }


def _lists() -> dict[str, Any]:
    stats = open_object(
        {"state": STRING, "state_reason": STRING, "running": INTEGER, "waiting": INTEGER}
    )
    return {
        path: NATIVE.get(text, response(text, media(JSON, schema)))
        for path, text, schema in (
            ("/models", "The loaded models.", ref(ModelList)),
            ("/loras", "The adapters that a call may name.", ref(LoraList)),
            ("/samplers", "The samplers that a call may name.", ref(SamplerList)),
            ("/stats", "What the engine is doing.", stats),
        )
    } | {
        "/loras/refresh": NATIVE.post(
            "Look for adapters again.", response("The adapters.", media(JSON, ref(LoraList)))
        )
    }


def _probes() -> dict[str, Any]:
    plain, page = media("text/plain", STRING), media("text/html", STRING)
    not_ready = (errors.NotReady,)
    probes = {
        path: PROBES.get(text, response(text, content), fails=fails)
        for path, text, content, fails in (
            ("/livez", "The process is alive.", plain, not_ready),
            ("/healthz", "The same.", plain, not_ready),
            ("/readyz", "The models are loaded.", plain, not_ready),
            ("/metrics", "Prometheus' metrics.", plain, ()),
            ("/", "The page, or a redirect to it.", page, ()),
            ("/docs", "This document as a page.", page, ()),
            ("/docs.json", "This document.", media(JSON, OBJECT), ()),
            (
                "/schema.json",
                "The description that BentoML's clients read.",
                media(JSON, OBJECT),
                (),
            ),
        )
    }
    probes["/"]["get"]["responses"]["307"] = response("A browser is sent to the page at `/ui/`.")
    return probes
