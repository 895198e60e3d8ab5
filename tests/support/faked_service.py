"""The real service over an engine that draws nothing: for what a real one shows too rarely.

`bentoml serve tests.support.faked_service:SDXLService`, with variables that `FakeGenerator` reads.
With the image store `hanging://<folder>`, the folder hangs while the file FAKE_STORE_HANGS exists.
"""

from __future__ import annotations

import fsspec

import sdxl_bento.serving.generator
from tests.support.fake_generator import FakeGenerator
from tests.support.hanging_files import HangingFiles

fsspec.register_implementation("hanging", HangingFiles)

sdxl_bento.serving.generator.Generator = FakeGenerator  # type: ignore[misc, assignment]

from service import SDXLService  # noqa: E402  it has to see the engine above

__all__ = ["SDXLService"]
