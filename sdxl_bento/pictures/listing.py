"""What a listing of an image store tells of its pictures, and which of them have to go."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sdxl_bento.pictures.names import METADATA_SUFFIX, base_name, created_at, parse_file_name


@dataclass
class PictureFiles:
    """The paths of one id's files, and the size of all of them in bytes."""

    metadata: list[str] = field(default_factory=list)
    picture: list[str] = field(default_factory=list)
    size: int = 0


def by_id(listing: Iterable[Mapping[str, Any]]) -> dict[str, PictureFiles]:
    """The files of pictures, by id.

    Files that the store did not write are left out, so that a sweep never removes them.

    Args:
        listing: entries as fsspec gives them, with a `name` and a `size`.
    """
    stored: dict[str, PictureFiles] = defaultdict(PictureFiles)
    for entry in listing:
        path: str = entry["name"]
        if entry.get("type") == "directory":
            continue
        if parsed := parse_file_name(base_name(path)):
            image_id, suffix = parsed
            files = stored[image_id]
            files.size += entry["size"] or 0
            (files.metadata if suffix == METADATA_SUFFIX else files.picture).append(path)
    return dict(stored)


def superfluous(
    stored: Mapping[str, PictureFiles], target_bytes: int, is_expired: Callable[[str], bool]
) -> set[str]:
    """The ids to remove: those that have expired, then the oldest until `target_bytes` are left."""
    evicted = set(filter(is_expired, stored))
    kept = sorted(stored.keys() - evicted, key=created_at)
    total = sum(stored[image_id].size for image_id in kept)
    for image_id in kept:
        if total <= target_bytes:
            break
        evicted.add(image_id)
        total -= stored[image_id].size
    return evicted
