"""Wrong requests for `fuzz`, made from right ones."""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

MARK = "Mk7Zq"  # in every text that only a caller knows
PROMPT = f"a red circle {MARK}"
SMALL = {"prompt": PROMPT, "width": 64, "height": 64, "num_inference_steps": 2, "seed": 1}

# JSON that stands in the place of a value. Some of it is no JSON at all.
HOSTILE = (
    *("1e999", "-1e999", "NaN", "Infinity", "-Infinity", "9" * 4000, "-" + "9" * 4000, "1e-999"),
    *("9" * 20, "-1", "0", "1.5", "0.1e1", "1e5", "true", "false", "null", '""', '"\\ud800"'),
    *('"\\u0000"', '"nan"', '"inf"', '"1e999"', '"²"', '"１"', f'"{"9" * 5000}"', '"NULL"'),
    *("[]", "{}", "[[]]", "[null]", "[" * 300 + "]" * 300, '{"a":' * 100 + "1" + "}" * 100),
    *(f'"{MARK}{"x" * 9000}"', f'{{"{MARK}": 1}}', f'["{MARK}"]', "18446744073709551616", '"\\n"'),
    *('"/../../etc/passwd"', '"<lora:x:1e999>"', '"<lora:x:y:z>"', '"data:image/png;base64,AA=="'),
    *("01", "+1", ".5", "1.", "0x10", "1_0", "'a'", "[1,]", "{,}", '{"a":1,"a":2}', "tru", "\x00"),
)
TYPES = (
    *("application/json", "multipart/form-data", "multipart/form-data; boundary=", "text/plain"),
    *(
        "application/x-www-form-urlencoded",
        "APPLICATION/JSON; charset=utf-16",
        "",
        ";",
        "a/b;" * 90,
    ),
    *("application/json;" + "x" * 300, "multipart/form-data; boundary=B; charset=punycode", "*/*"),
    *("application/vnd.bentoml+pickle", "multipart/mixed; boundary=B", "image/png", "json", "\xe9"),
)
NUMBERS = (
    *("nan", "inf", "1e999", "²", "-1", "0", "1", "9" * 5000, "", " ", "1,2", "true", "１", "1e3"),
    *("\xff", "0x1", "1_000", "+5", "5.0", "NaN"),
)
HEADERS = {
    b"x-slo-ms": NUMBERS,
    b"x-priority": NUMBERS,
    b"inference-header-content-length": NUMBERS,
    b"x-request-id": ("a" * 129, "a b", "\xff", "../x", "", "a\tb", MARK + "\x7f"),
    b"content-type": TYPES,
    b"content-length": NUMBERS,
    b"content-encoding": ("gzip", "identity", "\xff", ""),
    b"accept": ("*/*", "application/json", "\xff", "text/html", "a" * 5000),
    b"cache-control": ("no-store", "max-age=²", "\xff", "," * 3000),
    b"origin": ("http://[", "null", "http://x", "\xff", "http://a:99999", "//"),
    b"host": ("[", "a:b:c", "x:99999", "\xff", "", "a b", "x" * 300, "[::1]:80"),
    b"sec-fetch-site": ("cross-site", "\xff", "same-origin", "none"),
    b"user-agent": ("\\x\xff", MARK, "\xff" * 500),
    b"traceparent": ("\\x\xff", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "a", MARK),
    b"x-forwarded-for": ("\xff", MARK, "1.2.3.4", "::1, 5"),
    b"x-forwarded-proto": ("javascript", "https", "\xff"),
    b"x-forwarded-host": ("\xff", MARK, "a b"),
    b"x-forwarded-prefix": ("//", "/../x", "\xff", "/a" * 500),
    b"expect": ("100-continue", "\xff"),
    b"range": ("bytes=0-", "bytes=²-"),
    b"if-none-match": ("\xff", "*"),
    b"cookie": ("\xff", "a=b;" * 500, f"access-token={MARK}"),
}


