"""Damage to files, as disks and copies do it."""

from __future__ import annotations

from pathlib import Path


def flip_bit(path: Path, place: float = 0.9) -> None:
    """Flip one bit at this share of the file. The file is replaced, since it may be a link."""
    data = bytearray(path.read_bytes())
    data[int(len(data) * place)] ^= 1
    path.unlink()
    path.write_bytes(data)
