"""The allowed content of a source: what the service reads too, and what the export alone knows.

A class that is not named is refused, and a file that is not named is not copied. No code of a
source is ever imported or unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping

from sdxl_bento.layout import COMPONENTS as COMPONENTS  # re-exported
from sdxl_bento.layout import KINDS as KINDS
from sdxl_bento.layout import Library as Library
from sdxl_bento.manifest import Role

VOCABULARY = ("vocab.json", "merges.txt")

# Components that are not needed to draw a picture from a prompt. They are not copied.
IGNORED = ("feature_extractor", "image_encoder", "safety_checker", "watermark")

PIPELINE_CLASSES: Mapping[Role, tuple[str, ...]] = {
    "base": ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"),
    "refiner": ("StableDiffusionXLImg2ImgPipeline",),
}
WRITTEN_CLASS: Mapping[Role, str] = {
    "base": "StableDiffusionXLPipeline",
    "refiner": "StableDiffusionXLImg2ImgPipeline",
}
