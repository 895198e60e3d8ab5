"""The description that comes with an exported model: `manifest.json`.

`export` writes it and the service reads it; it is the whole contract between the two. A model in
the BentoML store is a folder with this layout::

    model.yaml          BentoML's own
    manifest.json       this module's `Manifest`
    base/               a pipeline in diffusers' folder layout
    refiner/            a second pipeline in the same layout, if the model has a refiner
    loras/<name>.safetensors
    compiled/<label>/   the compiled parts of one backend
    profiles/           costs that the service has measured, one file for each device
    cache/              files that runtimes have derived from compiled parts on this machine

All paths in a manifest are relative to that folder, with forward slashes. All sizes are bytes
unless a name says otherwise, pictures are in pixels, times in seconds.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from sdxl_bento.errors import ConfigurationError

SCHEMA_VERSION: Final = 1
FILE_NAME = "manifest.json"
PROFILES = "profiles"
CACHE = "cache"
NOT_CONTENT: Final = frozenset({FILE_NAME, "model.yaml", PROFILES, CACHE})
"""What is in a model's folder beside the files that were exported."""
ENGINES: Final = "engines"
"""The folder beside compiled parts in which a runtime keeps what it builds from them."""
_DIGEST = "digest"  # the manifest's own, which is a key of the file and no field of the class

WeightDtype = Literal["fp32", "fp16", "bf16"]
Role = Literal["base", "refiner"]  # of a pipeline in its model
PredictionType = Literal["epsilon", "v_prediction"]
Variant = Literal["base", "turbo", "lightning", "lcm"]
BackendName = Literal["eager", "inductor", "onnx", "tensorrt", "openvino"]
Exporter = Literal["torch", "optimum"]  # the program that wrote the ONNX graphs
Quantization = Literal["int8-weights", "int8", "int8-static", "fp8"]
# How rows get their own adapters: by hooks around the layers, or by inputs of the graph.
AdapterMode = Literal["hooks", "slots"]


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path:
        raise ValueError("must be a path inside the model folder")
    return path