@dataclass
class Sent:
    """One request. `pieces` are its body; it ends with the connection if it is not `complete`."""

    method: str
    path: str
    headers: list[tuple[bytes, bytes]]
    pieces: list[bytes]
    query: bytes = b""
    complete: bool = True

    def scope(self) -> dict[str, Any]:
        """The ASGI scope, as uvicorn makes it."""
        names = {name for name, _ in self.headers}
        host = [] if b"host" in names else [(b"host", b"test")]
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "server": ("127.0.0.1", 3000),
            "client": ("127.0.0.1", 40000),
            "scheme": "http",
            "method": self.method,
            "root_path": "",
            "path": self.path,
            "raw_path": quote(self.path).encode(),
            "query_string": self.query,
            "headers": [*host, *self.headers],
            "state": {},
        }

    def __str__(self) -> str:
        shown = b"".join(self.pieces)[:120]
        return f"{self.method} {self.path[:80]} {self.query[:40]!r} {shown!r}"


def png() -> bytes:
    """A grey picture of 64 x 64 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 65 * 64)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


PNG = png()
PNG64 = base64.b64encode(PNG).decode()
LORAS = [{"name": "striped", "scale": 0.5}]
TENSORS = [
    {"name": "prompt", "datatype": "BYTES", "shape": [2], "data": [PROMPT, PROMPT]},
    {"name": "seed", "datatype": "INT64", "shape": [2], "data": [1, 2]},
    {"name": "guidance_scale", "datatype": "FP32", "shape": [1], "data": [5.5]},
    {"name": "target_size", "datatype": "INT64", "shape": [1, 2], "data": [64, 64]},
]
BODIES: dict[str, tuple[Any, ...]] = {
    "/generate": (SMALL, SMALL | {"loras": LORAS, "slo_ms": 5e4, "output_format": "webp"}),
    "/generate/stream": (SMALL,),
    "/generate_batch": ({"requests": [SMALL, SMALL | {"seed": 2}]},),
    "/img2img": (SMALL | {"image": PNG64, "strength": 0.5}, SMALL | {"image_id": MARK}),
    "/refine": (SMALL | {"image": PNG64}, SMALL | {"id": "1-2"}),
    "/v1/images/generations": (
        {"prompt": PROMPT, "size": "64x64", "n": 1, "response_format": "url", "user": MARK},
        {"prompt": PROMPT, "size": "64x64", "stream": True, "partial_images": 1},
    ),
    "/v1/images/edits": ({"prompt": PROMPT, "size": "64x64", "image": [PNG64]},),
    "/v1/models/fake:predict": (SMALL, {"instances": [PROMPT, SMALL], "parameters": {"seed": 1}}),
    "/v2/models/fake/infer": (
        {"id": MARK, "inputs": TENSORS, "parameters": {"priority": 1, "timeout": 1_000_000}},
        {
            "inputs": TENSORS[:1],
            "outputs": [{"name": "pixels", "parameters": {"binary_data": True}}],
        },
    ),
    "/v2/models/fake/versions/1/infer": ({"inputs": TENSORS[:1]},),
    "/v2/repository/index": ({"ready": True}, {}),
    "/v2/repository/models/fake/load": ({}, {"parameters": {"a": "b"}}),
    "/v2/repository/models/fake/unload": ({},),
    "/sdapi/v1/txt2img": (
        {"prompt": PROMPT, "steps": 2, "width": 64, "height": 64, "sampler_name": "Euler a"},
        {"prompt": f"{MARK} <lora:striped:0.5>", "override_settings": {"samples_format": "jpg"}},
    ),
    "/sdapi/v1/img2img": ({"prompt": PROMPT, "init_images": [PNG64], "steps": 2},),
    "/sdapi/v1/options": ({"sd_model_checkpoint": "fake"},),
    "/sdapi/v1/interrupt": ({},),
    f"/cancel/{MARK}": ({},),
}
OF_PAGE: dict[str, tuple[Any, ...]] = {
    "/ui/gradio_api/queue/join": (
        {"data": [PROMPT, 1, None], "fn_index": 0, "session_hash": MARK, "trigger_id": 1},
    ),
    "/ui/gradio_api/cancel": ({"session_hash": MARK, "fn_index": 0, "event_id": MARK},),
    "/ui/gradio_api/reset": ({"event_id": MARK},),
    "/ui/gradio_api/upload": ({"files": MARK},),
}
LOOKUPS = (
    *("/", "/docs", "/docs.json", "/models", "/loras", "/samplers", "/stats", "/livez", "/readyz"),
    *(
        f"/images/{MARK}",
        f"/images/{MARK}/metadata",
        f"/download/{MARK}.png",
        "/metrics",
        "/healthz",
    ),
    *(
        "/v1/models",
        "/v1/models/fake",
        "/v2",
        "/v2/health/live",
        "/v2/health/ready",
        "/schema.json",
    ),
    *("/v2/models/fake", "/v2/models/fake/ready", "/v2/models/fake/versions/1", f"/{MARK}"),
    *("/sdapi/v1/progress", "/sdapi/v1/options", "/sdapi/v1/sd-models", "/sdapi/v1/samplers"),
    *("/sdapi/v1/schedulers", "/sdapi/v1/loras", "/sdapi/v1/scripts", "/v1/nothing", "/v2/nothing"),
)
PAGE_LOOKUPS = (
    *(
        "/ui/",
        "/ui/config",
        "/ui/theme.css",
        f"/ui/assets/{MARK}",
        "/ui/static/x",
        "/ui/favicon.ico",
    ),
    *("/ui/gradio_api/upload_progress", "/ui/gradio_api/info", "/ui/svelte/x"),
)
QUERIES = (
    *(b"", b"skip_current_image=true", b"skip_current_image=\xff", b"a=" + b"&a=" * 500, b"%"),
    *(b"upload_id=" + MARK.encode(), b"x" * 9000, b"task_id=1", b"__theme=dark", b"%ff%00=\0"),
)
PARTS = ("\0", "²", "ä", "\n", "..", "/", "%2f", ":", "{", "\U0001f600", "a" * 300, "*", "'", "\\")


def request_of(rng: random.Random, *, page: bool) -> Sent:
    """One request that depends on nothing but `rng`. `page`: Gradio's routes are among them."""
    if rng.random() < 0.15:
        return _lookup(rng, page)
    bodies = BODIES | OF_PAGE if page and rng.random() < 0.15 else BODIES
    path = rng.choice(list(bodies) if bodies is BODIES else list(OF_PAGE))
    document = json.loads(json.dumps(rng.choice(bodies[path])))
    kind = "application/json"
    way = rng.random()
    if path.endswith("/infer") and way < 0.35:
        data, length = _binary(rng, document)
        headers = [(b"inference-header-content-length", b"%d" % length)]
        kind = "application/octet-stream"
    elif way < 0.25 or path.endswith("/upload"):
        data, kind = _form(rng, document)
        headers = []
    else:
        data, headers = _json(rng, document), []
    for _ in range(rng.choice((0, 0, 0, 1, 3))):
        data = _changed(rng, data)
    headers = [(b"content-type", kind.encode("latin-1")), *headers]
    if rng.random() < 0.7:
        headers.append((b"content-length", b"%d" % len(data)))
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        headers = _spoilt(rng, headers)
    if rng.random() < 0.03:
        path = _odd_path(rng, path)
    method = rng.choice(("POST",) * 30 + ("PUT", "GET", "DELETE", "PATCH", "HEAD", "OPTIONS", "X"))
    complete = rng.random() > 0.02
    return Sent(method, path, headers, _pieces(rng, data), complete=complete)


