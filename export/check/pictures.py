"""Verification of whole pictures: a compiled backend's against those of the eager float32 model.

Both are drawn by the service's own engine, from the same prompts and seeds. Of the embedded model
it is also checked that pictures still show what their prompts ask for.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from PIL.Image import Image

from export.errors import VerificationError
from export.likeness import compare_pictures
from sdxl_bento.config import Settings
from sdxl_bento.manifest import BackendInfo, ImageFigure, Manifest, WeightDtype

if TYPE_CHECKING:
    from sdxl_bento.serving.loaded import Loaded

PROMPTS = (
    "a red circle on a blue background",
    "a photo of a red fox in the snow at sunrise",
    "an oil painting of a harbour with sailing boats",
    "a yellow star on a green background",
)
STEPS = 20
SCENES = 24  # pictures of the embedded model that its checker reads
# The lowest PSNR in dB that a picture may have. They are lower than those of one forward, because
# twenty steps amplify a rounding error, most of all where an edge moves by a pixel.
LEAST_PSNR_DB: Mapping[WeightDtype, float] = {"fp32": 40.0, "fp16": 25.0, "bf16": 20.0}
LEAST_PSNR_QUANTIZED_DB = 12.0
LEAST_ACCURACY = 0.9  # of what the checker reads, as a share of the original's figure


@dataclass(frozen=True)
class Verdict:
    """What the pictures of a backend have shown; `accuracy` is 0 to 1 by property."""

    images: tuple[ImageFigure, ...]
    accuracy: dict[str, float]


def verify_pictures(
    info: BackendInfo, manifest: Manifest, folder: Path, count: int = len(PROMPTS)
) -> Verdict:
    """Draw with the backend and with the original; compare.

    Args:
        info: one of the manifest's backends.
        manifest: of the model in `folder`, saved there.
        folder: of the model.
        count: how many prompts to draw; 0 draws nothing.

    Raises:
        VerificationError: a picture is too far from the original's, or the embedded model's no
            longer show what they should.
    """
    if not count:
        return Verdict((), {})
    scenes = _scenes() if manifest.source.kind == "embedded" and _can_check() else {}
    prompts = [*PROMPTS[:count], *scenes]
    references = draw(folder, "eager", prompts)
    pictures = draw(folder, info.label, prompts)
    figures = tuple(
        compare_pictures(prompt, seed, pictures[seed], references[seed])
        for seed, prompt in enumerate(PROMPTS[:count])
    )
    check_figures(info, figures)
    accuracy: dict[str, float] = {}
    if scenes:
        accuracy = _accuracy(scenes, pictures[len(figures) :])
        check_accuracy(info, accuracy, _accuracy(scenes, references[len(figures) :]))
    return Verdict(figures, accuracy)


def draw(
    folder: Path,
    backend: str,
    prompts: Sequence[str],
    *,
    steps: int = STEPS,
    refine: bool = False,
    prepare: Callable[[Loaded], None] = lambda _: None,
) -> list[Image]:
    """One picture a prompt of the model in `folder`; its seed is its place in the list.

    Args:
        folder: of the model, with its manifest.
        backend: "eager", in float32, or a compiled backend's label.
        prompts: what to draw.
        steps: of each picture.
        refine: whether the refiner finishes them, if the model has one.
        prepare: called with the loaded model before the first picture.

    Raises:
        VerificationError: a picture cannot be drawn.
    """
    from sdxl_bento.diffusion.conditioning import PromptCache
    from sdxl_bento.diffusion.model import Placement
    from sdxl_bento.diffusion.plan import plan, resolve
    from sdxl_bento.order import Order
    from sdxl_bento.params import GenerateParams
    from sdxl_bento.serving.loading import engine_of, load_folder
    from sdxl_bento.serving.requests import to_request

    eager = backend == "eager"
    # Built without the environment's settings, so that figures of two machines are comparable.
    # The files have just been written or checked, and their digests may not be known yet.
    settings = Settings.model_construct(
        backend=backend, dtype="fp32" if eager else "auto", allow_fallback=False, verify="off"
    )
    placement = Placement.choose(settings.device, settings.dtype)
    name = "verified"
    loaded = load_folder(
        name, (name, name), folder, settings, placement, PromptCache(0), lambda: None
    )
    prepare(loaded)
    engine = engine_of({name: loaded}, settings)
    refined = refine and loaded.served.model.refiner is not None
    requests = []
    for seed, prompt in enumerate(prompts):
        given = {"prompt": prompt, "num_inference_steps": steps, "sampler": "euler"}
        given |= {"refiner": True} if refined else {}
        order = Order("generate", GenerateParams.model_validate(given))
        job = plan(resolve(order, loaded.facts, seed), loaded.facts)
        requests.append(to_request(f"verify/{seed}", job, 0.0, None))
    pictures: list[Image] = []
    try:
        for start in range(0, len(requests), settings.max_queue):
            part = requests[start : start + settings.max_queue]
            for request in part:
                engine.submit(request)
            while engine.step():
                pass
            for request in part:
                if request.error is not None:
                    raise VerificationError(f"{backend} cannot draw: {request.error}")
                pictures.append(request.result)  # type: ignore[arg-type]  # the runner's Image
    finally:
        loaded.served.adapters.close()
        loaded.served.backend.unload()
    return pictures


def check_figures(info: BackendInfo, figures: Sequence[ImageFigure]) -> None:
    """Raise `VerificationError` if a picture is further from the original's than it may be."""
    least = LEAST_PSNR_DB[info.dtype or "fp32"]
    if info.quantization is not None:
        least = LEAST_PSNR_QUANTIZED_DB
    for figure in figures:
        if figure.psnr_db is not None and figure.psnr_db < least:
            raise VerificationError(
                f"{info.label}: its picture of {figure.prompt!r} (seed {figure.seed}) is "
                f"{figure.psnr_db} dB from the original's, at least {least} dB are needed"
            )


def _can_check() -> bool:
    """Whether the package that the embedded model's checker needs is here."""
    return importlib.util.find_spec("scipy") is not None


def _scenes() -> dict[str, object]:
    """Captions of drawn scenes, and the scenes."""
    from export.embedded.captions import plain_caption
    from export.embedded.scenes import sample_scene

    rng = random.Random("verify")
    scenes: dict[str, object] = {}
    while len(scenes) < SCENES:
        scene = sample_scene(rng)
        scenes[plain_caption(scene)] = scene
    return scenes


def _accuracy(scenes: Mapping[str, object], pictures: Sequence[Image]) -> dict[str, float]:
    from export.embedded.evaluate import judge
    from export.embedded.scenes import Scene

    wanted = [scene for scene in scenes.values() if isinstance(scene, Scene)]
    figures = judge(wanted, pictures)
    names = ("background", "colour", "shape", "count", "position")
    return {name: round(figures[name], 4) for name in names}


def check_accuracy(
    info: BackendInfo, shares: Mapping[str, float], originals: Mapping[str, float]
) -> None:
    """Raise `VerificationError` if fewer pictures show what they should than of the original's."""
    for name, original in originals.items():
        if shares[name] < LEAST_ACCURACY * original:
            raise VerificationError(
                f"{info.label}: {name} is right in {shares[name]:.0%} of its pictures, in "
                f"{original:.0%} of the original's"
            )
