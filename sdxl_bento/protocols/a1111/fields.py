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

# AUTOMATIC1111's name of a field → the native field with the same value, the same name or not.
SAME = {wire.a1111: name for name, wire in wires(GenerateParams).items() if wire.a1111}
# Native field → its name here, for errors.
NAMES = {native: name for name, native in SAME.items() if name != native} | {
    "num_images": "batch_size x n_iter",
    "strength": "denoising_strength",
    "image": "init_images",
    "model": "sd_model_checkpoint",
    "output_format": "override_settings.samples_format",
    "high_noise_frac": "refiner_switch_at",
}
# Taken with these values alone, which ask for nothing.
NOTHING: Mapping[str, tuple[object, ...]] = {
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
    "resize_mode": (0,),
    "initial_noise_multiplier": (1,),
}
# About the web interface's own files, or about what is refused above.
IGNORED = re.compile(
    r"(hr_|firstphase_|do_not_save_|mask_blur|inpaint)\w*|comments|eta|force_task_id|save_images"
    r"|image_cfg_scale|include_init_images|mask_round|override_settings_restore_afterwards"
    r"|s_tmax|subseed"
)
_OWN = (
    *("prompt", "negative_prompt", "seed", "batch_size", "n_iter", "sampler_name", "sampler_index"),
    *("scheduler", "override_settings", "refiner_checkpoint", "refiner_switch_at", "send_images"),
    *("denoising_strength", "init_images"),
)
DENOISING_STRENGTH = 0.75  # where an img2img call says nothing


def translated(body: object, model: str | None, task: Task) -> object:
    """The native fields; `model` is drawn with unless the body names one. Raises InvalidInput."""
    if not isinstance(body, Mapping):
        return body
    given = {name: value for name, value in body.items() if value is not None}
    _check_known(given)
    if not isinstance(given.get("send_images", True), bool):
        raise InvalidInput("send_images", given["send_images"], "true or false")
    prompt, loras = without_loras(_text(given, "prompt"))
    fields: dict[str, Any] = {"prompt": prompt, "loras": loras, "model": model}
    # SDXL's zeros stand for an empty negative prompt there, and for none at all here.
    fields["negative_prompt"] = _text(given, "negative_prompt") or None
    fields["seed"] = None if given.get("seed", -1) == -1 else given["seed"]
    fields["num_images"] = _count(given, "batch_size") * _count(given, "n_iter")
    fields |= {native: given[name] for name, native in SAME.items() if name in given}
    fields |= _sampler(given)
    fields |= _overridden(given.get("override_settings", {}))
    fields |= _refiner(given)
    if task != "generate":
        fields["strength"] = given.get("denoising_strength", DENOISING_STRENGTH)
        fields["image"] = _only_one(given.get("init_images"))
    return fields


def _check_known(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in NOTHING:
            if not any(_same(value, nothing) for nothing in NOTHING[name]):
                only = " or ".join(map(repr, NOTHING[name])) or "nothing"
                raise InvalidInput(name, value, f"{only}; it is not supported")
        elif name not in (*_OWN, *SAME) and not IGNORED.fullmatch(name):
            known = ", ".join(sorted((*_OWN, *SAME)))
            raise InvalidInput(name, value, f"one of the fields {known}")


def _same(value: object, other: object) -> bool:
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _text(given: Mapping[str, Any], name: str) -> str:
    text = given.get(name, "")
    if not isinstance(text, str):
        raise InvalidInput(name, text, "text")
    return text


def _sampler(given: Mapping[str, Any]) -> dict[str, Any]:
    """The model's own, if nothing is said of it. With a scheduler alone it is Euler, as there."""
    scheduler = _text(given, "scheduler") or AUTOMATIC
    names = _text(given, "sampler_name"), _text(given, "sampler_index")
    name = names[0] or names[1] or ("" if scheduler.lower() == AUTOMATIC else "Euler")
    return {"sampler": sampler_of(name, scheduler)} if name else {}


def _count(given: Mapping[str, Any], name: str) -> int:
    count = given.get(name, 1)
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


def _refiner(given: Mapping[str, Any]) -> dict[str, Any]:
    """Each model has one refiner of its own, so that any name of a refiner means that."""
    name, at = given.get("refiner_checkpoint", ""), given.get("refiner_switch_at")
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
