"""What the facade answers with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdxl_bento.order import Resolved
    from sdxl_bento.params import ResolvedParams


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
    """One picture, the seed that draws it again, and its place in the call.

    `steps` are fewer than the call's where those had to be taken off to meet its deadline.
    """

    image: Image
    seed: int
    index: int
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """What draws a call's pictures. Where two are equal, so are the pictures, given the parameters.

    `model` is its exact tag, `artifact` the SHA-256 of its manifest, which has the hashes of all
    its weights; `loras` are names with the SHA-256 of their files. `options` are the settings that
    change pixels in their last bits.
    """

    model: str
    artifact: str
    backend: str
    dtype: str
    device: str
    torch: str
    options: tuple[tuple[str, int], ...]
    loras: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """The pictures of one call, as the engine has drawn them.

    `order` is the call as it was drawn, with the number of steps that was really made.
    """

    request_id: str
    order: Resolved
    images: tuple[GeneratedImage, ...]
    timings: Timings

    @property
    def params(self) -> ResolvedParams:
        return self.order.params


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
