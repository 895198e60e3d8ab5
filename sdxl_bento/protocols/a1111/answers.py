"""What AUTOMATIC1111's clients get: pictures in base64, their `info`, progress, and lists."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from sdxl_bento import __version__
from sdxl_bento.drawing import Answer
from sdxl_bento.fields import wires
from sdxl_bento.params import GenerateParams
from sdxl_bento.pictures.encode import base64_of
from sdxl_bento.pictures.infotext import infotext
from sdxl_bento.protocols.http.answers import warnings_json
from sdxl_bento.protocols.http.schemas import Base64
from sdxl_bento.sampler_names import A1111_SAMPLERS, A1111_SCHEDULERS, a1111_name
from sdxl_bento.serving.results import LoraSummary, ModelSummary

# Fields that are in a picture's infotext are in `info` too, under their names in requests.
_INFO_FIELDS = {
    wire.a1111: name for name, wire in wires(GenerateParams).items() if wire.a1111 and wire.infotext
}


class Automatic1111Images(TypedDict):
    """The answer to a call that draws."""

    images: list[Base64]
    parameters: Annotated[dict[str, Any], Field(description="The call's fields.")]
    info: Annotated[str, Field(description="JSON: `seed`, `all_seeds`, `infotexts`, …")]


class ProgressState(TypedDict):
    """The state of the call that /progress is about."""

    skipped: bool
    interrupted: bool
    job: str
    job_count: int
    job_timestamp: str
    job_no: int
    sampling_step: int
    sampling_steps: int


class Automatic1111Progress(TypedDict):
    """The answer of /progress."""

    progress: Annotated[float, Field(ge=0, le=1)]
    eta_relative: Annotated[float, Field(description="Seconds that are left.")]
    state: ProgressState
    textinfo: None
    current_image: Base64 | None


class Automatic1111Options(TypedDict):
    """The answer of /options."""

    sd_model_checkpoint: str | None
    samples_format: str


class Automatic1111Model(TypedDict):
    """A model in the answer of /sd-models."""

    title: str
    model_name: str
    hash: None
    sha256: None
    filename: str
    config: None


class Automatic1111Sampler(TypedDict):
    """A sampler in the answer of /samplers."""

    name: str
    aliases: list[str]
    options: dict[str, str]


class Automatic1111Scheduler(TypedDict):
    """A scheduler in the answer of /schedulers."""

    name: str
    label: str
    aliases: None


class Automatic1111Lora(TypedDict):
    """An adapter in the answer of /loras."""

    name: str
    alias: str
    path: str
    metadata: dict[str, Any]


class Automatic1111Scripts(TypedDict):
    """The answer of /scripts."""

    txt2img: list[str]
    img2img: list[str]


def response_body(answer: Answer, request: Mapping[str, Any]) -> Automatic1111Images:
    """The body of an answer. `request` is the call's body, which is returned as `parameters`."""
    # A picture that was not stored could not be fetched afterwards, so it is sent in any case.
    stored = all(picture.image_id is not None for picture in answer.pictures)
    sent = answer.pictures if request.get("send_images", True) or not stored else ()
    return {
        "images": [base64_of(picture.data) for picture in sent],
        "parameters": {name: request[name] for name in request if name != "init_images"},
        "info": json.dumps(_info(answer, request)),
    }


def _info(answer: Answer, request: Mapping[str, Any]) -> dict[str, Any]:
    order, first = answer.order, answer.pictures[0]
    params = order.params
    prompt, negative = str(request.get("prompt", "")), params.negative_prompt or ""
    seeds = [picture.seed for picture in answer.pictures]
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * len(seeds),
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * len(seeds),
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": seeds[0],
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": first.width,
        "height": first.height,
        "sampler_name": a1111_name(params.sampler)[0],
        "clip_skip": 1,
        **{name: getattr(params, field) for name, field in _INFO_FIELDS.items()},
        "batch_size": request.get("batch_size") or 1,
        "restore_faces": False,
        "sd_model_name": params.model,
        "sd_model_hash": None,
        "denoising_strength": params.strength if order.redraws else None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [infotext(order.single(each.index)) for each in answer.pictures],
        "styles": [],
        "version": f"sdxl-bento {__version__}",
        "image_ids": [picture.image_id for picture in answer.pictures],
        **({"warnings": [*warnings_json(answer)]} if answer.warnings else {}),
    }


def model_json(model: ModelSummary) -> Automatic1111Model:
    """A loaded model, for /sd-models."""
    return {
        "title": model.name,
        "model_name": model.name,
        "hash": None,
        "sha256": None,
        "filename": model.tag,
        "config": None,
    }


def samplers_json() -> list[Automatic1111Sampler]:
    """All samplers, for /samplers."""
    return [{"name": name, "aliases": [], "options": {}} for name in A1111_SAMPLERS]


def schedulers_json() -> list[Automatic1111Scheduler]:
    """All schedulers, for /schedulers."""
    return [
        {"name": name, "label": name.capitalize(), "aliases": None} for name in A1111_SCHEDULERS
    ]


def lora_json(lora: LoraSummary) -> Automatic1111Lora:
    """An adapter, for /loras."""
    return {"name": lora.name, "alias": lora.name, "path": "", "metadata": {}}