def _lookup(rng: random.Random, page: bool) -> Sent:
    path = rng.choice(LOOKUPS + PAGE_LOOKUPS * page)
    if rng.random() < 0.3:
        path = _odd_path(rng, path)
    headers: list[tuple[bytes, bytes]] = []
    for _ in range(rng.choice((0, 1, 2))):
        headers = _spoilt(rng, headers)
    method = rng.choice(("GET",) * 20 + ("HEAD", "OPTIONS", "POST", "DELETE", "PURGE"))
    return Sent(method, path, headers, [b""], rng.choice(QUERIES))


def _json(rng: random.Random, document: Any) -> bytes:
    """A document in which some values, names or items are replaced."""
    marks: dict[str, str] = {}
    for _ in range(rng.choice((0, 1, 1, 1, 2, 4))):
        places = list(_places(document))
        if not places:
            break
        holder, key = rng.choice(places)
        mark = f"@@{len(marks)}@@"
        marks[f'"{mark}"'] = rng.choice(HOSTILE)
        way = rng.random()
        if way < 0.7:
            holder[key] = mark
        elif way < 0.8 and isinstance(holder, dict):
            holder[rng.choice((f"{key}x", MARK, "__proto__", "", "a" * 300))] = mark
        elif way < 0.9:
            del holder[key]
        elif isinstance(holder, list):
            holder.extend([holder[key]] * rng.choice((1, 9, 300)))
    text = json.dumps(document)
    for mark, value in marks.items():
        text = text.replace(mark, value)
    if rng.random() < 0.05:
        text = rng.choice(HOSTILE)
    return text.encode("utf-8", "replace")


