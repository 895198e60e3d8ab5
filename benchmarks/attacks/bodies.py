"""Bodies and headers: odd numbers, nesting, names, sizes, unknown fields."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping

from benchmarks.attacks.attack import Attack, Site, status_of, told

REFUSED = (400, 413, 415, 422)
NUMBERS = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 4000, "-" + "9" * 400, "1e99999",
    "0." + "3" * 5000 + "e400", '"²"', '"1e999"', "[1]", "{}", '"NaN"',
)  # fmt: skip
NAMES = ("width", "height", "seed", "num_inference_steps", "guidance_scale", "num_images", "slo_ms")
JSON = {"content-type": "application/json"}


def _calls(model: str, name: str, value: str) -> list[tuple[str, str]]:
    """A field in the call of each protocol: path and body."""
    pair = f'"{name}": {value}'
    text = '{"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["x"]}'
    return [
        ("/generate", f'{{"prompt": "x", {pair}}}'),
        ("/generate_batch", f'{{"requests": [{{"prompt": "x", {pair}}}]}}'),
        ("/generate/stream", f'{{"prompt": "x", {pair}}}'),
        (f"/v1/models/{model}:predict", f'{{"instances": [{{"prompt": "x", {pair}}}]}}'),
        (f"/v2/models/{model}/infer", f'{{"inputs": [{text}], "parameters": {{{pair}}}}}'),
        ("/v1/images/generations", f'{{"prompt": "x", "n": {value}}}'),
        ("/sdapi/v1/txt2img", f'{{"prompt": "x", "cfg_scale": {value}}}'),
    ]


async def numbers(site: Site, rng: random.Random) -> str | None:
    """A number that is none, or far too long, in any field of any protocol."""
    name, value = rng.choice(NAMES), rng.choice(NUMBERS)
    path, body = rng.choice(_calls(site.model, name, value))
    if path == "/generate_batch":  # whose items have errors of their own
        response = await site.http.post(path, content=body, headers=JSON)
        inside = response.status_code == 200 and "error" in response.text
        return None if inside else told(response, *REFUSED)
    return told(await site.http.post(path, content=body, headers=JSON), *REFUSED)


async def headers(site: Site, rng: random.Random) -> str | None:
    """A header with a value that no server expects."""
    path, name, value = rng.choice(
        [
            ("/generate", "x-slo-ms", rng.choice(["nan", "inf", "1e999", "9" * 5000, "٣"])),
            ("/generate", "x-priority", rng.choice(["²", "9" * 5000, "1.5", ""])),
            ("/generate", "x-request-id", rng.choice(["ä" * 9, "x" * 5000, "a b"])),
            ("/generate", "content-type", rng.choice(["application/jsön", "image/ÿ", "\x80"])),
            (
                f"/v2/models/{site.model}/infer",
                "inference-header-content-length",
                rng.choice(["²", "9" * 5000, "-1", "nan"]),
            ),
        ]
    )
    body = b'{"prompt": "x"}'
    host, port = site.address
    head = [f"POST {path} HTTP/1.1".encode(), f"host: {host}:{port}".encode()]
    if name != "content-type":
        head.append(b"content-type: application/json")
    head += [name.encode() + b": " + value.encode("utf-8"), b"content-length: %d" % len(body)]
    received = await site.raw(b"\r\n".join([*head, b"", body]))
    status = status_of(received)
    return (
        None if status in (*REFUSED, 431) else f"{path} {name}: {value[:20]!r}: {received[:80]!r}"
    )


async def nesting(site: Site, rng: random.Random) -> str | None:
    """Deep or countless brackets, in JSON and in the names of a form's fields."""
    depth = rng.choice([1_000, 100_000, 400_000])
    kind = rng.randrange(4)
    if kind == 0:
        body = '{"prompt": ' + "[" * depth + "]" * depth + "}"
        return told(await site.http.post("/generate", content=body, headers=JSON), *REFUSED)
    if kind == 1:
        body = '{"prompt": "x", ' + '"a":{' * depth + "}" * depth + "}"
        return told(await site.http.post("/generate", content=body, headers=JSON), *REFUSED)
    if kind == 2:
        form = {"a" + "[]" * depth: "1", "prompt": "x"}
        return told(await site.http.post("/generate", data=form), *REFUSED)
    files = {"a" + "[]" * (depth // 4): ("f", b"1"), "prompt": (None, "x")}
    return told(await site.http.post("/generate", files=files), *REFUSED)


async def tensors(site: Site, rng: random.Random) -> str | None:
    """V2: megabytes of empty strings, shapes of many or of huge dimensions."""
    path = f"/v2/models/{site.model}/infer"
    kind = rng.randrange(3)
    if kind == 0:
        count = rng.choice([250_000, 500_000, 1_000_000])
        tensor = {"name": "prompt", "shape": [count], "datatype": "BYTES", "data": [""] * count}
    elif kind == 1:
        shape = rng.choice([[1] * 100_000, [2**62, 2**62], [-1], [0]])
        tensor = {"name": "prompt", "shape": shape, "datatype": "BYTES", "data": ["x"]}
    else:
        data = b"\0\0\0\0" * rng.choice([250_000, 1_000_000])
        tensor = {"name": "prompt", "shape": [len(data) // 4], "datatype": "BYTES"}
        tensor["parameters"] = {"binary_data_size": len(data)}
        text = json.dumps({"inputs": [tensor]}).encode()
        lengths = {"inference-header-content-length": str(len(text))}
        return told(await site.http.post(path, content=text + data, headers=lengths), *REFUSED)
    return told(await site.http.post(path, json={"inputs": [tensor]}), *REFUSED)


async def too_large(site: Site, rng: random.Random) -> str | None:
    """A body that is declared to be, or becomes, larger than any limit."""
    path = rng.choice(["/generate", "/img2img", "/v1/images/generations", "/sdapi/v1/img2img"])
    host, port = site.address
    head = f"POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
    if rng.random() < 0.5:
        received = await site.raw(f"{head}content-length: 1000000000\r\n\r\n{{".encode())
    else:
        chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
        received = await site.raw(f"{head}transfer-encoding: chunked\r\n\r\n".encode() + chunk * 64)
        if not received:  # it was closed while we still wrote, and the answer was lost with it
            return None
    return None if status_of(received) == 413 else f"{path}: {received[:120]!r}"


async def unknown_fields(site: Site, rng: random.Random) -> str | None:
    """A misspelt or misplaced field, anywhere in an envelope."""
    text = {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["x"]}
    infer, predict = f"/v2/models/{site.model}/infer", f"/v1/models/{site.model}:predict"
    calls: list[tuple[str, Mapping[str, object]]] = [
        ("/generate", {"prompt": "x", "stepz": 3}),
        ("/generate_batch", {"requests": [{"prompt": "x"}], "slo_ms": 1}),
        (predict, {"instances": [{"prompt": "x"}], "paramaters": {}}),
        (predict, {"instances": [{"prompt": "x", "stepz": 3}]}),
        (infer, {"inputs": [text], "paramaters": {"seed": 1}}),
        (infer, {"inputs": [{**text, "shpe": [1]}]}),
        (infer, {"inputs": [text], "outputs": [{"name": "image", "binary": True}]}),
        ("/v1/images/generations", {"prompt": "x", "sizes": "512x512"}),
        ("/sdapi/v1/txt2img", {"prompt": "x", "stepz": 3}),
    ]
    path, body = rng.choice(calls)
    return told(await site.http.post(path, json=body), *REFUSED)


BODIES = (
    Attack("numbers", "numbers that are none", numbers),
    Attack("headers", "odd headers", headers),
    Attack("nesting", "nesting and countless names", nesting, clients=2),
    Attack("tensors", "V2 tensors of countless parts", tensors, clients=2),
    Attack("too-large", "bodies over the limit", too_large, clients=4),
    Attack("unknown-fields", "misspelt fields", unknown_fields),
)
