"""For `fuzz`: the body of each kind that takes longest to read, at the largest size allowed."""

from __future__ import annotations

import json
from collections.abc import Iterator

from benchmarks.fuzz_requests import MARK, PROMPT, Sent

MIB = 1 << 20
JSON = b"application/json"
FORM = b"multipart/form-data; boundary=B"
SIMPLE = b"application/x-www-form-urlencoded"
# A body's size, and a route that takes it.
SMALL, BATCH, UPLOAD = (MIB, "/generate"), (16 * MIB, "/generate_batch"), (32 * MIB, "/img2img")
INFER, PREDICT = (16 * MIB, "/v2/models/fake/infer"), (16 * MIB, "/v1/models/fake:predict")


def worst_requests(*, page: bool) -> Iterator[tuple[str, Sent]]:
    """The kinds, each with its request. `page`: Gradio's routes are among them."""
    for size, path in (SMALL, BATCH):
        for name, data in _json(size).items():
            yield f"{name} {path}", _sent(path, JSON, data)
    for size, path in (UPLOAD, INFER):
        kinds = _json(size)
        for name in ("json: brackets", "json: escapes", "json: a picture", "json: a text"):
            yield f"{name} {path}", _sent(path, JSON, kinds[name])
    for size, path in (SMALL, UPLOAD):
        for name, data in _multipart(size).items():
            yield f"form: {name} {path}", _sent(path, FORM, data)
        for name, data in _simple(size).items():
            yield f"urlencoded: {name} {path}", _sent(path, SIMPLE, data)
    size, path = INFER
    for name, data, length in _tensors(size):
        header = (b"inference-header-content-length", b"%d" % length)
        yield f"tensors: {name}", _sent(path, b"application/octet-stream", data, header)
    size, path = PREDICT
    yield "instances", _sent(path, JSON, _filled(b'{"instances": [', b'"",', b'""]}', size))
    for name, text in (("tags", "<lora:a:1>"), ("open tags", "<lora:"), ("weights", "<lora:a:1:1")):
        data = json.dumps({"prompt": text * (MIB // len(text) - 9)}).encode()
        yield f"prompt: {name}", _sent("/sdapi/v1/txt2img", JSON, data)
    yield "query", Sent("GET", "/sdapi/v1/progress", [], [b""], b"a&" * 4000)
    headers = [(b"x-%d" % index, b"x") for index in range(4000)]
    yield "headers", Sent("GET", "/models", headers, [b""])
    for name, data in _multipart(33 * MIB).items() if page else ():
        yield f"page: {name}", _sent("/ui/gradio_api/upload", FORM, data)
    for name, data in _json(MIB).items() if page else ():
        yield f"page: {name}", _sent("/ui/gradio_api/queue/join", JSON, data)


def _json(size: int) -> dict[str, bytes]:
    whole = size - 4096
    return {
        "json: brackets": b"[" * whole,
        "json: lists": _filled(b"[", b"[],", b"1]", whole),
        "json: allowed lists": _filled(b'{"prompt": [', b"[],", b"1]}", 3 * 30_000),
        "json: allowed names": b"{%s}" % b",".join(b'"%08d":{}' % i for i in range(16_000)),
        "json: numbers": _filled(b"[", b"1,", b"1]", whole),
        "json: a number": b'{"seed": ' + b"9" * whole + b"}",
        "json: texts": _filled(b"[", b'"",', b'""]', whole),
        "json: a text": _filled(b'{"prompt": "', b"a", b'"}', whole),
        "json: escapes": _filled(b'{"prompt": "', b'\\"', b'"}', whole),
        "json: unicode": _filled(b'{"prompt": "', b"\\u00e9", b'"}', whole),
        "json: a picture": _filled(b'{"prompt": "a", "image": "', b"AAAA", b'"}', whole),
        "json: a name": _filled(b'{"', b"a", b'": 1}', whole),
        "json: blanks": b" " * whole,
        "json: colons": b":" * whole,
        "json: bytes": b"\xff" * whole,
    }


def _multipart(size: int) -> dict[str, bytes]:
    whole = size - 4096
    head = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    field = b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'
    end = b"\r\n--B--\r\n"
    return {
        "brackets": _filled(b'--B\r\nContent-Disposition: form-data; name="a', b"[]", b'"', whole),
        "quotes": _filled(b"--B\r\nContent-Disposition: form-data; ", b'a=";', b"", whole),
        "header lines": _filled(b"--B\r\n", b"a: b\r\n", b"", whole),
        "parts": _filled(b"", field, b"--B--", whole),
        "lines": _filled(head, b"\r\n", end, whole),
        "almost boundaries": _filled(head, b"\r\n--", end, whole),
        "no end": head + b"\r\n-" * (whole // 3),
        "a file": _filled(head, b"a", end, whole),
    }


def _simple(size: int) -> dict[str, bytes]:
    whole = size - 4096
    return {
        "fields": b"a=1&" * (whole // 4),
        "brackets": b"a" + b"[]" * (whole // 2) + b"=1",
        "escapes": b"prompt=" + b"%41" * (whole // 3),
        "pluses": b"prompt=" + b"+" * whole,
        "json": b"loras=" + b"[" * whole,
    }


def _tensors(size: int) -> Iterator[tuple[str, bytes, int]]:
    whole = size - 65_536

    def head(datatype: str, shape: list[int], count: int, **more: object) -> bytes:
        tensor = {"name": "prompt", "datatype": datatype, "shape": shape, **more}
        if count:
            tensor["parameters"] = {"binary_data_size": count}
        return json.dumps({"id": MARK, "inputs": [tensor]}).encode()

    for name, datatype, raw in (
        ("empty texts", "BYTES", b"\0" * whole),
        ("one-byte texts", "BYTES", b"\1\0\0\0a" * (whole // 5)),
        ("a text", "BYTES", whole.to_bytes(4, "little") + b"a" * whole),
        ("numbers", "UINT8", b"\1" * whole),
        ("floats", "FP16", b"\0\x7e" * (whole // 2)),
    ):
        header = head(datatype, [len(raw)], len(raw))
        yield name, header + raw, len(header)
    for name, shape in (
        ("dimensions", [10**19] * 4000),
        ("a dimension", [2**63]),
    ):
        header = head("BYTES", shape, 0, data=[PROMPT])
        yield name, header, len(header)
    inputs = [{"name": "seed", "datatype": "INT64", "shape": [0], "data": []}] * 3000
    header = json.dumps({"inputs": inputs}).encode()
    yield "inputs", header, len(header)


def _sent(path: str, kind: bytes, data: bytes, *more: tuple[bytes, bytes]) -> Sent:
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(data)), *more]
    pieces = [data[begin : begin + 65_536] for begin in range(0, len(data), 65_536)]
    return Sent("POST", path, headers, pieces)


def _filled(begin: bytes, item: bytes, end: bytes, size: int) -> bytes:
    return begin + item * ((size - len(begin) - len(end)) // len(item)) + end
