"""Settings. The environment is read here and nowhere else."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sdxl_bento.errors import ConfigurationError

DeviceMode = Literal[
    "auto", "cpu", "cuda", "enable_model_cpu_offload", "enable_sequential_cpu_offload"
]
VerifyMode = Literal["load", "background", "off"]
ComputeDtype = Literal["auto", "fp32", "bf16", "fp16"]
DEFAULT_MODEL = "sdxl-embedded:latest"
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s@]+")


# Marks a setting that changes pictures, even if only in the last bits of their pixels. Its value
# becomes part of every picture's provenance and of the result cache's keys.
CHANGES_PIXELS = "changes pixels"


class Settings(BaseSettings):
    """Every setting of the service; each is an environment variable `SDXL_<NAME>`."""

    model_config = SettingsConfigDict(env_prefix="SDXL_", frozen=True, extra="ignore")

    model: str = Field(DEFAULT_MODEL, description="BentoML tag of the default model.")
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Tags of further models to load, separated by commas."
    )
    model_aliases: Annotated[tuple[tuple[str, str], ...], NoDecode] = Field(
        (),
        description="Further names for models, such as dall-e-3=sdxl,stable-diffusion=sdxl.",
    )
    device: DeviceMode = Field(
        "auto", description="auto is cuda if there is a CUDA device, otherwise cpu."
    )
    dtype: ComputeDtype = Field(
        "auto",
        description="Dtype in which UNet and text encoders compute. auto is fp16 on cuda and "
        "fp32 on cpu.",
    )
    threads: int = Field(
        0, ge=0, description="Number of CPU threads of torch; 0 keeps torch's default."
    )
    backend: str = Field(
        "auto",
        description="auto selects the fastest compiled backend of the model that fits this "
        "machine, or eager if none fits. Otherwise a name (eager, inductor, onnx, openvino, "
        "tensorrt) or a label such as openvino-cpu-bf16.",
    )
    allow_fallback: bool = Field(
        True, description="Run the model eagerly if no compiled backend fits this machine."
    )
    verify: VerifyMode = Field(
        "load",
        description="When the files of a model are compared with the digests of its manifest: "
        "load, before the server is ready; background, afterwards, so that the server stops being "
        "ready if one differs; off, never.",
    )
    lora_dir: Path | None = Field(
        None,
        description="Folder with LoRA .safetensors files, in addition to those that a model "
        "contains.",
    )
    lora_cache_mb: int = Field(2048, ge=1, description="Memory for loaded adapters in MiB.")
    lora_pinned: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Adapters that are loaded at start and never removed from memory, separated "
        "by commas.",
    )
    max_batch_rows: int = Field(
        16, ge=2, le=256, description="Maximum number of UNet rows in one forward."
    )
    max_batch_pixels: int = Field(
        16 * 1024 * 1024,
        ge=4096,
        description="Maximum number of pixels (rows x height x width) in one forward.",
    )
    max_running: int = Field(
        16,
        ge=1,
        description="Maximum number of pictures without slo_ms that run at the same time.",
    )
    max_queue: int = Field(64, ge=0, description="Maximum number of waiting pictures.")
    max_queue_megapixels: float = Field(
        256.0, gt=0, description="Maximum size of all waiting pictures in megapixels."
    )
    max_pixels: int = Field(
        2048 * 2048, ge=4096, description="Maximum number of pixels of one picture."
    )
    decode_processes: int = Field(
        2,
        ge=1,
        le=64,
        description="Maximum number of uploaded pictures that are decoded at the same time, each "
        "in a process of its own.",
    )
    decode_timeout_s: float = Field(
        10.0,
        gt=0,
        description="An uploaded picture that takes longer than this many seconds to decode is "
        "refused.",
    )
    max_steps: int = Field(
        150, ge=1, le=200, description="Maximum number of denoising steps of one picture."
    )
    max_images: int = Field(8, ge=1, le=16, description="Maximum number of pictures in one call.")
    unknown_fields: Literal["refuse", "warn"] = Field(
        "refuse",
        description="Whether a call with an unknown field is refused, or the field is left out "
        "with a warning.",
    )
    prompt_cache_mb: int = Field(64, ge=0, description="Memory for encoded prompts in MiB.")
    vae_tile_pixels: Annotated[int, CHANGES_PIXELS] = Field(
        1536 * 1536,
        ge=4096,
        description="Pictures with more pixels than this are decoded in tiles.",
    )
    attention_slicing: Annotated[bool, CHANGES_PIXELS] = Field(
        False,
        description="Compute the eager UNet's attention in slices: less memory, but slower.",
    )
    vae_slicing: Annotated[bool, CHANGES_PIXELS] = Field(
        False, description="Decode the pictures of a batch one by one, which saves memory."
    )
    openvino_kernels: int = Field(
        256,
        ge=0,
        description="Number of kernels that OpenVINO keeps for shapes it has met, for each "
        "compiled part. More make it faster if many sizes take turns, and take more memory.",
    )
    memory_trim_s: float = Field(
        10.0,
        ge=0,
        description="Every so many seconds, memory that was freed is given back to the operating "
        "system; 0 never does so.",
    )
    ageing_s: float = Field(
        30.0,
        gt=0,
        description="A request without slo_ms is scheduled as if it were due at most this many "
        "seconds after its arrival.",
    )
    timeout_s: float = Field(
        600.0, gt=0, description="A call that takes longer than this many seconds is cancelled."
    )
    receive_timeout_s: float = Field(
        30.0,
        gt=0,
        description="Seconds in which the head of a request has to arrive, and then its body.",
    )
    max_connections_per_client: int = Field(
        256,
        ge=0,
        description="Maximum number of connections from one address; 0 is any number, for a "
        "server behind a proxy.",
    )
    max_bodies_mb: int = Field(
        512, ge=64, description="Memory for the bodies of all calls together in MiB."
    )
    drain_s: float = Field(
        30.0, ge=0, description="At shutdown, running calls have this many seconds to finish."
    )
    store: str | None = Field(
        None,
        description="Image store: a folder, or a URL such as s3://bucket/prefix; a temporary "
        "folder if unset.",
    )
    store_ttl_s: float = Field(
        3600.0, gt=0, description="For how many seconds a picture can be fetched by its id."
    )
    store_max_mb: int = Field(512, ge=1, description="Maximum size of the image store in MiB.")
    store_timeout_s: float = Field(
        2.0,
        gt=0,
        description="An answer waits at most this many seconds until its picture is stored, or "
        "looked up in the result cache.",
    )
    embed_metadata: bool = Field(True, description="Write a picture's parameters into its file.")
    result_cache: bool = Field(
        False,
        description="Answer a request that was answered before, with the same seed, from the "
        "image store.",
    )
    png_level: int = Field(1, ge=0, le=9, description="zlib compression level of PNG files.")
    batch_max_size: int = Field(
        16, ge=1, description="For generate_batch: maximum number of items in one batch."
    )
    batch_max_latency_ms: int = Field(
        60_000,
        ge=1,
        description="For generate_batch: a call that would wait longer than this many "
        "milliseconds is refused.",
    )
    log_error_messages: bool = Field(
        False,
        description="Log the messages of unexpected errors in full. They may quote prompts.",
    )
    workers: int = Field(
        1, ge=1, description="Number of service processes; on GPUs, use one for each GPU."
    )
    ui: bool = Field(True, description="Show Gradio's page, if Gradio is installed.")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Other sites whose pages may call this server from a browser, separated by "
        "commas.",
    )

    @field_validator("models", "lora_pinned", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("model_aliases", mode="before")
    @classmethod
    def _parse_aliases(cls, value: object) -> object:
        return _aliases(value) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ValueError(
                    f"{origin!r} is not an origin, which has the form https://pictures.example:8443"
                )
        return origins

    @field_validator("store", mode="before")
    @classmethod
    def _unset_if_empty(cls, value: object) -> object:
        return value or None

    @property
    def pixel_options(self) -> dict[str, int]:
        """The values of the settings that are marked with `CHANGES_PIXELS`."""
        return {
            name: int(getattr(self, name))
            for name, field in type(self).model_fields.items()
            if CHANGES_PIXELS in field.metadata
        }

    @property
    def model_tags(self) -> tuple[str, ...]:
        """All models to load, the default one first."""
        return tuple(dict.fromkeys((self.model, *self.models)))


def _aliases(text: str) -> tuple[tuple[str, str], ...]:
    """The aliases in `a=b,c=d`, each with the model's name or tag. Raises ValueError."""
    aliases: dict[str, str] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        alias, _, model = map(str.strip, part.partition("="))
        if not alias or not model or "=" in model:
            raise ValueError(f"{part!r} has not the form alias=model, such as dall-e-3=sdxl")
        if aliases.setdefault(alias, model) != model:
            raise ValueError(f"{alias} stands for {aliases[alias]} and for {model}")
    return tuple(aliases.items())


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        ConfigurationError: a value is invalid. The message names the variable.
    """
    try:
        return Settings()
    except ValidationError as error:
        wrong = "; ".join(
            f"SDXL_{'_'.join(map(str, detail['loc'])).upper()} is {detail['input']!r}: "
            f"{detail['msg']}"
            for detail in error.errors(include_url=False)
        )
        raise ConfigurationError(f"a setting is wrong: {wrong}") from None


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sdxl-bento"


def bentoml_home() -> Path:
    """The folder of BentoML's stores, determined as BentoML itself does."""
    return Path(os.environ.get("BENTOML_HOME") or Path.home() / "bentoml")


