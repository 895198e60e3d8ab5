"""The names of an image store's files. They hold all that a sweep and a look-up need to know."""

from __future__ import annotations

import base64
import math
import re
import secrets
from pathlib import PurePosixPath

from sdxl_bento.pictures.encode import MEDIA_TYPES

METADATA_SUFFIX = "json"
RESULTS = "results"
_ID = re.compile(r"[A-Za-z0-9_-]{28}|[A-Za-z0-9_-]{22}")  # with a lifetime, and without one
_WITHOUT_LIFETIME = 22
_FILE = re.compile(rf"({_ID.pattern})\.({METADATA_SUFFIX}|{'|'.join(MEDIA_TYPES)})")
_KEY = re.compile(r"[0-9a-f]{64}")


def new_id(now: float, lifetime_s: float) -> str:
    """An id that nobody can guess: 28 characters.

    They hold time and lifetime (32 bits each) and 104 random bits.

    `now` is in seconds since 1970. Beginning with the time, an id does not begin with a dash before
    the year 2101, so no command line takes it for an option.
    """
    lifetime = min(math.ceil(lifetime_s), 2**32 - 1)
    token = int(now).to_bytes(4, "big") + lifetime.to_bytes(4, "big") + secrets.token_bytes(13)
    return base64.urlsafe_b64encode(token).decode("ascii")


def is_id(text: str) -> bool:
    """Whether the text has the form of a picture's id."""
    return _ID.fullmatch(text) is not None


def created_at(image_id: str) -> int:
    """When the picture was stored, in seconds since 1970."""
    return int.from_bytes(_token(image_id)[:4], "big")


def lifetime_of(image_id: str, otherwise_s: float) -> float:
    """For how many seconds the picture is kept, as was decided when it was stored.

    Ids of 22 characters, which earlier versions gave, do not say it: for them, `otherwise_s` holds.
    """
    if not has_lifetime(image_id):
        return otherwise_s
    return int.from_bytes(_token(image_id)[4:8], "big")


def has_lifetime(image_id: str) -> bool:
    """Whether the id says for how long its picture is kept. Those of earlier versions do not."""
    return len(image_id) != _WITHOUT_LIFETIME


def _token(image_id: str) -> bytes:
    return base64.urlsafe_b64decode(image_id + "=" * (-len(image_id) % 4))


def parse_file_name(name: str) -> tuple[str, str] | None:
    """The id and the suffix of a file that the store has written; None for any other file."""
    match = _FILE.fullmatch(name)
    return (match[1], match[2]) if match else None


def base_name(path: str) -> str:
    """The last part of a path."""
    return path.rpartition("/")[2]


def is_result(path: str) -> bool:
    """Whether the path is that of a result, `…/results/<key>/<id>`."""
    folder, key, name = PurePosixPath(path).parts[-3:]
    return folder == RESULTS and bool(_KEY.fullmatch(key)) and is_id(name)
