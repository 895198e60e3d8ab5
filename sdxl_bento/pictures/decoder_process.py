"""The program of a process that decodes uploaded pictures; `decoder_pool` starts and ends it.

Its standard input brings jobs and its standard output takes their results. The results are JSON and
pixels and never pickled, because a hostile file may find a fault in a decoder and speak for it. The
process ends when its input does, which is when the server's process has ended.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
import warnings
from contextlib import suppress

from PIL import Image as PILImage

from sdxl_bento.errors import InvalidInput
from sdxl_bento.pictures.decode import ImageTooLarge, decode

READY = b"ready"
# A job is the length of the file in bytes, then the file. A result is the length of a text, that of
# the pixels, then both: JSON with the picture's size and its pixels, or JSON with an error.
JOB = struct.Struct(">Q")
RESULT = struct.Struct(">IQ")
_NICENESS = 10  # pictures that are being drawn come first
_MEMORY = 256 << 20  # bytes of address space, beside those of the picture
_MEMORY_PER_PIXEL = 64  # bytes; an animated WebP takes the most


def main() -> None:
    """Answer jobs until the input ends. The arguments are `max_pixels` and the seconds of a job."""
    max_pixels, seconds = int(sys.argv[1]), float(sys.argv[2])
    jobs, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else might write to the standard output
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is meant for the server
    warnings.simplefilter("ignore")
    PILImage.MAX_IMAGE_PIXELS = None  # `decode` has its own limit
    os.nice(_NICENESS)
    memory = _MEMORY + _MEMORY_PER_PIXEL * max_pixels
    with suppress(OSError, ValueError):  # the limit may be lower already
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    results.write(READY)
    results.flush()
    while len(head := jobs.read(JOB.size)) == JOB.size:
        # The server ends a job in time. This ends it if there is no server any more: by default,
        # the signal ends the process, even within a decoder.
        signal.setitimer(signal.ITIMER_REAL, seconds)
        text, pixels = result(jobs.read(*JOB.unpack(head)), max_pixels)
        signal.setitimer(signal.ITIMER_REAL, 0)
        results.write(RESULT.pack(len(text), len(pixels)) + text)
        results.write(pixels)
        results.flush()
        del pixels  # it may wait long for the next job


def result(data: bytes, max_pixels: int) -> tuple[bytes, bytes]:
    """What is answered for a file: JSON, and the pixels [height, width, 3] if it was decoded."""
    try:
        image = decode(data, max_pixels)
    except InvalidInput as error:
        large = isinstance(error, ImageTooLarge)
        body = {"too_large": large, "value": str(error.value), "allowed": error.allowed}
        return json.dumps(body).encode(), b""
    return json.dumps({"size": image.size}).encode(), image.tobytes()
