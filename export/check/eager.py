"""Verification of the written weights against their source, component by component.

Each component runs one forward in float32, with small random inputs that are the same each time.
All of its weights must be there, and its output must be finite. A component whose weights were
converted to another dtype must also give nearly the output of its source; of one that was copied
unchanged, the files must be equal to the source's.
"""

from __future__ import annotations

import filecmp
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.errors import SourceError, VerificationError
from export.likeness import compare_outputs
from export.model.geometry import TIME_IDS
from export.model.inspection import Component, Pipeline
from sdxl_bento.manifest import ParityFigure

if TYPE_CHECKING:
    from torch import Tensor

PARTS = ("text_encoder", "text_encoder_2", "unet", "vae")
LEAST_PSNR_DB = 30.0
MOST_CELLS = 32


def verify_pipeline(
    pipeline: Pipeline, written: Path, converted: frozenset[str], scratch: Path
) -> tuple[ParityFigure, ...]:
    """Parity figures of a pipeline that was written from a source.

    Args:
        pipeline: the source.
        written: the folder of the written pipeline.
        converted: names of the components whose weights have another dtype than the source's.
        scratch: an existing folder for temporary links to the source's files.

    Raises:
        SourceError: weights are missing or do not fit their config.
        VerificationError: a copied file differs from the source's; or an output is not finite, or
            further from the source's than `LEAST_PSNR_DB`.
    """
    figures = []
    for name in PARTS:
        component = pipeline.components.get(name)
        if component is None:
            continue
        part = f"{pipeline.role}/{name}"
        if name not in converted:
            _check_copies(part, component, written / name)
        output = _run(pipeline, component, written / name)
        reference = output
        if name in converted:
            with _source_view(component, scratch) as folder:
                reference = _run(pipeline, component, folder)
        figures.append(_compare(part, output, reference))
    return tuple(figures)


def _check_copies(part: str, component: Component, folder: Path) -> None:
    for name, source in component.files.items():
        if not filecmp.cmp(source, folder / name, shallow=False):
            raise VerificationError(f"{part}: the copy of {name} differs from its source")


@contextmanager
def _source_view(component: Component, scratch: Path) -> Iterator[Path]:
    """The source's files under their plain names, by links, so that libraries can load them."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for name, source in component.files.items():
            (Path(folder) / name).symlink_to(source.resolve())
        yield Path(folder)


def _compare(part: str, output: Tensor, reference: Tensor) -> ParityFigure:
    figure = compare_outputs(part, output, reference, against="source")
    if figure.psnr_db is not None and figure.psnr_db < LEAST_PSNR_DB:
        raise VerificationError(
            f"{part}: {figure.psnr_db} dB from its source, at least {LEAST_PSNR_DB} dB are needed; "
            "choose a wider --dtype"
        )
    return figure


def _run(pipeline: Pipeline, component: Component, folder: Path) -> Tensor:
    """Output of one forward of the component in `folder`."""
    import torch

    model = _load(component, folder)
    random = torch.Generator("cpu").manual_seed(0)
    forward = {"unet": _unet, "vae": _vae}.get(component.name, _text_encoder)
    with torch.inference_mode():
        try:
            return forward(model, pipeline, random)
        except Exception as error:  # as for loading
            raise _unusable(component, "run", error) from error


def _unusable(component: Component, verb: str, error: Exception) -> SourceError:
    reason = " ".join(str(error).split())[:300]
    return SourceError(
        component.name, f"{component.class_name} cannot {verb} it: {reason}",
        "weights that fit their config",
    )  # fmt: skip


def _vae(model: Any, pipeline: Pipeline, random: Any) -> Tensor:
    import torch

    side = _cells(pipeline)
    latents = torch.randn((1, pipeline.geometry.latent_channels, side, side), generator=random)
    return _tensor(model.decode(latents).sample)


def _text_encoder(model: Any, _pipeline: Pipeline, random: Any) -> Tensor:
    """The two outputs that SDXL uses: the hidden states before the last, and the pooled one."""
    import torch

    ids = torch.randint(0, model.config.vocab_size, (1, 77), generator=random)
    result = model(ids, output_hidden_states=True)
    hidden = _tensor(result.hidden_states[-2]).flatten()
    pooled = getattr(result, "text_embeds", None)
    return hidden if pooled is None else torch.cat([hidden, _tensor(pooled).flatten()])


def _unet(model: Any, pipeline: Pipeline, random: Any) -> Tensor:
    import torch

    config = pipeline.components["unet"].config
    cross = config["cross_attention_dim"]
    width = cross[0] if isinstance(cross, list) else cross
    pooled = pipeline.components["text_encoder_2"].config["projection_dim"]
    side = _cells(pipeline)
    native = float(pipeline.geometry.width)
    ids = [native, native, 0.0, 0.0, native, native]
    if TIME_IDS[pipeline.role] == 5:
        ids = [native, native, 0.0, 0.0, 6.0]
    result = model(
        torch.randn((2, 4, side, side), generator=random),
        torch.tensor([150, 50]),
        torch.randn((2, 77, width), generator=random),
        added_cond_kwargs={
            "text_embeds": torch.randn((2, pooled), generator=random),
            "time_ids": torch.tensor([ids, ids]),
        },
    )
    return _tensor(result.sample)


def _cells(pipeline: Pipeline) -> int:
    """Side of the test latents: the native one, but no more than `MOST_CELLS`."""
    geometry = pipeline.geometry
    return min(MOST_CELLS, geometry.width // geometry.vae_scale_factor)


def _tensor(value: Any) -> Tensor:
    tensor: Tensor = value
    return tensor.float()


def _load(component: Component, folder: Path) -> Any:
    """The component in float32, from safetensors only, with every weight present."""
    import torch

    loaders: dict[str, Any]
    if component.library == "diffusers":
        from diffusers import AutoencoderKL, UNet2DConditionModel

        loaders = {"AutoencoderKL": AutoencoderKL, "UNet2DConditionModel": UNet2DConditionModel}
        options = {"torch_dtype": torch.float32}
    else:
        from transformers import CLIPTextModel, CLIPTextModelWithProjection
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # export has its own
        loaders = {
            "CLIPTextModel": CLIPTextModel,
            "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
        }
        options = {"dtype": torch.float32}
    try:
        model, report = loaders[component.class_name].from_pretrained(
            folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
        )
    except Exception as error:  # a config can be wrong in as many ways as libraries have errors
        raise _unusable(component, "load", error) from error
    missing = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if missing:
        raise SourceError(
            component.name, f"{len(missing)} weights missing or misshapen, as {missing[0]}",
            "every weight of its config",
        ) from None  # fmt: skip
    return model.eval()
