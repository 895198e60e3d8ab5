"""The HTML of the page. All text that comes from users, models or files is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from math import ceil
from typing import Any

from sdxl_bento.pictures.encode import base64_of
from sdxl_bento.serving.results import ModelSummary
from sdxl_bento.ui.album import Album, Entry, Start
from sdxl_bento.ui.controls import CONTROLS
from sdxl_bento.ui.form import LABELS, show_size
from sdxl_bento.ui.progress import Snapshot

STAGES: Mapping[str, str] = {
    "encode": "Reading the prompt",
    "image": "Reading the picture",
    "base": "Drawing",
    "refine": "Refining",
    "decode": "Developing",
}

# The fields of controls that `facts` has rows of its own for, or that say nothing of one picture.
_TOLD = {
    *("negative_prompt", "num_inference_steps", "guidance_scale", "num_images", "sampler"),
    *("strength", "refiner"),
}


def headline(models: Sequence[ModelSummary], state: str, reason: str) -> str:
    """The title with the model that draws, or with the reason why none does."""
    if state == "ready" and models:
        first = models[0]
        words = f"{first.name} · {first.backend}, {first.dtype} on {first.device}"
        if len(models) > 1:
            words += f", and {len(models) - 1} more"
    elif state == "dead":
        words = f"The engine has ended: {reason}"
    elif state == "damaged":
        words = f"No pictures are drawn: {reason}"
    elif state in ("draining", "stopped"):
        words = "The server is stopping."
    else:
        words = "The model is loading; this page will be ready in a moment."
    busy = "" if state == "ready" else " sb-busy"
    link = '<a href="../docs" target="_blank" rel="noopener">API</a>'
    return (
        f'<header class="sb-head"><h1>sdxl-bento</h1>'
        f'<p id="sb-model" class="{busy.strip()}">{escape(words)}</p>{link}</header>'
    )


def chips(prompts: Iterable[str]) -> str:
    """Prompts to try, one button each."""
    buttons = (
        f'<button type="button" data-pick="{index}">{escape(prompt)}</button>'
        for index, prompt in enumerate(prompts)
    )
    return f'<div class="sb-chips" aria-label="Prompts to try">{"".join(buttons)}</div>'


def invitation(text: str = "Say what you want to see, then draw it.") -> str:
    """The stage before the first picture."""
    return f'<div class="sb-stage sb-empty"><p>{escape(text)}</p></div>'


def at_work(snapshot: Snapshot) -> str:
    """The stage while a call runs: previews, a progress bar, and the progress in words."""
    previews = "".join(
        f'<img class="sb-rough" alt="Preview" src="data:image/jpeg;base64,{base64_of(jpeg)}">'
        if jpeg
        else '<div class="sb-blank"></div>'
        for jpeg in snapshot.previews
    )
    share = snapshot.share
    waits = " sb-waits" if snapshot.position or share == 0 else ""
    return (
        f'<div class="sb-stage"><div class="{_grid(len(snapshot.previews))}">{previews}</div>'
        f'<div class="sb-bar{waits}" role="progressbar" aria-label="Progress" aria-valuemin="0" '
        f'aria-valuemax="100" aria-valuenow="{share * 100:.0f}">'
        f'<i style="width:{share:.1%}"></i></div></div>'
        f'<p class="sb-status">{escape(doing(snapshot))}</p>'
    )


def doing(snapshot: Snapshot) -> str:
    """The progress of a call in words."""
    if snapshot.position:
        others = snapshot.position - 1
        before = f"{others} before yours" if others else "yours is next"
        return f"Waiting in the queue: {before}"
    if not snapshot.stage:
        return "Starting"
    word = STAGES.get(snapshot.stage, snapshot.stage)
    if snapshot.stage in ("base", "refine"):
        return f"{word}: step {snapshot.step} of {snapshot.steps}"
    return word


def finished(album: Album) -> str:
    """The stage with the chosen picture."""
    entry = album.picture
    if entry is None:
        return invitation()
    return f'<div class="sb-stage"><div class="sb-grid">{_picture(entry)}</div></div>'


def details(entry: Entry | None) -> str:
    """The parameters of a picture, and a link to save it."""
    if entry is None:
        return ""
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts(entry)
    )
    return (
        f'<dl class="sb-facts">{rows}</dl>'
        f'<a class="sb-save" href="{escape(entry.download)}" download>Save the picture</a>'
    )


def facts(entry: Entry) -> list[tuple[str, str]]:
    """Name and value of everything that a picture was drawn with, for people to read."""
    call = entry.call
    sampler = call.get("sampler") or "the model's sampler"
    rows = [("Prompt", call["prompt"])]
    if call.get("negative_prompt"):
        rows.append(("Not", call["negative_prompt"]))
    rows += [
        ("Seed", str(entry.seed)),
        ("Size", show_size(entry.width, entry.height)),
        ("Drawn with", f"{call['num_inference_steps']} steps of {sampler}"),
        ("Guidance", f"{call['guidance_scale']:g}"),
    ]
    if call.get("loras"):
        each = (f"{lora['name']} × {lora['scale']:g}" for lora in call["loras"])
        rows.append(("LoRAs", ", ".join(each)))
    if call.get("refiner"):
        rows.append(("Refiner", f"from {call['high_noise_frac']:.0%} on"))
    if entry.start is not None:
        label = "Refined" if entry.start.task == "refine" else "Drawn over"
        rows.append((label, f"another picture, strength {call['strength']:g}"))
    rows += _other_facts(call)
    return [*rows, ("Model", str(call["model"])), ("Time", f"{entry.total_s:.2f} s")]


def _other_facts(call: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The controls' fields that have no row made for them, where they are not at their default."""
    rows = []
    for name, control in CONTROLS.items():
        value = call.get(name, control.default)
        if name not in _TOLD and value != control.default:
            text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
            rows.append((LABELS.get(name, control.label), text))
    return rows