def server_url() -> str | None:
    """The server that `sdxl-bento` uses: the value of `SDXL_URL`, or None."""
    return os.environ.get("SDXL_URL")


def unknown_variables() -> dict[str, str | None]:
    """The `SDXL_…` variables of the environment that nothing reads.

    Each is mapped to the known variable with the most similar name, or to None.
    """
    exports = (str(field.validation_alias) for field in ExportSettings.model_fields.values())
    known = {name.upper() for name in Settings.model_fields} | {"URL", "SUPERVISOR"}
    known |= {name.removeprefix("SDXL_") for name in exports if name.startswith("SDXL_")}
    unknown: dict[str, str | None] = {}
    for name in sorted(os.environ):
        prefix, rest = name[:5].upper(), name[5:].upper()
        if prefix == "SDXL_" and rest not in known:
            close = difflib.get_close_matches(rest, sorted(known), n=1, cutoff=0.7)
            unknown[name] = f"SDXL_{close[0]}" if close else None
    return unknown


def prometheus_folder() -> Path | None:
    """The folder in which the workers of one server share their metrics. BentoML sets it."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder else None


def remember_supervisor() -> None:
    """Tell the worker processes, which inherit the environment, that this one supervises them."""
    os.environ["SDXL_SUPERVISOR"] = str(os.getpid())


def supervisor_pid() -> int | None:
    """The process that supervises this worker; None if it was not started by a server."""
    pid = os.environ.get("SDXL_SUPERVISOR", "")
    return int(pid) if pid.isdecimal() else None


class ExportSettings(BaseSettings):
    """The settings of `python -m export`, under the names of variables that KServe uses.

    Access keys are not among them: the clients of S3, Google and the hub read their own variables.
    """

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    storage_uri: str | None = Field(None, validation_alias="STORAGE_URI")
    model_id: str | None = Field(None, validation_alias="MODEL_ID")
    model_mount: Path = Field(Path("/mnt/models"), validation_alias="SDXL_EXPORT_MODEL_MOUNT")
    pvc_mount: Path = Field(Path("/mnt/pvc"), validation_alias="SDXL_EXPORT_PVC_MOUNT")
    cache: Path = Field(default_factory=_cache, validation_alias="SDXL_EXPORT_CACHE")
    hf_token: str | None = Field(None, validation_alias="HF_TOKEN", repr=False)
    aws_endpoint_url: str | None = Field(None, validation_alias="AWS_ENDPOINT_URL")
    s3_endpoint: str | None = Field(None, validation_alias="S3_ENDPOINT")
    s3_use_https: bool = Field(True, validation_alias="S3_USE_HTTPS")
    s3_verify_ssl: bool = Field(True, validation_alias="S3_VERIFY_SSL")
    s3_virtual_bucket: bool = Field(False, validation_alias="S3_USER_VIRTUAL_BUCKET")
    s3_anonymous: bool = Field(False, validation_alias="awsAnonymousCredential")

    @property
    def source(self) -> str | None:
        """The source to export if the command names none."""
        named = self.storage_uri or self.model_id
        if named is None and self.model_mount.is_dir():
            return str(self.model_mount)
        return named

    @property
    def s3_endpoint_url(self) -> str | None:
        """URL of the S3 server; None stands for Amazon's. `S3_ENDPOINT` may lack a scheme."""
        if self.aws_endpoint_url or not self.s3_endpoint or "://" in self.s3_endpoint:
            return self.aws_endpoint_url or self.s3_endpoint
        return f"{'https' if self.s3_use_https else 'http'}://{self.s3_endpoint}"


def load_export_settings() -> ExportSettings:
    """Read the settings of an export from the environment.

    Raises:
        ConfigurationError: a value is invalid. The message names the variable.
    """
    try:
        return ExportSettings()
    except ValidationError as error:
        wrong = "; ".join(
            f"{detail['loc'][0]} is {detail['input']!r}: {detail['msg']}"
            for detail in error.errors(include_url=False)
        )
        raise ConfigurationError(f"the environment is wrong: {wrong}") from None
