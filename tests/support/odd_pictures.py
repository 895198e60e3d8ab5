"""Files of pictures of every kind, and broken ones made of them.

`python -m tests.support.odd_pictures 60000` decodes so many broken files and counts what comes out.
"""

from __future__ import annotations

import io
import random
import struct
import sys
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from PIL import Image, PngImagePlugin

from sdxl_bento.errors import InvalidInput
from sdxl_bento.pictures.decode import ImageTooLarge, decode

MAX_PIXELS = 1 << 20
SIZE = (24, 16)


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    crc = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(
    width: int,
    height: int,
    depth: int = 8,
    colour: int = 2,
    rows: bytes | None = None,
    *chunks: bytes,
) -> bytes:
    """A PNG as its specification has it; `rows` is the data before compression, filters included.

    `chunks` are placed before the pixels. Without `rows` there are hardly any pixels.
    """
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(rows if rows is not None else b"\0"))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + pixels + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as Pillow writes it."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def many_scans(scans: int, size: tuple[int, int] = SIZE) -> bytes:
    """A progressive JPEG whose last scan is repeated until there are so many."""
    data = saved(_noise().resize(size), "JPEG", progressive=True)
    begin, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[begin:end] * (scans - data.count(b"\xff\xda")) + data[end:]


def samples() -> dict[str, bytes]:
    """A sound file of each format and mode, by its name."""
    noise = _noise()
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a red circle")
    text.add_text("long", "x" * 500, zip=True)
    text.add_itxt("wide", "☃" * 200, zip=True)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x8769] = 6, "text", {0x9286: b"ASCII\0\0\0comment"}
    alpha = noise.convert("RGBA")
    alpha.putalpha(noise.convert("L"))
    grey_alpha = Image.merge("LA", (noise.convert("L"), noise.convert("L")))
    wide = noise.convert("I;16")
    frames = {"save_all": True, "append_images": [noise.rotate(90)], "duration": 100}
    kinds: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "png": (noise, "PNG", {"pnginfo": text, "exif": exif, "icc_profile": b"p" * 200}),
        "png-rgba": (alpha, "PNG", {}),
        "png-l": (noise.convert("L"), "PNG", {"transparency": 9}),
        "png-la": (grey_alpha, "PNG", {}),
        "png-1": (noise.convert("1"), "PNG", {}),
        "png-p": (noise.quantize(40), "PNG", {"transparency": bytes(range(0, 160, 4))}),
        "png-p2": (noise.quantize(4), "PNG", {"bits": 2}),
        "png-i16": (wide, "PNG", {"transparency": 300}),
        "png-rgb-key": (noise, "PNG", {"transparency": (1, 2, 3)}),
        "apng": (noise, "PNG", frames),
        "jpeg": (noise, "JPEG", {"exif": exif, "comment": b"comment"}),
        "jpeg-l": (noise.convert("L"), "JPEG", {}),
        "jpeg-cmyk": (noise.convert("CMYK"), "JPEG", {}),
        "jpeg-progressive": (noise, "JPEG", {"progressive": True, "icc_profile": b"p" * 200}),
        "webp": (noise, "WEBP", {"exif": exif}),
        "webp-lossless": (noise, "WEBP", {"lossless": True}),
        "webp-alpha": (alpha, "WEBP", {}),
        "webp-animated": (noise, "WEBP", frames),
    }
    return {name: saved(image, kind, **more) for name, (image, kind, more) in kinds.items()}


def mutated(count: int, seed: int = 0) -> Iterator[tuple[str, bytes]]:
    """Files with a few bytes changed, taken out, put in, doubled, or cut off; with their names."""
    rng = random.Random(seed)
    sound = list(samples().items())
    for index in range(count):
        name, data = sound[index % len(sound)]
        broken = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
            at = rng.randrange(len(broken))
            match rng.randrange(9):
                case 0 | 1 | 2 | 3:
                    broken[at] ^= 1 << rng.randrange(8)
                case 4:
                    broken[at : at + 4] = rng.randbytes(4)
                case 5:
                    broken[at : at + 2] = rng.choice(
                        (b"\0\0", b"\xff\xff", b"\x7f\xff", b"\xff\xda")
                    )
                case 6:
                    del broken[at : at + rng.randrange(1, 40)]
                case 7:
                    broken[at:at] = broken[at : at + rng.randrange(1, 40)]
                case _:
                    del broken[max(at, 16) :]
            broken = broken or bytearray(data[:1])
        yield f"{name} {index}", _summed(bytes(broken)) if rng.random() < 0.8 else bytes(broken)


def outcome(data: bytes) -> str:
    """What becomes of a file: "picture", "refused", "too large", or the name of another error."""
    try:
        image = decode(data, MAX_PIXELS)
    except ImageTooLarge:
        return "too large"
    except InvalidInput:
        return "refused"
    except BaseException as error:
        return repr(error)
    return "picture" if image.mode == "RGB" and image.width * image.height > 0 else image.mode


def outcomes(files: Iterable[tuple[str, bytes]]) -> Counter[str]:
    """How often each outcome comes out."""
    return Counter(outcome(data) for _, data in files)


def _noise() -> Image.Image:
    rng = random.Random(1)
    small = Image.frombytes("RGB", (6, 4), rng.randbytes(72))
    return small.resize(SIZE, Image.Resampling.BICUBIC)


def _summed(data: bytes) -> bytes:
    """A PNG with the checksums of its chunks put right, so that a decoder goes on reading."""
    if not data.startswith(b"\x89PNG"):
        return data
    out, at = data[:8], 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        body = data[at + 4 : at + 8 + length]
        out += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return out


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    begin = time.perf_counter()
    slowest = 0.0
    counts: Counter[str] = Counter()
    for _, data in mutated(int(sys.argv[1]), seed=int(sys.argv[2]) if len(sys.argv) > 2 else 1):
        start = time.perf_counter()
        counts[outcome(data)] += 1
        slowest = max(slowest, time.perf_counter() - start)
    print(dict(counts), f"in {time.perf_counter() - begin:.1f} s, slowest {slowest * 1e3:.0f} ms")
