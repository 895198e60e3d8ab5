"""What is refused before JSON is parsed, and what the parser is left to tell."""

from __future__ import annotations

import json

import pytest

from sdxl_bento.errors import InvalidInput
from sdxl_bento.protocols.http.bodies import read_json
from sdxl_bento.protocols.http.errors import MalformedBody
from sdxl_bento.protocols.http.json_bounds import (
    _STEP,
    MAX_DEPTH,
    MAX_NAME_CHARS,
    MAX_VALUES,
    check_json,
)


@pytest.mark.parametrize(
    ("body", "field", "allowed"),
    [
        ('{"width": 1e999}', "width", "a finite number"),
        ('{"a": {"width" : -1e999}}', "width", "a finite number"),
        ('{"seed": 999999999999999999999}', "seed", "a number of at most 20 digits"),
        (f'{{"seed": -{"9" * 4000}}}', "seed", "a number of at most 20 digits"),
        (f'{{"a": 1, "loras": [0.{"1" * 70}]}}', "loras", "or 64 characters"),
        (f"{'1' * 4000}", "body", "a number of at most 20 digits"),
        (" " * (_STEP - 5) + "9" * 22, "body", "a number of at most 20 digits"),
    ],
)
def test_a_number_is_refused_with_its_field(body: str, field: str, allowed: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_json(body.encode())
    assert type(caught.value) is InvalidInput
    assert caught.value.field == field
    assert allowed in caught.value.allowed


@pytest.mark.parametrize(
    ("body", "allowed"),
    [
        (b"[" * (MAX_DEPTH + 1), "nested at most 64 levels"),
        (b'{"a":' * (MAX_DEPTH + 1), "nested at most 64 levels"),
        (b"[" + b"1," * (MAX_VALUES + 1) + b"1]", f"at most {MAX_VALUES} values"),
        (b'""' * (4 * MAX_VALUES + 1), f"at most {MAX_VALUES} values"),
        (b'{"%s": 1}' % (b"a" * (MAX_NAME_CHARS + 1)), f"names of at most {MAX_NAME_CHARS} bytes"),
    ],
)
def test_too_much_is_refused(body: bytes, allowed: str) -> None:
    with pytest.raises(MalformedBody) as caught:
        check_json(body)
    assert caught.value.field == "body"
    assert allowed in caught.value.allowed


@pytest.mark.parametrize(
    "body",
    [
        b"[" * MAX_DEPTH + b"]" * MAX_DEPTH,
        b"[" + b"1," * (MAX_VALUES - 2) + b"1]",
        b'{"seed": 18446744073709551615, "x": -1.5e-300, "y": 0.1}',
        json.dumps({"prompt": "9" * 5000 + '\\"[[[[[1e999 \\' * 100}).encode(),
        b'{"%s": 1}' % (b"a" * MAX_NAME_CHARS),
        json.dumps({"a": '"' * 200_000}).encode(),
    ],
)
def test_what_is_within_the_bounds_is_parsed(body: bytes) -> None:
    assert read_json(body) == json.loads(body)


@pytest.mark.parametrize("body", [b'"a', b'"\\', b"1-2", b"}" * 100, b"{,", b"\xff", b'"\\ud800"'])
def test_what_is_no_json_is_told_by_the_parser(body: bytes) -> None:
    check_json(body)
    with pytest.raises(MalformedBody, match="this is wrong"):
        read_json(body)
