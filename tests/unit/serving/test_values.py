"""What is passed between threads, and kept by several calls, cannot be changed."""

from __future__ import annotations

import dataclasses

import pytest

from sdxl_bento.drawing import Answer
from sdxl_bento.fields import Control, Wire
from sdxl_bento.order import InputImage, Order, Resolved
from sdxl_bento.pictures.cache import CacheControl
from sdxl_bento.pictures.publish import Picture
from sdxl_bento.pictures.store import StoredImage
from sdxl_bento.serving.gpu import Usage
from sdxl_bento.serving.loaded import Loaded
from sdxl_bento.serving.results import (
    GeneratedImage,
    Generation,
    LoraSummary,
    ModelSummary,
    Progress,
    Provenance,
    Timings,
    UnitDone,
)


@pytest.mark.parametrize(
    "kind",
    [Answer, CacheControl, Control, GeneratedImage, Generation, InputImage, Loaded, LoraSummary,
     ModelSummary, Order, Picture, Progress, Provenance, Resolved, StoredImage, Timings, UnitDone,
     Usage, Wire],
)  # fmt: skip
def test_values_are_frozen_and_small(kind: type) -> None:
    value = object.__new__(kind)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(kind)[0].name, None)
    if kind is not Loaded:  # of which there are only a few
        assert not hasattr(value, "__dict__")
