"""The types of what the generator returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

    from sdxl_bento.order import Resolved
    from sdxl_bento.params import ResolvedParams


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds in the queue and in each stage. `total_s` is from arrival to the last picture."""

    queue_s: float
    encode_s: float
    base_s: float
    refine_s: float
    decode_s: float
    total_s: float


@dataclass(frozen=True, slots=True)
class GeneratedImage:
    """One picture, with its seed and its index in the call.

    `steps` is lower than the call's number of steps if steps were taken off to meet its deadline.
    """

    image: Image
    seed: int
    index: int
    steps: int | None = None


@dataclass(frozen=True, slots=True)
class Provenance:
    """What draws a call's pictures: the same provenance and parameters give the same pictures.

    Attributes:
        model: its exact tag.
        artifact: SHA-256 of its manifest, which holds the hashes of all its weights.
        backend: label of the backend that runs it, such as `eager` or `openvino-cpu-bf16`.
        dtype: in which the UNet computes.
        device: as manifests name it.
        torch: version of PyTorch.
        options: settings that change the last bits of pixels, by name.
        loras: SHA-256 of the adapters' files, by the adapters' names.
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
class CallWarning:
    """What a caller should know about a call that is drawn, but not quite as it was asked for.

    Attributes:
        type: `prompt_truncated` or `unknown_field`.
        field: the field that it is about.
        text: what happened.
    """

    type: Literal["prompt_truncated", "unknown_field"]
    field: str
    text: str

    @property
    def message(self) -> str:
        """One line for people."""
        return f"{self.field}: {self.text}"


@dataclass(frozen=True, slots=True)
class Generation:
    """The pictures that the engine has drawn for one call.

    `order` is the call as it was drawn, with the number of steps that were really made.
    """

    request_id: str
    order: Resolved
    images: tuple[GeneratedImage, ...]
    timings: Timings

    @property
    def params(self) -> ResolvedParams:
        """The parameters as they were drawn."""
        return self.order.params


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of one picture of a call: it waits at `position`, or has made `step` of `steps`."""

    request_id: str
    index: int
    stage: str
    step: int
    steps: int
    position: int = 0
    preview: Image | None = None


@dataclass(frozen=True, slots=True)
class UnitDone:
    """One batch of one stage that the engine has run. `seconds` is the device's time for it."""

    stage: str
    rows: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """What a client may know about a loaded model. Sizes are in pixels, times in seconds.

    `unused_backends` are compiled backends that would have been preferred, with the reasons why
    they are not used. `default_sampler` draws the requests that name none. `notes` are worth
    knowing before using the model, for example that its own scheduler is no sampler here.
    """

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
    unused_backends: dict[str, str] = field(default_factory=dict)
    default_sampler: str = "euler"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoraSummary:
    """An adapter that requests may name. `size_bytes` is the size of its file.

    `skipped` names the tensors of the file that have no effect here, such as differences of biases;
    it is known once the adapter has been loaded.
    """

    name: str
    models: tuple[str, ...]
    size_bytes: int
    loaded: bool
    pinned: bool
    skipped: tuple[str, ...] = ()
