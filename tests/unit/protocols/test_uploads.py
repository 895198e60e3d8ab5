"""Files of pictures in JSON and in forms, as people write them."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest

from sdxl_bento.errors import InvalidInput
from sdxl_bento.protocols.http import bodies
from sdxl_bento.protocols.http.errors import BodyTooLarge
from sdxl_bento.protocols.http.uploads import ALLOWED, picture_bytes

DATA = bytes(range(256)) * 3 + b"\xfb\xff\xfe"
TEXT = base64.b64encode(DATA).decode()


@pytest.mark.parametrize(
    "text",
    [
        TEXT,
        base64.encodebytes(DATA).decode(),  # as `base64 FILE` writes it
        TEXT.replace("A", "A\r\n\t"),
        f"\n {TEXT} \n",
        base64.urlsafe_b64encode(DATA).decode(),
        f"data:image/png;base64,{TEXT}",
        f" data:IMAGE/x-any;name=a.png;BASE64,{TEXT}\n",
        f"data:application/octet-stream;base64,{TEXT}",
        f"data:;base64,{TEXT}",
    ],
)
def test_base64_in_all_its_forms(text: str) -> None:
    assert picture_bytes(text) == DATA


def test_padding_may_be_left_out() -> None:
    for size in range(1, 10):
        text = base64.b64encode(DATA[:size]).decode()
        for padding in ("", "=", "==", "\n="):
            assert picture_bytes(text.rstrip("=") + padding) == DATA[:size]


def test_a_form_brings_the_file_itself() -> None:
    assert picture_bytes(b"\xff") == b"\xff"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("iVBO*w0K", "character 5 is '*', which base64 does not have there"),
        ("data:image/png;base64,iVé=", "character 25 is 'é', which base64 does not have there"),
        ("iVBO\niV=O\n", "character 8 is '=', which base64 does not have there"),
        ("iV=", None),
        ("=iVBO", "character 1 is '=', which base64 does not have there"),
        ("iV BO", "character 3 is ' ', which base64 does not have there; in a form, + has to be "
         "written as %2B"),
        ("iVBOR", "its 5 characters end within a byte, so it was cut"),
        ("", "this is empty"),
        ("data:image/png;base64,", "this is empty"),
        ("https://example.org/a.png", "addresses are not fetched, and data URLs are those of "
         "pictures"),
        ("C:\\a.png", "addresses are not fetched, and data URLs are those of pictures"),
        ("/home/me/a.png", "character 11 is '.', which base64 does not have there"),
        ("data:text/plain;base64,/w==", "addresses are not fetched, and data URLs are those of "
         "pictures"),
        ("data:image/svg+xml,%3Csvg", "this data URL is not in base64"),
        ("data:image/png;base64", "addresses are not fetched, and data URLs are those of pictures"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(value: str, reason: str | None) -> None:
    if reason is None:
        assert picture_bytes(value) == b"\x89"
        return
    with pytest.raises(InvalidInput) as caught:
        picture_bytes(value, "mask")
    assert (caught.value.field, caught.value.value) == ("mask", value)
    assert caught.value.allowed == f"{ALLOWED}; {reason}"


@pytest.mark.parametrize("value", [5, None, True, ["iVBO"], {"b64": "iVBO"}])
def test_only_text_and_files(value: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        picture_bytes(value)
    assert (caught.value.value, caught.value.allowed) == (value, ALLOWED)


def test_the_largest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces fit together wherever lines break, and a wrong character is found in any of them."""
    most = bodies.MAX_UPLOAD_BYTES
    line = TEXT[:73].rstrip("=") + "\n"
    text = line * (most // len(line))
    begin = time.process_time()
    data = picture_bytes(text)
    assert data == base64.b64decode(text.replace("\n", "") + "===")
    for value in (text[:-2] + "*", text[:-2] + "=" * 2, "=" * (most - 1) + "*"):
        with pytest.raises(InvalidInput) as wrong:
            picture_bytes(value + "A" if value.endswith("=") else value)
        assert len(str(wrong.value.value)) == 200
    assert time.process_time() - begin < 10  # linear: a quadratic search would take hours
    monkeypatch.setattr(bodies, "MAX_UPLOAD_BYTES", 4)
    assert picture_bytes("/w==") == b"\xff"
    with pytest.raises(BodyTooLarge) as large:
        picture_bytes("/w===")
    assert (large.value.field, large.value.value) == ("image", "5 characters")
    assert large.value.allowed == "at most 4"
