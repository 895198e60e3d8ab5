"""The fields of AUTOMATIC1111's txt2img and img2img → the native fields."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdxl_bento.errors import InvalidInput
from sdxl_bento.fields import wires
from sdxl_bento.order import Task
from sdxl_bento.params import GenerateParams
from sdxl_bento.protocols.a1111.neutral import (
    IGNORED,
    IGNORED_SETTINGS,
    NEUTRAL,
    NEUTRAL_SETTINGS,
    PLACEHOLDER,
    check_neutral,
    check_scripts,
    without_example,
)
from sdxl_bento.protocols.a1111.prompt_syntax import tags_in, without_loras
from sdxl_bento.protocols.a1111.samplers import sampler_of
from sdxl_bento.protocols.http.translation import UNSAID, Translation
from sdxl_bento.sampler_names import AUTOMATIC

# AUTOMATIC1111's name of a field → the native field with the same value, under whichever name.
SAME = {wire.a1111: name for name, wire in wires(GenerateParams).items() if wire.a1111}
# Fields that are translated one by one below.
OWN = (
    *("prompt", "negative_prompt", "seed", "batch_size", "n_iter", "sampler_name", "sampler_index"),
    *("scheduler", "override_settings", "refiner_checkpoint", "refiner_switch_at", "send_images"),
    *("denoising_strength", "init_images"),
)
# AUTOMATIC1111's settings that a call may override → the native fields.
CHECKPOINT = "sd_model_checkpoint"
SETTINGS = {
    CHECKPOINT: "model",
    "samples_format": "output_format",
    "jpeg_quality": "output_quality",
}
SCRIPTS = "alwayson_scripts"
NOISE = "s_noise"
# The samplers that add no noise to a step.
WITHOUT_NOISE = ("euler", "ddim", "dpmpp_2m", "dpmpp_2m_karras")
UNREPEATED = "a picture"  # in errors, in place of a file
RANDOM = (-1, "-1", "")  # seeds that stand for a random one
DENOISING_STRENGTH = 0.75  # of an img2img call that does not set it
_MAX_TITLE = 400  # no model has such a name, and the patterns below are not linear
_HASH = re.compile(r"\s*\[[0-9a-fA-F]+\]\Z")
_EXTENSION = re.compile(r"\.(safetensors|ckpt)\Z", re.IGNORECASE)


def to_native(
    body: object, model: str | None, task: Task, translation: Translation | None = None
) -> object:
    """Translate a body into native fields.

    Args:
        body: the decoded body.
        model: is used unless the body names one.
        task: of the call.
        translation: takes down what the caller called the fields.

    Raises InvalidInput.
    """
    translation = translation or Translation()
    if not isinstance(body, Mapping):
        return body
    body = {name: value for name, value in without_example(body).items() if value is not None}
    body = _known(body, translation)
    if task == "generate" and body.get("init_images"):
        raise InvalidInput("init_images", UNREPEATED, "nothing; img2img redraws a picture")
    if not isinstance(body.get("send_images", True), bool):
        raise InvalidInput("send_images", body["send_images"], "true or false")
    fields: dict[str, Any] = {"model": model, **_prompt(body, translation)}
    # An empty negative prompt means SDXL's zeros there, which here is no negative prompt at all.
    fields["negative_prompt"] = _text(body, "negative_prompt") or None
    fields["seed"] = None if body.get("seed", -1) in RANDOM else body["seed"]
    fields["num_images"] = _count(body, "batch_size") * _count(body, "n_iter")
    _note_count(body, translation)
    fields |= {native: body[name] for name, native in SAME.items() if name in body}
    for name, native in SAME.items():
        if name in body:
            translation.note(native, name, body[name])
    fields |= _sampler(body, translation)
    fields |= overridden(body.get("override_settings", {}), translation, "override_settings")
    fields |= _refiner(body, translation)
    _check_noise(body, fields)
    if task != "generate":
        fields["strength"] = body.get("denoising_strength", DENOISING_STRENGTH)
        translation.note("strength", "denoising_strength", fields["strength"])
        fields["image"] = _only_one(body.get("init_images"))
        translation.note("image", "init_images", UNSAID)
    return fields


def _known(body: Mapping[str, Any], translation: Translation) -> dict[str, Any]:
    """The fields that are known here. Raises InvalidInput for one that asks for too much."""
    known = (*OWN, *SAME, *NEUTRAL, *IGNORED, SCRIPTS)
    listed = f"one of the fields {', '.join(sorted((*OWN, *SAME)))}"
    body = translation.known(body, known, allowed=listed)
    for name, value in body.items():
        if name in NEUTRAL and name != NOISE:
            check_neutral(name, value, NEUTRAL[name])
    check_scripts(body.get(SCRIPTS))
    return body


def _prompt(body: Mapping[str, Any], translation: Translation) -> dict[str, Any]:
    """The prompt without its tags, and the adapters that these name."""
    prompt = _text(body, "prompt")
    text, loras = without_loras(prompt)
    tags = tags_in(prompt)
    for index, tag in enumerate(tags):
        translation.note(f"loras.{index}", "prompt", tag, whole=True)
    if tags:
        translation.note("loras", "prompt", " ".join(tags), whole=True)
    return {"prompt": text, "loras": loras}


def _note_count(body: Mapping[str, Any], translation: Translation) -> None:
    """The number of pictures is a product; who sent one factor only is told about that one."""
    sent = [name for name in ("batch_size", "n_iter") if body.get(name, 1) != 1]
    if len(sent) == 1:
        translation.note("num_images", sent[0], body[sent[0]])
    else:
        product = " x ".join(str(body.get(name, 1)) for name in ("batch_size", "n_iter"))
        translation.note("num_images", "batch_size x n_iter", product)


def _check_noise(body: Mapping[str, Any], fields: Mapping[str, Any]) -> None:
    """`s_noise` scales the fresh noise of a step, so it changes nothing where there is none."""
    if fields.get("sampler") not in WITHOUT_NOISE:
        check_neutral(NOISE, body.get(NOISE), NEUTRAL[NOISE])


def _text(body: Mapping[str, Any], name: str) -> str:
    text = body.get(name, "")
    if not isinstance(text, str):
        raise InvalidInput(name, text, "text")
    return text


def _choice(body: Mapping[str, Any], name: str) -> str:
    """The text in a field that names something; empty if it holds the API page's example."""
    text = _text(body, name)
    return "" if text == PLACEHOLDER else text


