"""The note beside a stored picture: its metadata, and what shows that neither has been damaged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, cast

from sdxl_bento.params import OutputFormat
from sdxl_bento.pictures.encode import MEDIA_TYPES
from sdxl_bento.pictures.names import has_lifetime

MAX_BYTES = 2 << 20  # of a note; four prompts of the longest take a fifth of it


class Damaged(Exception):
    """A note, or the picture beside it, is not what was stored."""


@dataclass(frozen=True, slots=True)
class Note:
    """What is stored beside a picture.

    Attributes:
        image_id: of the picture.
        output_format: of its file.
        size: of its file, in bytes.
        digest: SHA-256 of its file, in hexadecimal; None in the notes of earlier versions.
        key: the result cache's key whose result it is, if any.
        metadata: whatever else is known of the picture.
    """

    image_id: str
    output_format: OutputFormat
    size: int
    digest: str | None
    key: str | None
    metadata: dict[str, Any]

    @classmethod
    def of(
        cls,
        image_id: str,
        data: bytes,
        output_format: OutputFormat,
        metadata: Mapping[str, Any],
        key: str | None = None,
    ) -> Note:
        """The note of a picture whose file is `data`."""
        digest = sha256(data).hexdigest()
        return cls(image_id, output_format, len(data), digest, key, dict(metadata))

    def written(self) -> bytes:
        """The note as a file, which contains a digest of itself."""
        content = {
            "image_id": self.image_id,
            "format": self.output_format,
            "bytes": self.size,
            "sha256": self.digest,
            "key": self.key,
            "metadata": self.metadata,
        }
        # Compared as it is read back, in which tuples have become lists.
        content = json.loads(json.dumps(content))
        return json.dumps({**content, "note_sha256": _digest(content)}).encode()

    @classmethod
    def read(cls, data: bytes, image_id: str) -> Note:
        """The note in a file. Raises Damaged unless it is what was written for this picture.

        Pictures of earlier versions, whose ids have no lifetime, have notes without digests. Of
        these, only the form is checked.
        """
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Damaged("it is not JSON") from error
        if not isinstance(content, dict):
            raise Damaged("it is not an object")
        if not has_lifetime(image_id):
            content = {**content, "image_id": image_id, "key": None, "sha256": None}
        elif content.pop("note_sha256", None) != _digest(content):
            raise Damaged("its digest is not that of its content")
        fields = content.get("format"), content.get("bytes"), content.get("metadata")
        output_format, size, metadata = fields
        if not (
            content.get("image_id") == image_id
            and isinstance(output_format, str)
            and output_format in MEDIA_TYPES
            and isinstance(size, int)
            and size >= 0
            and isinstance(metadata, dict)
        ):
            raise Damaged("its fields are not those of this picture")
        digest, key = content.get("sha256"), content.get("key")
        return cls(image_id, cast(OutputFormat, output_format), size, digest, key, metadata)

    def check(self, data: bytes) -> None:
        """Raise Damaged unless `data` is the file of this picture."""
        if len(data) != self.size or not data:
            raise Damaged(f"{len(data)} bytes instead of {self.size}")
        if self.digest is not None and sha256(data).hexdigest() != self.digest:
            raise Damaged("its digest is another")


def _digest(content: Mapping[str, Any]) -> str:
    try:
        text = json.dumps(content, sort_keys=True)
    except RecursionError as error:
        raise Damaged("it is nested too deeply") from error
    return sha256(text.encode()).hexdigest()
