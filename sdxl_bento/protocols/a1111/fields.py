"""The fields of AUTOMATIC1111's txt2img and img2img → the native fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdxl_bento.errors import InvalidInput
from sdxl_bento.fields import wires
from sdxl_bento.order import Task
from sdxl_bento.params import GenerateParams
from sdxl_bento.protocols.a1111.prompt_syntax import without_loras
from sdxl_bento.protocols.a1111.samplers import sampler_of
from sdxl_bento.sampler_names import AUTOMATIC

# AUTOMATIC1111's name of a field → the native field with the same value, under whichever name.
SAME = {wire.a1111: name for name, wire in wires(GenerateParams).items() if wire.a1111}
# Native field → its name in this protocol, for errors.
NAMES = {native: name for name, native in SAME.items() if name != native} | {
    "num_images": "batch_size x n_iter",
    "strength": "denoising_strength",
    "image": "init_images",
    "model": "sd_model_checkpoint",
    "output_format": "override_settings.samples_format",
    "high_noise_frac": "refiner_switch_at",
}
# Fields of features that this server does not have → the values that do not ask for the feature.
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "enable_hr": (False,),
    "script_name": ("", "None"),
    "script_args": ([],),
    "alwayson_scripts": ({},),
    "styles": ([],),
    "subseed_strength": (0,),
    "seed_resize_from_h": (0, -1),
    "seed_resize_from_w": (0, -1),
    "restore_faces": (False,),
    "tiling": (False,),
    "s_churn": (0,),
    "s_tmin": (0,),
    "s_noise": (1,),
    "disable_extra_networks": (False,),
    "infotext": ("",),
    "mask": (),
    "latent_mask": (),
    "resize_mode": (0, 1),
    "initial_noise_multiplier": (1,),
}
# Fields about the files of AUTOMATIC1111's interface, or details of the features above.
IGNORED = re.compile(
    r"(hr_|firstphase_|do_not_save_|mask_blur|inpaint)\w*|comments|eta|force_task_id|save_images"
    r"|image_cfg_scale|include_init_images|mask_round|override_settings_restore_afterwards"
    r"|s_tmax|subseed"
)
# Fields that are translated one by one below.
OWN = (
    *("prompt", "negative_prompt", "seed", "batch_size", "n_iter", "sampler_name", "sampler_index"),
    *("scheduler", "override_settings", "refiner_checkpoint", "refiner_switch_at", "send_images"),
    *("denoising_strength", "init_images"),
)
DENOISING_STRENGTH = 0.75  # of an img2img call that does not set it


def to_native(body: object, model: str | None, task: Task) -> object:
    """Translate a body into native fields. `model` is used unless the body names one.

    Raises InvalidInput.
    """
    if not isinstance(body, Mapping):
        return body
    body = {name: value for name, value in body.items() if value is not None}
    _check_known(body)
    if not isinstance(body.get("send_images", True), bool):
        raise InvalidInput("send_images", body["send_images"], "true or false")
    prompt, loras = without_loras(_text(body, "prompt"))
    fields: dict[str, Any] = {"prompt": prompt, "loras": loras, "model": model}
    # An empty negative prompt means SDXL's zeros there, which here is no negative prompt at all.
    fields["negative_prompt"] = _text(body, "negative_prompt") or None
    fields["seed"] = None if body.get("seed", -1) == -1 else body["seed"]
    fields["num_images"] = _count(body, "batch_size") * _count(body, "n_iter")
    fields |= {native: body[name] for name, native in SAME.items() if name in body}
    fields |= _sampler(body)
    fields |= _overridden(body.get("override_settings", {}))
    fields |= _refiner(body)
    if task != "generate":
        fields["strength"] = body.get("denoising_strength", DENOISING_STRENGTH)
        fields["image"] = _only_one(body.get("init_images"))
    return fields


def _check_known(body: Mapping[str, Any]) -> None:
    for name, value in body.items():
        if name in NEUTRAL:
            if not any(_same(value, neutral) for neutral in NEUTRAL[name]):
                only = " or ".join(map(repr, NEUTRAL[name])) or "nothing"
                raise InvalidInput(name, value, f"{only}; it is not supported")
        elif name not in (*OWN, *SAME) and not IGNORED.fullmatch(name):
            known = ", ".join(sorted((*OWN, *SAME)))
            raise InvalidInput(name, value, f"one of the fields {known}")


def _same(value: object, other: object) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _text(body: Mapping[str, Any], name: str) -> str:
    text = body.get(name, "")
    if not isinstance(text, str):
        raise InvalidInput(name, text, "text")
    return text


def _sampler(body: Mapping[str, Any]) -> dict[str, Any]:
    """The native sampler: the model's default if none is named, Euler if only a scheduler is.

    Euler is AUTOMATIC1111's own default.
    """
    scheduler = _text(body, "scheduler") or AUTOMATIC
    names = _text(body, "sampler_name"), _text(body, "sampler_index")
    name = names[0] or names[1] or ("" if scheduler.lower() == AUTOMATIC else "Euler")
    return {"sampler": sampler_of(name, scheduler)} if name else {}


def _count(body: Mapping[str, Any], name: str) -> int:
    count = body.get(name, 1)
    if type(count) is not int or not 1 <= count <= 1000:
        raise InvalidInput(name, count, "an integer over 0")
    return count


def _overridden(settings: object) -> dict[str, Any]:
    if not isinstance(settings, Mapping):
        raise InvalidInput("override_settings", settings, "an object")
    fields: dict[str, Any] = {}
    for name, value in settings.items():
        if value is None:
            continue
        if name == "sd_model_checkpoint":
            fields["model"] = value
        elif name == "samples_format":
            fields["output_format"] = "jpeg" if value == "jpg" else value
        else:
            allowed = "one of sd_model_checkpoint, samples_format"
            raise InvalidInput(f"override_settings.{name}", value, allowed)
    return fields


def _refiner(body: Mapping[str, Any]) -> dict[str, Any]:
    """Each model has at most one refiner, so any name that contains "refiner" stands for it."""
    name, at = body.get("refiner_checkpoint", ""), body.get("refiner_switch_at")
    if isinstance(at, bool) or not isinstance(at, float | int | None):
        raise InvalidInput("refiner_switch_at", at, "a number over 0 under 1")
    if name in ("", "None"):
        return {}
    if not isinstance(name, str) or "refiner" not in name.lower():
        raise InvalidInput("refiner_checkpoint", name, "refiner, for the model's own")
    return {"refiner": True} | ({} if at is None else {"high_noise_frac": at})


def _only_one(images: object) -> object:
    if not isinstance(images, list) or len(images) != 1:
        shown = f"{len(images)} pictures" if isinstance(images, list) else images
        raise InvalidInput("init_images", shown, "a list of one picture in base64")
    return images[0]