def _places(value: Any) -> Any:
    """Every container with each of its keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in list(items):
        yield value, key
        if isinstance(each, dict | list):
            yield from _places(each)


def _form(rng: random.Random, document: Any) -> tuple[bytes, str]:
    """A form with the document's fields, and its content type."""
    fields = [
        (name, value if isinstance(value, str) else json.dumps(value))
        for name, value in document.items()
    ]
    for _ in range(rng.choice((0, 1, 2))):
        name = rng.choice(
            (*document, MARK, "loras[][name]", "a[]", "a" + "[]" * 400, "[", "size[][x")
        )
        fields.append((name, rng.choice(HOSTILE).strip('"')))
    if rng.random() < 0.05:
        fields = fields * 40
    if rng.random() < 0.4:
        return urlencode(fields).encode(), "application/x-www-form-urlencoded"
    out = b""
    for name, value in fields:
        is_file = name in ("image", "files") or rng.random() < 0.05
        file = (
            rng.choice(('; filename="a.png"', "; filename*=utf-8''%ff", '; filename="' + "\\"))
            * is_file
        )
        data = PNG if name in ("image", "files") else value.encode("utf-8", "replace")
        out += b"--B\r\nContent-Disposition: form-data; "
        out += f'name="{name}"{file}\r\n\r\n'.encode("utf-8", "replace") + data + b"\r\n"
    return out + b"--B--\r\n", "multipart/form-data; boundary=B"


def _binary(rng: random.Random, document: Any) -> tuple[bytes, int]:
    """A request whose tensors follow the JSON as raw bytes, and the length of the JSON."""
    raw = b""
    for tensor in document.get("inputs", []):
        values = tensor.pop("data")
        if tensor["datatype"] == "BYTES":
            data = b"".join(struct.pack("<I", len(v)) + v.encode() for v in values)
        else:
            kind = {"INT64": "q", "FP32": "f"}[tensor["datatype"]]
            bad = rng.choice((None, None, float("nan"), float("inf")))
            values = [bad if kind == "f" and bad is not None else v for v in values]
            data = struct.pack(f"<{len(values)}{kind}", *values)
        if rng.random() < 0.2:
            data = rng.choice(
                (b"", b"\0" * rng.choice((4, 7, 4000, 100_000)), b"\xff" * 8, data[:-1])
            )
        tensor["parameters"] = {"binary_data_size": len(data)}
        if rng.random() < 0.1:
            tensor["shape"] = [len(data) // 4]
        raw += data
    header = _json(rng, document)
    return header + raw, len(header)


def _changed(rng: random.Random, data: bytes) -> bytes:
    """The bytes with one of them, or a range of them, replaced, doubled, cut or moved."""
    if not data:
        return rng.randbytes(rng.randrange(40))
    begin = rng.randrange(len(data))
    end = min(len(data), begin + rng.choice((1, 1, 2, 8, 64, 1000)))
    return rng.choice(
        (
            data[:begin] + rng.randbytes(1) + data[begin + 1 :],
            data[:begin] + bytes([data[begin] ^ 1 << rng.randrange(8)]) + data[begin + 1 :],
            data[:begin],
            data[:begin] + data[end:],
            data[:end] + data[begin:],
            data[:begin] + rng.choice(HOSTILE).encode("utf-8", "replace") + data[begin:],
            data[:begin] + data[begin:end] * rng.choice((2, 50)) + data[end:],
        )
    )


def _spoilt(rng: random.Random, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    name = rng.choice(list(HEADERS))
    value = rng.choice(HEADERS[name]).encode(
        "utf-8" if rng.random() < 0.1 else "latin-1", "replace"
    )
    others = [each for each in headers if each[0] != name or rng.random() < 0.1]
    return others if rng.random() < 0.1 else [*others, (name, value)]


def _odd_path(rng: random.Random, path: str) -> str:
    part = rng.choice(PARTS)
    place = rng.randrange(1, len(path) + 1)
    return rng.choice((path + part, path[:place] + part + path[place:], path.replace(MARK, part)))


def _pieces(rng: random.Random, data: bytes) -> list[bytes]:
    if rng.random() < 0.8 or len(data) < 2:
        return [data]
    cut = rng.randrange(len(data))
    return [data[:cut], b"", data[cut:]]
