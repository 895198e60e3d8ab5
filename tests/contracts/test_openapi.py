"""The OpenAPI document: valid, complete, and what a running server keeps to.

schemathesis makes calls from the document, right ones and wrong ones, and looks at the answers:
`SDXL_OPENAPI_EXAMPLES=200 pytest tests/contracts/test_openapi.py` for many more of them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import httpx
import pytest
import requests
import schemathesis
from openapi_spec_validator import validate
from schemathesis.config import SchemathesisConfig
from starlette.routing import Route

from sdxl_bento.app import web_app
from sdxl_bento.protocols.http.errors import STATUS
from sdxl_bento.protocols.openapi import document
from tests.support.server import FAKED, ROOT, Server, faked_environment, serve

REFERENCE = ROOT / "docs" / "reference" / "protocols.md"
# Those of BentoML's that are not methods of the service. Its files for /docs are no part of an API.
BENTOML = {"/livez", "/healthz", "/readyz", "/metrics", "/schema.json"}
MANY = "SDXL_OPENAPI_EXAMPLES" in os.environ
# Their bodies are those of other routes, for which every bound of every field is tried.
ALIKE = (
    *("/generate/stream", "/img2img", "/refine", "/v1/images/edits"),
    "/v2/models/{model}/versions/{version}/infer",
)
CONFIG = {
    "generation": {
        "deterministic": not MANY,
        "max-examples": int(os.environ.get("SDXL_OPENAPI_EXAMPLES", "3")),
        "allow-extra-parameters": False,  # unknown headers are nothing to refuse
        "database": "none",
    },
    "parameters": {"path.model": "fake"},
    # What a schema cannot say is refused, too: that is no picture, the model draws multiples of 8.
    "checks": {"positive_data_acceptance": {"enabled": False}},
    "operations": [
        {"include-path": path, "phases": {"coverage": {"enabled": MANY}}} for path in ALIKE
    ],
}
schema = schemathesis.openapi.from_dict(document(), config=SchemathesisConfig.from_dict(CONFIG))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Small pictures at once, for there are thousands of calls."""
    folder = tmp_path_factory.mktemp("openapi")
    env = faked_environment(
        folder / "home", FAKE_PREVIEWS=1, SDXL_MAX_PIXELS=96 * 96, SDXL_UI=False
    )
    with serve(FAKED, folder / "log", env=env) as running:
        yield running


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as made:
        yield made


@pytest.fixture(scope="module")
def image_id(server: Server) -> str:
    made = httpx.post(f"{server.url}/generate", json={"prompt": "quick"})
    return made.headers["x-image-id"]


def test_the_document_is_valid() -> None:
    validate(document())  # type: ignore[arg-type]


def test_every_route_is_in_it(server: Server) -> None:
    served = {(path, "get") for path in BENTOML}
    for route in httpx.get(f"{server.url}/schema.json").json()["routes"]:
        served.add((route["route"], "post"))
    for route in web_app().routes:
        if isinstance(route, Route):
            methods = (route.methods or set()) - {"HEAD"}
            served |= {(route.path, method.lower()) for method in methods}
    described = {(path, method) for path, item in document()["paths"].items() for method in item}
    assert described == served


def test_it_is_what_the_server_serves(server: Server) -> None:
    assert httpx.get(f"{server.url}/docs.json").json() == document()


def test_every_status_is_one_of_the_table() -> None:
    known = {"200", "307", *(str(int(status)) for status in STATUS.values())}
    for path, item in document()["paths"].items():
        for operation in item.values():
            assert set(operation["responses"]) <= known, path


def test_every_call_has_an_example() -> None:
    for path, item in document()["paths"].items():
        content = item.get("post", {}).get("requestBody", {}).get("content", {})
        if any(word in path for word in ("generat", "refine", "predict", "infer", "img")):
            assert any("example" in each for each in content.values()), path


@schema.parametrize()
def test_the_server_keeps_to_it(
    case: schemathesis.Case, server: Server, session: requests.Session, image_id: str
) -> None:
    if isinstance(case.body, dict) and isinstance(case.body.get("image_id"), str):
        case.body["image_id"] = image_id  # one that there is
    case.call_and_validate(base_url=server.url, session=session, timeout=20)


def test_the_reference_lists_every_route_under_its_protocol() -> None:
    sections = re.split(r"^## ", REFERENCE.read_text("utf-8"), flags=re.MULTILINE)
    listed = {
        (section.split("\n")[0], path, method.lower())
        for section in sections
        for method, path in re.findall(r"^\| `(GET|POST) (/\S*)`", section, re.MULTILINE)
    }
    listed -= {("KServe V1", "/v1/models/{model}:explain", "post")}  # which says that it is none
    described = {
        (operation["tags"][0], path, method)
        for path, item in document()["paths"].items()
        for method, operation in item.items()
    }
    assert listed == described
