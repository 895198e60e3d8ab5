"""Whole pictures by a compiled backend, against those of the eager float32 model.

They are drawn by the service's own engine, with the same prompts and seeds.
"""

from __future__ import annotations

import importlib.util
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from export.errors import VerificationError
from sdxl_bento.config import Settings
from sdxl_bento.manifest import BackendInfo, ImageFigure, Manifest, WeightDtype

if TYPE_CHECKING:
    from sdxl_bento.serving.loaded import Loaded

Floats = NDArray[np.float64]

PROMPTS = (
    "a red circle on a blue background",
    "a photo of a red fox in the snow at sunrise",
    "an oil painting of a harbour with sailing boats",
    "a yellow star on a green background",
)
STEPS = 20
SCENES = 24  # pictures that the embedded model's checker reads
# Least PSNR of a picture in dB. Twenty steps carry a rounding on, most where an edge moves by a
# pixel, so these are lower than a forward's.
LEAST_PSNR_DB: Mapping[WeightDtype, float] = {"fp32": 40.0, "fp16": 25.0, "bf16": 20.0}
LEAST_PSNR_QUANTIZED_DB = 12.0
LEAST_ACCURACY = 0.9  # of the embedded model's colours, as a share of the original's


@dataclass(frozen=True)
class Verdict:
    """What the pictures of a backend have shown."""

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
    expected = draw(folder, "eager", prompts)
    found = draw(folder, info.label, prompts)
    figures = tuple(
        compare(prompt, seed, found[seed], expected[seed])
        for seed, prompt in enumerate(PROMPTS[:count])
    )
    _check(info, figures)
    accuracy: dict[str, float] = {}
    if scenes:
        accuracy = _accuracy(scenes, found[len(figures) :])
        _check_accuracy(info, accuracy, _accuracy(scenes, expected[len(figures) :]))
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
        prepare: is given the loaded model before the first picture.

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
    # The defaults, whatever the environment says: figures of two machines are to be compared.
    settings = Settings.model_construct(
        backend=backend, dtype="fp32" if eager else "auto", allow_fallback=False
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


def compare(prompt: str, seed: int, found: Image, expected: Image) -> ImageFigure:
    """The distance of two pictures."""
    a, b = (np.asarray(image.convert("RGB"), dtype=np.float64) for image in (found, expected))
    mse = float(((a - b) ** 2).mean())
    psnr = None if mse == 0 else round(10 * float(np.log10(255**2 / mse)), 2)
    return ImageFigure(prompt=prompt, seed=seed, psnr_db=psnr, ssim=round(ssim(a, b), 4))


def ssim(a: Floats, b: Floats) -> float:
    """Structural similarity of two pictures [H, W, 3] in 0 to 255, mean over the channels.

    Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004:
    Gaussian window of 11 cells with sigma 1.5, K1 = 0.01, K2 = 0.03.
    """
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(x: Floats) -> Floats:
        for axis in (0, 1):
            x = np.apply_along_axis(np.convolve, axis, x, window, "valid")
        return x

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    cov = blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * cov + c2) / (var_a + var_b + c2)
    return float((luminance * structure).mean())


def _check(info: BackendInfo, figures: Sequence[ImageFigure]) -> None:
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


def _check_accuracy(
    info: BackendInfo, found: Mapping[str, float], expected: Mapping[str, float]
) -> None:
    for name, share in found.items():
        if share < LEAST_ACCURACY * expected[name]:
            raise VerificationError(
                f"{info.label}: {name} is right in {share:.0%} of its pictures, in "
                f"{expected[name]:.0%} of the original's"
            )
