"""The OpenAPI document at /docs.json: every route of every protocol.

BentoML would make one of its own routes, with its own errors. This one is made here, so that it
says what is really answered; tests/contracts/test_openapi.py holds the server to it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from sdxl_bento import __version__
from sdxl_bento.protocols.a1111 import schema as a1111
from sdxl_bento.protocols.http import schemas
from sdxl_bento.protocols.kserve import schema as kserve
from sdxl_bento.protocols.native import schema as native
from sdxl_bento.protocols.openai import schema as openai

OPENAPI = "3.1.0"
TAGS = (native.NATIVE, openai.OPENAI, kserve.V1, kserve.V2, a1111.A1111, native.PROBES)
DESCRIPTION = """\
Stable Diffusion XL: text to image, image to image, refiner and LoRAs, in five protocols.

The native one takes a flat JSON object. One picture comes back as it is, several as JSON with \
base64; `Accept: application/json` asks for JSON in any case. Numbers may come as text, as in \
forms. The statuses of errors are the same in all protocols, their bodies each one's own.
"""


@cache
def document() -> dict[str, Any]:
    """The document, as JSON can hold it. Not to be changed: all callers share it."""
    components = schemas.components()
    params = components["GenerateParams"]
    paths = {
        path: item
        for protocol in (native, openai, kserve, a1111)
        for path, item in protocol.paths(params).items()
    }
    return {
        "openapi": OPENAPI,
        "info": {"title": "sdxl-bento", "version": __version__, "description": DESCRIPTION},
        "servers": [{"url": "."}],  # also under a proxy's prefix
        "tags": [{"name": protocol.tag} for protocol in TAGS],
        "paths": paths,
        "components": {"schemas": components},
    }