RelativePath = Annotated[str, AfterValidator(_inside)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileInfo(_Part):
    """Size and SHA-256 of one file.

    A file of more than one block of 256 MiB has the digests of its blocks too, which several
    threads can compute.
    """

    bytes: int = Field(ge=0)
    sha256: Sha256
    blocks: tuple[Sha256, ...] = ()


class SourceInfo(_Part):
    """Where the weights came from.

    `location` is a hub id, the name (not the path) of a folder or file, or a URL without password
    and query. `revision` is a commit, or the version that a server states for a file. `sha256`
    covers the path and the content of every file that was taken.
    """

    kind: Literal["embedded", "folder", "file", "hub", "url", "object", "mounted"]
    location: str
    revision: str | None = None
    sha256: Sha256


class Versions(_Part):
    """Versions of the packages that wrote the model."""

    sdxl_bento: str
    python: str
    torch: str
    diffusers: str
    transformers: str
    bentoml: str


class ComponentInfo(_Part):
    """One component of a pipeline. `sha256` is over its files, by path and content."""

    library: Literal["diffusers", "transformers"]
    class_name: str
    bytes: int = Field(ge=0)
    sha256: Sha256


class PipelineInfo(_Part):
    """One pipeline: the base model or the refiner.

    `width` and `height` are its native size in pixels, `vae_scale_factor` the pixels of a latent
    cell's side. `components` is keyed as in `model_index.json` and holds no absent ones.
    """

    path: RelativePath
    components: dict[str, ComponentInfo]
    prediction_type: PredictionType
    width: int = Field(gt=0)
    height: int = Field(gt=0)
    latent_channels: int = Field(gt=0)
    vae_scale_factor: int = Field(gt=0)
    requires_aesthetics_score: bool
    force_zeros_for_empty_prompt: bool


LatentRGB = tuple[tuple[float, float, float], ...]


class LoraInfo(_Part):
    """An adapter that comes with the model; a request asks for it by `name`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    path: RelativePath
    bytes: int = Field(ge=0)
    sha256: Sha256


class ParityFigure(_Part):
    """How far the output of one part is from the same part of `against`, in float32.

    `part` is the pipeline and component, as "base/unet". `max_abs_error` is in the units of the
    output; `psnr_db` takes the range of the reference as its peak, and is None where the two
    outputs are equal.
    """

    part: str
    against: str
    max_abs_error: float = Field(ge=0)
    psnr_db: float | None


class Size(_Part):
    """A picture size in pixels."""

    width: int = Field(gt=0)
    height: int = Field(gt=0)


class ImageFigure(_Part):
    """How far a whole picture is from the eager float32 pipeline's, same prompt and seed.

    `psnr_db` with 255 as its peak, None where the pictures are equal; `ssim` in -1 to 1
    (Wang et al. 2004, Gaussian window of 11).
    """

    prompt: str
    seed: int
    psnr_db: float | None
    ssim: float


class Probe(_Part):
    """An input that a compiled part is tried with when it is loaded.

    Its numbers follow from its shape: rows, and sides in latent cells. `psnr_db` is how close to
    the original's output in float32 the part's output must be at least; that output is the tensor
    of the part's name in the backend's `probe_outputs`.
    """

    rows: int = Field(gt=0)
    height: int = Field(gt=0)
    width: int = Field(gt=0)
    psnr_db: float


class BackendInfo(_Part):
    """One way to run the model, and the conditions that it was built for.

    `device` is a device family with its architecture ("any", "cpu", "cuda:9.0"). `dtype` is what
    the compiled parts compute in (None: the service chooses), `vae_dtype` the decoder's. Empty
    `sizes` or `rows` mean any; `rows` counts UNet rows, of which a request with guidance takes two.
    `artifacts` are compiled files by part (the table is in `export/model/graphs.py`). `versions`
    are those that a compiled file is bound to. `step_ms` is the time of one forward of the base
    UNet on the machine that exported it, with two rows at the native size. `accuracy` is the share
    of pictures in which a checker found what their prompt asked for, 0 to 1, by property. `probes`
    are the self-checks of the parts, whose expected outputs are in the safetensors file
    `probe_outputs`.
    """

    backend: BackendName
    device: str
    versions: dict[str, str]
    dtype: WeightDtype | None = None
    vae_dtype: WeightDtype | None = None
    quantization: Quantization | None = None
    attention: str | None = None
    exporter: Exporter = "torch"
    adapters: AdapterMode = "hooks"
    sizes: tuple[Size, ...] = ()
    rows: tuple[int, ...] = ()
    artifacts: dict[str, RelativePath] = {}
    bytes: int = Field(0, ge=0)
    compile_seconds: float = Field(0.0, ge=0)
    step_ms: float | None = None
    parity: tuple[ParityFigure, ...] = ()
    images: tuple[ImageFigure, ...] = ()
    accuracy: dict[str, float] = {}
    probes: dict[str, Probe] = {}
    probe_outputs: RelativePath | None = None

    @property
    def label(self) -> str:
        """The name of its folder below `compiled/`, by which users select it too.

        It joins backend, device, dtype and quantization: "openvino-cpu-bf16".
        """
        device = self.device.replace(":", "").replace(".", "")
        parts = (self.backend, device, self.dtype, self.quantization)
        return "-".join(part for part in parts if part)


class SizeLimits(_Part):
    """Width and height must each be a multiple of `multiple` from `min` to `max`, in pixels."""

    multiple: int = Field(gt=0)
    min: int = Field(gt=0)
    max: int = Field(gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> SizeLimits:
        if self.min > self.max or self.min % self.multiple or self.max % self.multiple:
            raise ValueError("min <= max, and both multiples of `multiple`")
        return self

    def allows(self, width: int, height: int) -> bool:
        """Whether a picture of `width` x `height` pixels can be asked for."""
        return all(
            self.min <= side <= self.max and side % self.multiple == 0 for side in (width, height)
        )


class Manifest(_Part):
    """The whole contract between `export` and the service."""

    schema_version: Literal[1] = SCHEMA_VERSION
    name: str
    family: Literal["sdxl"] = "sdxl"
    variant: Variant = "base"
    source: SourceInfo
    created: datetime
    versions: Versions
    dtype: WeightDtype
    base: PipelineInfo
    refiner: PipelineInfo | None = None
    loras: tuple[LoraInfo, ...] = ()
    backends: tuple[BackendInfo, ...] = Field(min_length=1)
    size_limits: SizeLimits
    files: dict[RelativePath, FileInfo] = Field(
        {}, description="Every file of the model by its path; empty if an older export wrote it."
    )
    latent_rgb: LatentRGB | None = Field(
        None, description="[channels + 1, 3]: colours in -1 to 1 from latents; None: SDXL's own."
    )
    notes: tuple[str, ...] = Field((), description="What the export found worth telling.")
    bytes: int = Field(ge=0, description="Size of the model folder without this file.")
    export_seconds: float = Field(ge=0)

    @model_validator(mode="after")
    def _unique_loras(self) -> Manifest:
        names = [lora.name for lora in self.loras]
        if len(set(names)) != len(names):
            raise ValueError(f"two LoRAs share a name: {sorted(names)}")
        if self.created.utcoffset() is None:
            raise ValueError("`created` needs a time zone")
        return self

    @property
    def pipelines(self) -> dict[Role, PipelineInfo]:
        """The pipelines of the model by their role, the base model first."""
        pipelines: dict[Role, PipelineInfo] = {"base": self.base}
        if self.refiner is not None:
            pipelines["refiner"] = self.refiner
        return pipelines

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the manifest of the model in `folder`.

        Raises `ConfigurationError` if the file is missing, or if this version cannot read it.
        """
        path = folder / FILE_NAME
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"{path}: cannot be read ({error}); was the model written by `python -m export`?"
            ) from error
        try:
            content = json.loads(text)
            if isinstance(content, dict):
                content.pop(_DIGEST, None)
            return cls.model_validate(content)
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(
                f"{path}: not a manifest of schema {SCHEMA_VERSION}: {_problems(error)}; "
                f"export the model again with this version of sdxl-bento"
            ) from error

    @staticmethod
    def is_as_written(folder: Path) -> bool:
        """Whether the file says what it said when it was written; True if it has no digest.

        Raises `ConfigurationError` as `load` does.
        """
        Manifest.load(folder)
        content = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        digest = content.pop(_DIGEST, None)
        return digest is None or bool(digest == _digest(content))

    def save(self, folder: Path) -> None:
        """Write the manifest into `folder`, which must exist, in place of one that is there."""
        content = self.model_dump(mode="json")
        content[_DIGEST] = _digest(content)
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        draft = folder / f".{FILE_NAME}"
        draft.write_text(text, encoding="utf-8")
        draft.replace(folder / FILE_NAME)


def _digest(content: dict[str, Any]) -> str:
    """SHA-256 of what a manifest says, however it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _problems(error: ValueError | RecursionError) -> str:
    if not isinstance(error, ValidationError):
        return f"no JSON ({error})"
    return "; ".join(
        f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}"
        for item in error.errors(include_url=False, include_context=False)[:5]
    )
