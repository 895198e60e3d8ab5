"""Uploads that are no pictures, or that cost far more than they weigh."""

from __future__ import annotations

import asyncio
import base64
import io
import random
import struct
import zlib
from functools import cache

import httpx
from PIL import Image

from benchmarks.attacks.attack import Attack, Site, told

REFUSED = (400, 413, 415, 422)
FAST = {"prompt": "x", "num_inference_steps": 1, "strength": 1.0}


def _png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@cache
def sample(output_format: str, mode: str) -> bytes:
    """A small picture of noise."""
    out = io.BytesIO()
    noise = random.Random(7).randbytes(64 * 64 * 4)
    Image.frombytes("RGBA", (64, 64), noise).convert(mode).save(out, output_format)
    return out.getvalue()


@cache
def many_scans(count: int) -> bytes:
    """A progressive JPEG of 2048x2048 in which one scan comes again and again."""
    out = io.BytesIO()
    Image.new("RGB", (2048, 2048), "grey").save(out, "JPEG", progressive=True, quality=50)
    data = out.getvalue()
    first = data.index(b"\xff\xda")
    second = data.index(b"\xff\xda", first + 2)
    third = data.index(b"\xff\xda", second + 2)
    return data[:second] + data[second:third] * count + data[third:]


def _bomb(rng: random.Random) -> bytes:
    bombs = (
        _png(50_000, 50_000, zlib.compress(bytes(1_000_000), 9)),
        _png(2**31 - 1, 1, b""),
        _png(0, 0, b""),
        b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xfe\x3f\x00\xfe\x3f\x00",
        many_scans(3000),
        sample("PNG", "RGB")[:200],
        b"\xff\xd8\xff\xe1\xff\xffExif\0\0II*\0\xff\xff\xff\xff",
        b"GIF89a" + bytes(100),
        b"%PDF-1.4",
        b"",
    )
    return rng.choice(bombs)


async def _upload(site: Site, data: bytes, rng: random.Random) -> httpx.Response:
    if rng.random() < 0.5:
        files = {"image": ("a.png", data, "image/png")}
        return await site.http.post("/img2img", data=FAST, files=files)
    text = base64.b64encode(data).decode()
    body = {"prompt": "x", "steps": 1, "init_images": [text], "denoising_strength": 1.0}
    return await site.http.post("/sdapi/v1/img2img", json=body)


async def bombs(site: Site, rng: random.Random) -> str | None:
    """A file of few bytes and countless pixels, or of no pixels at all."""
    return told(await _upload(site, _bomb(rng), rng), *REFUSED)


async def mutations(site: Site, rng: random.Random) -> str | None:
    """A picture with some bytes changed: it is drawn over, or refused."""
    kinds = (("PNG", "RGB"), ("PNG", "LA"), ("JPEG", "CMYK"), ("JPEG", "L"), ("WEBP", "RGBA"))
    data = bytearray(sample(*rng.choice(kinds)))
    for _ in range(rng.randrange(1, 12)):
        data[rng.randrange(8, len(data))] = rng.randrange(256)
    if rng.random() < 0.3:
        del data[rng.randrange(20, len(data)) :]
    return told(await _upload(site, bytes(data), rng), 200, *REFUSED)


async def leaving_scans(site: Site, rng: random.Random) -> str | None:
    """A JPEG of thousands of scans, whose sender leaves after a second."""
    try:
        async with asyncio.timeout(1.0):
            return told(await _upload(site, many_scans(3000), rng), *REFUSED)
    except TimeoutError:
        return None


PICTURES = (
    Attack("bombs", "decompression bombs", bombs),
    Attack("mutations", "broken pictures", mutations, clients=2, draws=True),
    Attack("scans", "JPEGs of countless scans, left alone", leaving_scans, clients=8),
)