def gallery(album: Album) -> str:
    """The pictures of this visit, one button each."""
    if not album.pictures:
        return ""
    buttons = (
        f'<button type="button" data-pick="{index}" title="{escape(entry.call["prompt"])}" '
        f'aria-label="Picture {index + 1}: {escape(entry.call["prompt"])}" '
        f'aria-pressed="{str(index == album.chosen).lower()}">'
        f'<img src="{escape(entry.src)}" alt="" loading="lazy"></button>'
        for index, entry in enumerate(album.pictures)
    )
    return (
        f'<div class="sb-gallery" role="group" aria-label="Drawn so far">{"".join(buttons)}</div>'
    )


def beginning(start: Start | None) -> str:
    """The picture that the next call starts from."""
    if start is None:
        return ""
    return f'<img class="sb-start" src="{escape(start.shown)}" alt="The picture to begin with">'


def failure(body: Mapping[str, Any]) -> str:
    """The body of an error in words: what is wrong, the value, and what is allowed."""
    field = body.get("field")
    if field is None:
        title, lines = _titles(body), [str(body["message"])]
    else:
        title = f"{LABELS.get(field, field)}: this does not fit"
        lines = [f"Given: {body['value']}"] if body["value"] not in (None, "") else []
        lines += [f"Allowed: {body['allowed']}"] if body.get("allowed") else [str(body["message"])]
    retry = body.get("retry_after_s")
    if retry:
        lines.append(f"Try again in {max(1, ceil(retry))} s.")
    shown = "".join(f"<span>{escape(line)}</span>" for line in lines)
    return f'<div class="sb-error" role="alert"><b>{escape(title)}</b>{shown}</div>'


def remark(text: str) -> str:
    """A notice that is not an error."""
    return f'<div class="sb-remark" role="status">{escape(text)}</div>' if text else ""


def _titles(body: Mapping[str, Any]) -> str:
    return {
        "overloaded": "The server is busy",
        "not_ready": "The server is not ready",
        "engine_dead": "The engine has ended",
        "timeout_error": "It took too long",
        "out_of_memory": "The picture is too large for this machine",
        "image_not_found": "The picture is gone",
        "internal_error": "Something went wrong",
    }.get(body["type"], "That did not work")


def _picture(entry: Entry) -> str:
    prompt = escape(str(entry.call["prompt"]))
    return (
        f'<img src="{escape(entry.src)}" alt="{prompt}" '
        f'width="{entry.width}" height="{entry.height}" style="--width:{entry.width}px">'
    )


def _grid(pictures: int) -> str:
    return "sb-grid sb-many" if pictures > 1 else "sb-grid"
