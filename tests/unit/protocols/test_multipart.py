"""Forms with files, read from a complete body."""

from __future__ import annotations

import pytest

from sdxl_bento.protocols.http import multipart
from sdxl_bento.protocols.http.multipart import BrokenForm, Part, boundary_of, parts_of

HEAD = b'Content-Disposition: form-data; name="a"'


def parts(body: bytes) -> list[Part]:
    return parts_of(body, b"B", 100)


def test_parts() -> None:
    body = (
        b"a preamble\r\n--B\r\n" + HEAD + b"\r\n\r\n1\r\n--B\r\n"
        b'content-disposition : form-data; filename="x.png"; name="\xc3\xa4"\r\n'
        b"Content-Type: image/png\r\n\r\n\r\n--Bx\n--B\r\n--B--\r\nan epilogue"
    )
    assert parts(body.replace(b"--Bx", b"--C")) == [
        Part("a", b"1", False),
        Part("ä", b"\r\n--C\n--B", True),
    ]
    assert parts(b"--B--") == []
    latin = b'--B\r\nContent-Disposition: form-data; name="\xe4"\r\n\r\n\r\n--B--'
    assert parts(latin) == [Part("ä", b"", False)]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "before every part"),
        (b"--C\r\n", "before every part"),
        (b"--B", "a line's end behind every boundary"),
        (b"--Bx\r\n", "a line's end behind every boundary"),
        (b"--B\r\n" + HEAD + b"\r\n\r\n1", "two dashes at its end"),
        (b"--B\r\n" + HEAD + b"\r\n--B--", "headers of at most 2048 bytes"),
        (b"--B\r\n" + HEAD + b"a" * 3000 + b"\r\n\r\n1\r\n--B--", "headers of at most 2048 bytes"),
        (b"--B\r\nX: y\r\n\r\n1\r\n--B--", 'a "name" in every part'),
        (b"--B\r\n" + HEAD + b"\r\n\r\n" + b"x" * 101 + b"\r\n--B--", "at most 100 bytes"),
        (b"".join([b"--B\r\n" + HEAD + b"\r\n\r\n1\r\n"] * 65) + b"--B--", "and 64 fields"),
    ],
)
def test_what_is_no_form(body: bytes, why: str) -> None:
    with pytest.raises(BrokenForm, match=why):
        parts(body)


def test_boundaries() -> None:
    assert boundary_of("multipart/form-data; boundary=a-b; charset=punycode") == b"a-b"
    assert boundary_of('multipart/form-data; Charset=x; Boundary="a b"') == b"a b"
    for wrong in (
        "multipart/form-data",
        "x; boundary=",
        'x; boundary=""',
        "x; boundary=" + "a" * 71,
    ):
        with pytest.raises(BrokenForm, match="a boundary of 1 to 70 characters"):
            boundary_of(wrong)


@pytest.mark.parametrize("before", range(-6, 3))
def test_a_boundary_may_be_anywhere(before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "_STEP", 64)
    begin = b"--B\r\n" + HEAD + b"\r\n\r\n"
    data = b"x" * (5 * 64 + 7 - len(begin) % 64 + before)
    assert parts_of(begin + data + b"\r\n--B--", b"B", 999) == [Part("a", data, False)]
