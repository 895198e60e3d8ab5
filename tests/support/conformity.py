"""Checks that calls and answers conform to the OpenAPI document."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import httpx
import jsonschema_rs

from sdxl_bento.protocols.openapi import document

JSON = "application/json"


def check(response: httpx.Response) -> None:
    """A hook for httpx's clients: fails if a response, or a call that succeeded, is not described.

    Addresses that the document does not have are not checked.
    """
    path = described_path(response.request.url.path)
    if path is None:
        return
    operation = document()["paths"][path].get(response.request.method.lower())
    if operation is None:
        return
    response.read()
    kind = response.headers.get("content-type", "").partition(";")[0]
    described = operation["responses"][str(response.status_code)].get("content")
    if described is not None:
        assert kind in described, f"{path} answers {kind}"
    if kind == JSON and described is not None and "schema" in described[kind]:
        validate(described[kind]["schema"], response.json())
    sent = response.request.headers.get("content-type", JSON)
    body = operation.get("requestBody", {}).get("content", {}).get(JSON, {}).get("schema")
    if response.status_code == 200 and not response.request.content:
        assert not operation.get("requestBody", {}).get("required"), f"{path} needs no body"
    if response.status_code == 200 and sent == JSON and body and response.request.content:
        validate(body, json.loads(response.request.content))


def validate(schema: dict[str, Any], value: object) -> None:
    """Fails if a value does not match a schema of the document."""
    errors = [
        f"{error.instance_path}: {error.message[:200]}"
        for error in _validator(json.dumps(schema)).iter_errors(value)
    ]
    assert not errors, "; ".join(errors)


@cache
def described_path(path: str) -> str | None:
    """The template of the document that an address matches, one without parameters first."""
    for template in sorted(document()["paths"], key=lambda each: each.count("{")):
        pattern = re.sub(r"\\\{\w+\\\}", "[^/]+", re.escape(template))
        if re.fullmatch(pattern, path):
            return str(template)
    return None


@cache
def _validator(schema: str) -> jsonschema_rs.Draft202012Validator:
    # A reference is looked up in the schema itself, so that needs the document's components.
    whole = {**json.loads(schema), "components": document()["components"]}
    return jsonschema_rs.Draft202012Validator(whole)
