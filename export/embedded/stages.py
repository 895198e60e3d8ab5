"""The stages of training: their inputs, their products, and their length.

A stage is done when its product lies in the work directory. Checkpoints of an interrupted stage
lie beside it (``<stage>.ckpt``).
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from export.embedded import (
    WEIGHTS,
    assemble,
    decoder,
    lora,
    pool,
    refiner,
    text,
    tokenizer,
    unet,
    vae,
)
from export.embedded.images import Size
from export.embedded.networks import AutoencoderKL, Unet, UNet2DConditionModel, Vae
from export.embedded.training import Plan


@dataclass(frozen=True)
class Context:
    """The folders of a training run."""

    work: Path
    seed: int = 0
    target: Path = WEIGHTS


@dataclass(frozen=True)
class Stage:
    """One step of the recipe."""

    needs: tuple[str, ...]
    product: str  # below the work directory
    run: Callable[[Context], None]


def _plan(stage: str, context: Context) -> Plan:
    """The settings that the shipped weights were trained with."""
    seed = context.seed
    plans = {
        "text": Plan("text", 600, 2e-3, average=0.99, seed=seed),
        "vae": Plan(
            "vae", 1500, 1e-3, warmup=60, final_rate=1e-5, decay=1e-4, average=0.995, seed=seed
        ),
        "decoder": Plan("decoder", 1800, 8e-4, decay=1e-4, average=0.997, seed=seed),
        "unet": Plan("unet", 4000, 1.2e-3, warmup=100, seed=seed),
        # It starts from the averaged weights with a new optimizer. Compared with a longer first
        # stage, usable weights are there half-way.
        "polish": Plan("polish", 3600, 7e-4, warmup=60, seed=seed),
        "refiner": Plan("refiner", 4700, 1.2e-3, average=0.997, seed=seed),
        "striped": Plan("striped", 500, 2e-3, warmup=30, decay=0, average=0.98, seed=seed),
        "outlined": Plan("outlined", 400, 2e-3, warmup=30, decay=0, average=0.98, seed=seed),
    }
    return plans[stage]


def _load_text(context: Context) -> text.TextEncoders:
    encoders = text.TextEncoders(tokenizer.load_both(context.work))
    encoders.load_state_dict(load_file(context.work / "text.safetensors"))
    return encoders.eval().requires_grad_(False)


def _load_vae(context: Context, name: str = "vae") -> Vae:
    return AutoencoderKL.from_pretrained(context.work / name).eval()


def _load_unet(context: Context, name: str) -> Unet:
    return UNet2DConditionModel.from_pretrained(context.work / name).eval()


def _save_unet(model: Unet, folder: Path) -> None:
    model.to(memory_format=torch.contiguous_format).save_pretrained(folder)


def _run_tokenizer(context: Context) -> None:
    tokenizer.save_both(context.work)


def _run_text(context: Context) -> None:
    encoders = text.train(_plan("text", context), context.work)
    save_file(encoders.state_dict(), context.work / "text.safetensors")


def _run_vae(context: Context) -> None:
    model = vae.train(_plan("vae", context), context.work)
    model.to(memory_format=torch.contiguous_format)
    vae.fold_statistics(model, context.seed)
    model.save_pretrained(context.work / "vae")


def _run_decoder(context: Context) -> None:
    model = decoder.train(_plan("decoder", context), context.work, _load_vae(context))
    model.save_pretrained(context.work / "vae_sharp")


def _run_latents(context: Context) -> None:
    encoders, model = _load_text(context), _load_vae(context)
    rows: dict[Size, pool.Rows] = {}
    for size, count in pool.COUNTS.items():
        print(f"latents {size[0]}x{size[1]}: {count} pictures", flush=True)
        drawn = pool.draw(encoders, size, count, f"{context.seed}/unet")
        rows[size] = pool.Rows(pool.encode(model, drawn.pictures), drawn.hidden, drawn.pooled)
    pool.save_rows(rows, context.work / "latents.pt")


def _run_unet(context: Context) -> None:
    rows = pool.load_rows(context.work / "latents.pt")
    torch.manual_seed(context.seed + 2)
    model, plan = unet.build(), _plan("unet", context)
    unet.train(plan, context.work, model, rows, _load_text(context))
    _save_unet(model, context.work / "unet")


def _run_polish(context: Context) -> None:
    rows = pool.load_rows(context.work / "latents.pt")
    model, plan = _load_unet(context, "unet"), _plan("polish", context)
    unet.train(plan, context.work, model, rows, _load_text(context), null_every=4)
    _save_unet(model, context.work / "unet_polished")


def _run_refiner(context: Context) -> None:
    rows = pool.load_rows(context.work / "latents.pt")
    model = refiner.train(_plan("refiner", context), context.work, rows, _load_text(context))
    _save_unet(model, context.work / "refiner")


def _run_style(style: str) -> Callable[[Context], None]:
    def run(context: Context) -> None:
        encoders = _load_text(context)
        rows = lora.draw_style(encoders, _load_vae(context), style, context.seed)
        model = _load_unet(context, "unet_polished")
        plan = _plan(style, context)
        weights = lora.train(plan, context.work, model, rows, encoders, style)
        lora.save(weights, style, context.work / "loras")

    return run


def _run_assemble(context: Context) -> None:
    # The parts are loaded twice because publishing turns them into half precision in place.
    base = (
        _load_text(context),
        _load_vae(context, "vae_sharp"),
        _load_unet(context, "unet_polished"),
    )
    assemble.publish_base(*base, context.target / "base")
    fine = _load_text(context), _load_vae(context, "vae_sharp"), _load_unet(context, "refiner")
    assemble.publish_refiner(*fine, context.target / "refiner")
    (context.target / "loras").mkdir(parents=True, exist_ok=True)
    for path in (context.work / "loras").glob("*.safetensors"):
        (context.target / "loras" / path.name).write_bytes(path.read_bytes())


STAGES: dict[str, Stage] = {
    "tokenizer": Stage((), "tokenizer_2", _run_tokenizer),
    "text": Stage(("tokenizer",), "text.safetensors", _run_text),
    "vae": Stage((), "vae", _run_vae),
    "latents": Stage(("text", "vae"), "latents.pt", _run_latents),
    "decoder": Stage(("vae",), "vae_sharp", _run_decoder),
    "unet": Stage(("latents",), "unet", _run_unet),
    "polish": Stage(("unet",), "unet_polished", _run_polish),
    "refiner": Stage(("latents",), "refiner", _run_refiner),
    "striped": Stage(("polish",), "loras/striped.safetensors", _run_style("striped")),
    "outlined": Stage(("polish",), "loras/outlined.safetensors", _run_style("outlined")),
    "assemble": Stage(
        ("decoder", "polish", "refiner", "striped", "outlined"), "assembled", _run_assemble
    ),
}
"""In the order in which one process would run them all."""


def run_stage(name: str, context: Context) -> None:
    """Run a stage and those that it needs, unless they are done. ``assemble`` always runs."""
    stage = STAGES[name]
    if name != "assemble" and (context.work / stage.product).exists():
        return
    for need in stage.needs:
        run_stage(need, context)
    print(f"stage {name}", flush=True)
    stage.run(context)
