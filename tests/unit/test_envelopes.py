"""Which protocol's clients get which body of an error."""

from __future__ import annotations

import pytest

from sdxl_bento.errors import InvalidInput, Overloaded
from sdxl_bento.protocols.http.envelopes import automatic1111, envelope_of, kserve, native, openai
from sdxl_bento.protocols.http.errors import error_body


@pytest.mark.parametrize(
    ("path", "envelope"),
    [
        ("/generate", native),
        ("/v1/images/generations", openai),
        ("/v1/models", openai),
        ("/v1/models/sdxl:1", openai),
        ("/v1/models/sdxl:predict", kserve),
        ("/v1/models/sdxl:1:predict", kserve),
        ("/v1", native),
        ("/v2", kserve),
        ("/v2/models/sdxl/infer", kserve),
        ("/v2x", native),
        ("/sdapi/v1/txt2img", automatic1111),
    ],
)
def test_paths(path: str, envelope: object) -> None:
    assert envelope_of(path) is envelope


def test_shapes() -> None:
    error = error_body(InvalidInput("width", 3, "a multiple of 8"), "r1")["error"]
    message = "width: got 3, allowed: a multiple of 8"
    assert native(error, 422) == {"error": error}
    assert openai(error, 422)["error"] == {
        "message": message,
        "type": "invalid_request_error",
        "param": "width",
        "code": "invalid_input",
    }
    assert kserve(error, 422) == {"error": message}
    assert automatic1111(error, 422)["detail"] == message


def test_whose_fault_it_is_in_the_words_of_openai() -> None:
    error = error_body(Overloaded("full", 3.0))["error"]
    kinds = [openai(error, status)["error"]["type"] for status in (404, 429, 503)]
    assert kinds == ["invalid_request_error", "rate_limit_error", "server_error"]