def _sampler(body: Mapping[str, Any], translation: Translation) -> dict[str, Any]:
    """The native sampler: the model's default if none is named, Euler if only a scheduler is.

    Euler is AUTOMATIC1111's own default.
    """
    scheduler = _choice(body, "scheduler") or AUTOMATIC
    by_name, by_index = _choice(body, "sampler_name"), _choice(body, "sampler_index")
    name = by_name or by_index or ("" if scheduler.lower() == AUTOMATIC else "Euler")
    if not name:
        return {}
    field = "sampler_index" if by_index and not by_name else "sampler_name"
    translation.note("sampler", field, name)
    try:
        return {"sampler": sampler_of(name, scheduler)}
    except InvalidInput as error:
        is_name = error.field == "sampler_name"
        raise error.at(field if is_name else error.field, error.value) from None


def _count(body: Mapping[str, Any], name: str) -> int:
    count = body.get(name, 1)
    if type(count) is not int or not 1 <= count <= 1000:
        raise InvalidInput(name, count, "an integer over 0")
    return count


def overridden(settings: object, translation: Translation, place: str) -> dict[str, Any]:
    """The native fields for settings, such as those that a call overrides.

    Args:
        settings: AUTOMATIC1111's names and values.
        translation: of the call.
        place: where the settings are in the body; empty if they are the body itself.

    Raises InvalidInput for a setting that asks for something that this server does not have.
    """
    if not isinstance(settings, Mapping):
        raise InvalidInput(place or "body", settings, "an object")
    allowed = f"one of {', '.join(SETTINGS)}"
    known = (*SETTINGS, *NEUTRAL_SETTINGS, *IGNORED_SETTINGS)
    fields: dict[str, Any] = {}
    for name, value in translation.known(settings, known, place, allowed).items():
        at = f"{place}.{name}" if place else name
        if value is None:
            continue
        if name in NEUTRAL_SETTINGS:
            check_neutral(at, value, NEUTRAL_SETTINGS[name])
        if name in SETTINGS:
            native = SETTINGS[name]
            fields[native] = _setting(name, value)
            translation.note(native, at, value)
    return {name: value for name, value in fields.items() if value is not None}


def _setting(name: str, value: object) -> object:
    """The native value of a setting; None for no value."""
    if name == CHECKPOINT and isinstance(value, str):
        return checkpoint_name(value) or None
    return "jpeg" if name == "samples_format" and value == "jpg" else value


def checkpoint_name(title: str) -> str:
    """The name in a checkpoint's title, such as `sdxl` for `folder/sdxl.safetensors [31e35c80fc]`.

    The API page's example stands for no name.
    """
    if len(title) > _MAX_TITLE:
        return title
    name = _HASH.sub("", title.strip())
    name = _EXTENSION.sub("", name.replace("\\", "/").rpartition("/")[2])
    return "" if name == PLACEHOLDER else name


def _refiner(body: Mapping[str, Any], translation: Translation) -> dict[str, Any]:
    """Each model has at most one refiner, so any name that contains "refiner" stands for it."""
    name, at = body.get("refiner_checkpoint", ""), body.get("refiner_switch_at")
    if isinstance(at, bool) or not isinstance(at, float | int | None):
        raise InvalidInput("refiner_switch_at", at, "a number over 0 under 1")
    if name in ("", "None", PLACEHOLDER):
        return {}
    if not isinstance(name, str) or "refiner" not in name.lower():
        raise InvalidInput("refiner_checkpoint", name, "refiner, for the model's own")
    translation.note("refiner", "refiner_checkpoint", name)
    translation.note("high_noise_frac", "refiner_switch_at", at)
    return {"refiner": True} | ({} if at is None else {"high_noise_frac": at})


def _only_one(images: object) -> object:
    if not isinstance(images, list) or len(images) != 1:
        shown = f"{len(images)} pictures" if isinstance(images, list) else images
        raise InvalidInput("init_images", shown, "a list of one picture in base64")
    return images[0]
