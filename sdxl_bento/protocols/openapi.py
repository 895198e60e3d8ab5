"""The OpenAPI document at /docs.json: every route of every protocol.

BentoML generates a document for its own routes only, with its own errors. This one describes what
is really answered; tests/contracts/test_openapi.py compares it with a running server.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sdxl_bento import __version__
from sdxl_bento.protocols.a1111 import schema as a1111
from sdxl_bento.protocols.http.schemas import request_components
from sdxl_bento.protocols.kserve.v1 import schema as kserve_v1
from sdxl_bento.protocols.kserve.v2 import schema as kserve_v2
from sdxl_bento.protocols.native import schema as native
from sdxl_bento.protocols.openai import schema as openai

OPENAPI = "3.1.0"
PROTOCOLS = (native, openai, kserve_v1, kserve_v2, a1111)
TAGS = (native.NATIVE, openai.OPENAI, kserve_v1.V1, kserve_v2.V2, a1111.A1111, native.PROBES)
DESCRIPTION = """\
Stable Diffusion XL: text to image, image to image, refiner and LoRAs, in five protocols.

Requests of the native protocol are flat JSON objects. One picture is answered by its file, \
several are answered as JSON with base64. With `Accept: application/json` the answer is always \
JSON. Numbers may be sent as text, as in forms. The statuses of errors are the same in all \
protocols; the bodies of errors are those of each protocol.
"""


@cache
def document() -> dict[str, Any]:
    """The document as JSON. It must not be changed, because all callers share it."""
    components = request_components()
    params = components["GenerateParams"]
    paths: dict[str, Any] = {}
    for protocol in PROTOCOLS:
        components |= protocol.components()
        paths |= protocol.paths(params)
    return {
        "openapi": OPENAPI,
        "info": {"title": "sdxl-bento", "version": __version__, "description": DESCRIPTION},
        "servers": [{"url": "."}],  # relative, so that it is right behind a proxy's prefix too
        "tags": [{"name": protocol.tag} for protocol in TAGS],
        "paths": paths,
        "components": {"schemas": components},
    }
