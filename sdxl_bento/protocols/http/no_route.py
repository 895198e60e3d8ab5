"""The answer to an address that there is not: 404, with a pointer to the one that was meant.

People come from other servers, whose addresses are well known, and misspell ours.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

# The addresses that BentoML serves, for this app to point to.
NATIVE = ("/generate", "/generate/stream", "/generate_batch", "/img2img", "/refine")
_GENERATE = "POST /generate draws from a prompt, with the fields at the top of the body"
_FORGE = "this server has no upscalers, extras, training or scripts; see /docs for what it has"
# An address of another server, matched as a whole → where to go instead.
_ELSEWHERE: tuple[tuple[str, str], ...] = (
    # BentoDiffusion, BentoML's examples
    (r"/(txt2img|text2img|text[-_]to[-_]image)", _GENERATE),
    (r"/(image2image|img2img_upload|image[-_]to[-_]image)", "POST /img2img redraws a picture"),
    # Replicate's cog, RunPod, Salad, Truss, TorchServe
    (r"/(v1/)?(predict|predictions|inference|infer|generate_image)(/\S*)?|/run(sync)?", _GENERATE),
    # SageMaker, Vertex AI, Azure
    (r"/(invocations|score)", f"{_GENERATE}; KServe's V1 is /v1/models/{{model}}:predict"),
    (r"/(ping|health|healthcheck|health-check|status)", "GET /livez and GET /readyz are probes"),
    # Stability AI's API
    (r"/v1/generation/\S+|/v2beta/\S+", _GENERATE),
    # ComfyUI, InvokeAI, Gradio
    (r"/(prompt|queue|history|object_info)(/\S*)?", f"workflows are not supported; {_GENERATE}"),
    (r"/(api|run)/\S+|/(call|gradio_api)/\S*", f"{_GENERATE}; the page is at /ui/"),
    # OpenAI
    (r"/v1/images/variations", "POST /v1/images/edits with an empty prompt has a similar effect"),
    (r"/(v1/)?(chat/completions|completions|responses)",
     "pictures are drawn by POST /v1/images/generations"),
    (r"/images/(generations|edits)", "the base URL has to end in /v1"),
    (r"/openai/deployments/\S+", "the base URL has to end in /v1, as OpenAI's own does"),
    # AUTOMATIC1111
    (r"/sdapi/v1/\S+", _FORGE),
    # Triton
    (r"/v2/models/\S+/(generate|generate_stream)", "POST /v2/models/{model}/infer draws"),
    (r"/v2/(models/\S+/(config|stats|trace/setting)|logging|\S*sharedmemory\S*)",
     "this extension of Triton is not supported"),
    (r"/(openapi|swagger)(\.json|/\S*)?|/redoc", "the OpenAPI document is GET /docs.json"),
)  # fmt: skip
_VERB = re.compile(r"/v1/models/[^/]+:(?!predict\Z)(?P<verb>\w+)")
_UNVERSIONED = re.compile(r"/images/(generations|edits)")  # which look like ids of pictures
_SHOWN = 100
_SIMILAR = 0.75


async def no_such_route(request: Request, error: Exception) -> Response:
    """The response to a 404 or 405 of Starlette's, of which this app is the handler."""
    if not isinstance(error, HTTPException):
        raise error
    verb = _VERB.fullmatch(request.url.path)
    is_other = verb is not None or _UNVERSIONED.fullmatch(request.url.path) is not None
    if error.status_code == 405 and not is_other:
        detail = {"detail": f"{request.method} is not allowed here"}
        return JSONResponse(detail, 405, headers=error.headers)
    paths = [route.path for route in request.app.routes if isinstance(route, Route)]
    return JSONResponse({"detail": no_route(request.method, request.url.path, paths)}, 404)


def no_route(method: str, path: str, known: Iterable[str]) -> str:
    """The message about an address that there is not. `known` are the addresses that there are."""
    return f"no route {method} {path[:_SHOWN]}{pointer(method, path, (*known, *NATIVE))}"


def pointer(method: str, path: str, known: Iterable[str]) -> str:
    """Where to go instead of `path`, as the end of a sentence; empty if there is nothing to say.

    Args:
        method: of the call.
        path: of the call.
        known: the addresses that there are.
    """
    path = path[:_SHOWN].rstrip("/")
    if path in NATIVE:
        return "; it takes POST" if method != "POST" else "; it has no slash at its end"
    if (verb := _VERB.fullmatch(path)) is not None:
        return f"; a model has :predict, and no :{verb['verb']}"
    for pattern, hint in _ELSEWHERE:
        if re.fullmatch(pattern, path):
            return f"; {hint}"
    close = difflib.get_close_matches(path, list(known), n=1, cutoff=_SIMILAR)
    return f"; the nearest is {close[0]}" if close else ""
