"""What the facade answers with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdxl_bento.params import GenerateParams

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds spent waiting and in each stage; `total_s` is from arrival to the decoded picture."""

    queue_s: float
    encode_s: float
    base_s: float
    refine_s: float
    decode_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """One picture, the seed that draws it again, and its place in the call."""

    image: Image
    seed: int
    index: int


@dataclass(frozen=True, slots=True)
class Generation:
    """The answer to one call. `params` has every default filled in (model, size, seed, sampler)."""

    request_id: str
    params: GenerateParams
    images: tuple[GeneratedImage, ...]
    timings: Timings

    def described(self, made: GeneratedImage) -> dict[str, Any]:
        """What draws this one picture again: the parameters that are not defaults."""
        described = self.params.model_dump(mode="json", exclude_defaults=True)
        return described | {"seed": made.seed, "num_images": 1}


@dataclass(frozen=True, slots=True)
class Progress:
    """One picture of the call has moved: it is queued at `position`, or made `step` of `steps`."""

    request_id: str
    index: int
    stage: str
    step: int
    steps: int
    position: int = 0
    preview: Image | None = None


@dataclass(frozen=True, slots=True)
class UnitDone:
    """The engine has run one batch of one stage. `seconds`: the device's time for it."""

    stage: str
    rows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """What a client may know of a loaded model. Sizes in pixels, times in seconds."""

    name: str
    tag: str
    default: bool
    default_width: int
    default_height: int
    size_multiple: int
    has_refiner: bool
    dtype: str
    backend: str
    device: str
    load_seconds: float
    warm_up_seconds: float


@dataclass(frozen=True, slots=True)
class LoraSummary:
    """An adapter that requests may name. `size_bytes` is its file's."""

    name: str
    models: tuple[str, ...]
    size_bytes: int
    loaded: bool
    pinned: bool
