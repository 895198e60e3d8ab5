"""The elements of the OpenAPI document, and that answers match the schemas of their types."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from sdxl_bento import errors
from sdxl_bento.params import GenerateParams
from sdxl_bento.protocols.http import operations as op
from sdxl_bento.protocols.http.bodies import FIELD_HEADERS, PICTURE_FIELDS
from sdxl_bento.protocols.http.envelopes import KServeError, NativeError
from sdxl_bento.protocols.http.errors import MalformedBody, MalformedRequest, error_body
from sdxl_bento.protocols.http.native_fields import aliases
from sdxl_bento.protocols.http.schemas import answer_components, request_components
from sdxl_bento.protocols.openapi import PROTOCOLS, TAGS, document
from tests.support import conformity


def test_objects() -> None:
    names = {"a": op.STRING, "b": op.NUMBER}
    assert op.open_object(names) == {"type": "object", "properties": names, "required": ["a", "b"]}
    assert op.open_object(names, required=["b"])["required"] == ["b"]
    assert op.open_object(names, required=[])["required"] == []
    assert op.closed_object(names, required=["a"]) == {
        "type": "object",
        "properties": names,
        "required": ["a"],
        "additionalProperties": False,
    }
    assert op.closed_object(names)["required"] == []


def test_other_schemas() -> None:
    assert op.array_of(op.STRING, minItems=1) == {
        "type": "array",
        "items": {"type": "string"},
        "minItems": 1,
    }
    assert op.ref("X") == op.ref(type("X", (), {})) == {"$ref": "#/components/schemas/X"}
    types = {"STRING": "string", "INTEGER": "integer", "NUMBER": "number", "BOOLEAN": "boolean"}
    for name, kind in types.items():
        assert getattr(op, name) == {"type": kind}


def test_fields_of_pictures() -> None:
    texts = {name: text for name, (text, _) in PICTURE_FIELDS.items()}
    form, body = op.picture_fields(op.FORM), op.picture_fields(op.JSON)
    assert form["image"] == {"description": texts["image"]}
    base64 = {"type": ["string", "null"], "contentEncoding": "base64"}
    assert body["image"] == base64 | {"description": texts["image"]}
    text = {"type": ["string", "null"], "description": texts["image_id"]}
    assert form["image_id"] == body["image_id"] == text
    assert set(form) == set(body) == set(PICTURE_FIELDS)


@pytest.mark.parametrize(
    ("schema", "nullable"),
    [
        ({"type": "string", "maxLength": 5}, {"type": ["string", "null"], "maxLength": 5}),
        (
            {"type": "string", "enum": ["a"]},
            {"anyOf": [{"type": "string", "enum": ["a"]}, {"type": "null"}]},
        ),
        (
            {"type": ["string", "number"]},
            {"anyOf": [{"type": ["string", "number"]}, {"type": "null"}]},
        ),
        ({"$ref": "x"}, {"anyOf": [{"$ref": "x"}, {"type": "null"}]}),
    ],
)
def test_nullable(schema: Any, nullable: Any) -> None:
    assert op.nullable(schema) == nullable


def test_contents() -> None:
    assert op.media("a/b") == {"a/b": {}}
    assert op.media("a/b", op.STRING, 5) == {"a/b": {"schema": op.STRING, "example": 5}}
    assert op.media("a/b", op.STRING) == {"a/b": {"schema": op.STRING}}
    assert set(op.picture_content()) == {"image/png", "image/webp", "image/jpeg"}
    [(kind, entry)] = op.event_content("a", "b").items()
    assert (kind, entry["schema"]["required"]) == ("text/event-stream", ["event", "data"])
    assert entry["schema"]["properties"]["event"]["enum"] == ["a", "b"]


def test_bodies_and_responses() -> None:
    contents = op.media("a/b"), op.media("c/d")
    assert op.request_body(*contents) == {"required": True, "content": {"a/b": {}, "c/d": {}}}
    assert op.request_body(required=False)["required"] is False
    assert op.response("t") == {"description": "t"}
    assert op.response("t", *contents, headers={"X": 1}) == {
        "description": "t",
        "headers": {"X": 1},
        "content": {"a/b": {}, "c/d": {}},
    }


def test_parameters() -> None:
    about = {"name": "n", "description": "t", "schema": {"type": "string"}}
    assert op.parameter("n", "path", "t") == about | {"in": "path", "required": True}
    assert op.parameter("n", "query", "t") == about | {"in": "query"}
    assert op.header("t", op.INTEGER) == {"description": "t", "schema": {"type": "integer"}}


def test_headers_have_the_bounds_of_their_fields() -> None:
    headers = {each["name"]: each for each in op.CALL_HEADERS}
    assert {"X-Request-Id", "Cache-Control", *FIELD_HEADERS} == set(headers)
    assert headers["X-SLO-MS"]["schema"] == {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 3600000,
    }
    assert headers["X-Priority"]["schema"] == {"type": "integer", "minimum": -10, "maximum": 10}
    assert all(each["in"] == "header" for each in headers.values())


def test_an_operation() -> None:
    protocol = op.Protocol("T", KServeError)
    fails = (errors.ModelNotFound, errors.InvalidInput, errors.NotReady, errors.ImageNotFound)
    operation = protocol.get("s", {"description": "ok"}, fails=fails)["get"]
    assert (operation["tags"], operation["summary"]) == (["T"], "s")
    assert "parameters" not in operation
    assert "requestBody" not in operation
    responses = operation["responses"]
    assert list(responses) == ["200", "400", "404", "422", "429", "500", "503"]
    assert responses["200"] == {"description": "ok"}
    assert responses["404"]["description"] == (
        "There is no such model. There is no such picture, or no longer."
    )
    assert responses["404"]["content"] == op.media("application/json", op.ref(KServeError))
    with_retry = {status for status in responses if "headers" in responses[status]}
    assert with_retry == {"429", "503"}
    assert list(responses["503"]["headers"]) == ["Retry-After"]


def test_a_post_may_come_from_elsewhere() -> None:
    protocol = op.Protocol("T", KServeError)
    more = {"body": op.request_body(), "parameters": [op.MODEL], "fails": (MalformedBody,)}
    operation = protocol.post("s", {}, **more)["post"]
    assert list(operation["responses"]) == ["200", "400", "403", "408", "413", "429", "500"]
    assert (operation["parameters"], operation["requestBody"]) == ([op.MODEL], op.request_body())
    texts = (MalformedBody.__doc__ or "").strip(), (MalformedRequest.__doc__ or "").strip()
    assert operation["responses"]["400"]["description"] == " ".join(texts)


def test_components() -> None:
    assert set(request_components()) == {"GenerateParams", "LoraRef"}
    fields = request_components()["GenerateParams"]["properties"]
    assert set(fields) == {*GenerateParams.model_fields, *aliases()}
    assert fields["steps"]["maximum"] == fields["num_inference_steps"]["maximum"]
    components = answer_components(NativeError)
    assert set(components) == {"NativeError", "ErrorDetail"}
    assert components["NativeError"]["description"] == (NativeError.__doc__ or "")
    detail = components["ErrorDetail"]
    assert set(detail["required"]) == set(error_body(ValueError())["error"])
    assert set(detail["properties"]) == {*detail["required"], "retry_after_s"}


@pytest.mark.parametrize("path", document()["paths"])
def test_examples_match_their_schemas(path: str) -> None:
    for operation in document()["paths"][path].values():
        for entry in operation.get("requestBody", {}).get("content", {}).values():
            if "example" in entry:
                conformity.validate(entry["schema"], entry["example"])


EXAMPLES = {
    path: entry["example"]
    for path, item in document()["paths"].items()
    for operation in item.values()
    for kind, entry in operation.get("requestBody", {}).get("content", {}).items()
    if "example" in entry and kind == op.JSON
}


@pytest.mark.parametrize("path", EXAMPLES)
def test_examples_are_answered(http: TestClient, path: str) -> None:
    example = json.loads(json.dumps(EXAMPLES[path]).replace(" <lora:striped:0.8>", ""))
    if "image_id" in example:
        stored = http.post("/generate", json={"prompt": "quick"})
        example["image_id"] = stored.headers["x-image-id"]
    answer = http.post(path.format(model="fake", version="1"), json=example)
    assert answer.status_code == 200, answer.text


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if "$ref" in node else set()
        return own.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


def test_the_document() -> None:
    named = {f"#/components/schemas/{name}" for name in document()["components"]["schemas"]}
    assert references(document()) <= named
    assert named == references(document()) | {  # nothing is there in vain
        f"#/components/schemas/{protocol.error.__name__}" for protocol in TAGS
    }
    assert [tag["name"] for tag in document()["tags"]] == [each.tag for each in TAGS]
    params = request_components()["GenerateParams"]
    count = sum(len(protocol.paths(params)) for protocol in PROTOCOLS)
    assert len(document()["paths"]) == count  # no two protocols have the same path
    tags = {
        tag
        for item in document()["paths"].values()
        for operation in item.values()
        for tag in operation["tags"]
    }
    assert tags == {each.tag for each in TAGS}
