"""One contender of `benchmarks/gpu.py`, in a process of its own: its figures as one JSON document.

python -m benchmarks.contenders.on_gpu NAME --device cuda --size 1024
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.full_size import SDXL, TINY, serve
from export.compile.attention import pick_attention
from export.compile.options import CompileOptions
from export.compile.targets.inductor import compile_part
from export.likeness import psnr_db
from export.model.graphs import Decoder, Graph, UNetRows, decoder_graph, unet_example, unet_graph
from sdxl_bento.backends.attention import installed
from sdxl_bento.backends.cuda_graphs import GraphedPart
from sdxl_bento.backends.inductor import load
from sdxl_bento.backends.parts import PartOptions
from sdxl_bento.backends.quantized import quantize_unet
from sdxl_bento.diffusion.model import Placement
from sdxl_bento.dtypes import dtype_of
from sdxl_bento.manifest import BackendInfo, Quantization, Size

GUIDANCE = 5.0
QUANTIZED: Mapping[str, Quantization] = {"fp8": "fp8", "int8": "int8"}
Tensors = Mapping[str, torch.Tensor]
Figures = dict[str, Any]


@dataclass
class Ready:
    """What a contender offers. `notes` go into its figures."""

    denoise: Callable[[Tensors], torch.Tensor]
    decode: Callable[[torch.Tensor], torch.Tensor]
    notes: Figures


@dataclass
class Job:
    """What is to be built and measured. Sizes in pixels of a side."""

    name: str
    unet: Any
    vae: Any
    device: torch.device
    size: int
    rows: tuple[int, ...]
    work: Path
    autotune: bool

    @property
    def cells(self) -> int:
        return self.size // 8

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.unet.dtype
        return dtype

    def inputs(self, rows: int) -> dict[str, torch.Tensor]:
        return unet_example("base", self.unet, rows, self.cells, self.cells)

    @property
    def info(self) -> BackendInfo:
        return BackendInfo(
            backend="inductor",
            device=self.device.type,
            versions={},
            sizes=(Size(width=self.size, height=self.size),),
            rows=self.rows,
        )


def main() -> None:
    options = _options()
    placement = Placement.choose(options.device, "auto")
    served, _ = serve(placement, TINY if options.tiny else SDXL)
    base = served.model.base
    base.text_encoders.clear()  # their memory would count
    if placement.device.type == "cuda":
        base.vae.to(torch.bfloat16)  # the same for all; float16 overflows with the true weights
    job = Job(
        options.name, base.unet, base.vae, placement.device, options.size,
        (2, 2 * options.batch), options.work, options.autotune,
    )  # fmt: skip
    with torch.no_grad():
        print(json.dumps(measure(job, options)))


def measure(job: Job, options: argparse.Namespace) -> Figures:
    inputs = {rows: job.inputs(rows) for rows in job.rows}
    flops = count_flops(job, inputs[2])
    wanted = _in_float32(job.unet, inputs[2])
    latents = torch.randn(1, 4, job.cells, job.cells, device=job.device, dtype=job.vae.dtype)
    begin = time.perf_counter()
    ready = BUILDERS[job.name.partition("-")[0]](job)
    output = ready.denoise(inputs[2])
    ready.decode(latents)
    found: Figures = {
        "contender": job.name,
        "size": job.size,
        "ready_s": round(time.perf_counter() - begin, 1),
        "psnr_db": _decibels(output, wanted),
        **ready.notes,
    }
    _reset_peak(job.device)
    few = max(2, options.runs // 4)
    step = seconds(job.device, lambda: ready.denoise(inputs[2]), options.runs)
    crowd = seconds(job.device, lambda: ready.denoise(inputs[job.rows[1]]), few)
    decode = seconds(job.device, lambda: ready.decode(latents), few)
    image = seconds(job.device, lambda: picture(ready, inputs[2], latents.dtype, 30), 2)
    many = seconds(job.device, lambda: picture(ready, inputs[job.rows[1]], latents.dtype, 20), 1)
    limit = (30 * flops["unet"] + flops["decode"]) / 800e12
    return found | {
        "step_ms": round(step * 1e3, 3),
        f"step_{job.rows[1]}_rows_ms": round(crowd * 1e3, 3),
        "step_tflops": round(flops["unet"] / step / 1e12, 1),
        "decode_ms": round(decode * 1e3, 3),
        "image_30_steps_s": round(image, 4),
        "share_of_limit": round(limit / image, 3),
        "images_per_s_20_steps": round(job.rows[1] / 2 / many, 3),
        "batch": job.rows[1] // 2,
        "peak_gib": _peak(job.device),
        "unet_tflop": round(flops["unet"] / 1e12, 3),
        "decode_tflop": round(flops["decode"] / 1e12, 3),
    }


def picture(ready: Ready, example: Tensors, vae_dtype: torch.dtype, steps: int) -> torch.Tensor:
    """Denoise half as many pictures as there are rows, with guidance, and decode them one by one.

    Sigmas and timesteps are on the device beforehand, as they are in the engine. Euler's step
    (Karras et al. 2022, algorithm 1 without churn) over sigmas that fall evenly.
    """
    sample = example["sample"]
    images, device = len(sample) // 2, sample.device
    sigmas = torch.linspace(14.6, 0.0, steps + 1, device=device)
    times = torch.linspace(999.0, 1.0, steps, device=device)[:, None].expand(-1, 2 * images)
    latents = torch.randn(images, *sample.shape[1:], device=device) * sigmas[0]
    for step in range(steps):
        scaled = (latents / (sigmas[step] ** 2 + 1).sqrt()).to(sample.dtype)
        rows = {
            **example,
            "sample": torch.cat([scaled, scaled]),
            "timestep": times[step].contiguous(),
        }
        blank, asked = ready.denoise(rows).float().chunk(2)
        prediction = blank + GUIDANCE * (asked - blank)
        latents = latents + prediction * (sigmas[step + 1] - sigmas[step])
    return torch.cat([ready.decode(one[None].to(vae_dtype)) for one in latents])


def _eager(job: Job) -> Ready:
    unet, decoder = UNetRows(job.unet), Decoder(job.vae)
    return Ready(lambda x: unet(**x), decoder, {})


def _compile(job: Job) -> Ready:
    """As diffusers' documentation has it ("Accelerate inference", "torch.compile")."""
    from torch._inductor import config

    config.conv_1x1_as_mm = True
    config.coordinate_descent_tuning = True
    config.epilogue_fusion = False
    config.coordinate_descent_check_all_directions = True
    mode = "max-autotune" if job.autotune else "default"
    job.unet.fuse_qkv_projections()
    job.unet.to(memory_format=torch.channels_last)
    job.vae.to(memory_format=torch.channels_last)
    unet = UNetRows(torch.compile(job.unet, mode=mode, fullgraph=True))
    decoder = torch.compile(Decoder(job.vae), mode=mode, fullgraph=True)

    def denoise(inputs: Tensors) -> torch.Tensor:
        output: torch.Tensor = unet(**inputs)
        return output.clone()  # its CUDA graph writes there again

    return Ready(denoise, lambda x: decoder(x).clone(), {"mode": mode})


def _graphs(job: Job) -> Ready:
    """Ours without compilation: the attention picked, channels last, a CUDA graph a shape."""
    job.unet.to(memory_format=torch.channels_last)
    choice = pick_attention(job.unet, job.inputs(2), installed(job.device))
    unet = UNetRows(job.unet)

    class Part:
        def __call__(self, inputs: Tensors) -> torch.Tensor:
            output: torch.Tensor = unet(**inputs)
            return output

        def unload(self) -> None: ...

    part = GraphedPart(Part(), job.info) if job.device.type == "cuda" else Part()
    figures = {figure.name: figure.ms or figure.refused for figure in choice.figures}
    return Ready(part, Decoder(job.vae), {"attention": choice.name, "attention_ms": figures})


def _inductor(job: Job) -> Ready:
    """Ours: packages as the export makes them; "-static" with every size and row count fixed."""
    from diffusers.models.attention_processor import AttnProcessor2_0

    words = job.name.split("-")[1:]
    quantization = next((QUANTIZED[word] for word in words if word in QUANTIZED), None)
    parts, notes = job.work / job.name / str(job.size), Figures()
    for folder in (parts, job.work / "unet", job.work / "vae"):
        folder.mkdir(parents=True, exist_ok=True)
    _save(job.unet, job.work / "unet")
    _save(job.vae, job.work / "vae")
    natives = [name for name in installed(job.device) if "native" in name]
    choice = pick_attention(job.unet, job.inputs(2), natives)
    job.unet.set_attn_processor(AttnProcessor2_0())  # the compiler picks the kernel
    if "qkv" in words:
        job.unet.fuse_qkv_projections()
    notes["attention"] = choice.name
    if quantization:
        notes["quantized_layers"] = len(quantize_unet(job.unet, quantization))
    graph = unet_graph("base", job.unet, job.cells)
    graphs = {0: graph}
    if "static" in words:
        graphs = {rows: _static(graph, job.inputs(rows)) for rows in job.rows}
    options = CompileOptions(
        device=job.device,
        dtype=dtype_of(job.dtype),
        vae_dtype=dtype_of(job.vae.dtype),
        weights=job.work / "unet",
        quantization=quantization,
        sizes=((job.size, job.size),),
        rows=job.rows,
        attention=choice.name,
    )
    paths = {}
    for rows, one in graphs.items():
        (parts / str(rows)).mkdir(exist_ok=True)
        paths[rows] = _compiled(one, parts / str(rows), options)
    decoder = _compiled(
        decoder_graph("base", job.vae, job.cells), parts, replace(options, weights=job.work / "vae")
    )
    torch.nn.Module.to(job.unet, "meta")
    torch.nn.Module.to(job.vae, "meta")
    runtime = PartOptions(info=job.info, device=job.device, weights=job.work / "unet")
    denoisers = {rows: load(path, runtime) for rows, path in paths.items()}
    decode = load(decoder, replace(runtime, weights=job.work / "vae"))
    notes["package_mb"] = round(sum(p.stat().st_size for p in paths.values()) / 1e6, 1)

    def denoise(inputs: Tensors) -> torch.Tensor:
        return denoisers.get(len(inputs["sample"]), denoisers.get(0))(inputs)  # type: ignore[misc]

    return Ready(denoise, lambda x: decode({"latents": x}), notes)


def _static(graph: Graph, inputs: Tensors) -> Graph:
    return replace(graph, inputs=inputs, dynamic={name: {} for name in inputs})


def _compiled(graph: Graph, folder: Path, options: CompileOptions) -> Path:
    """The package, from an earlier run with the same folder if there is one."""
    path = folder / f"{graph.part.replace('/', '-')}.pt2"
    return path if path.exists() else compile_part(graph, graph.trace(), folder, options)


def _save(module: torch.nn.Module, folder: Path) -> None:
    from safetensors.torch import save_file

    path = folder / "diffusion_pytorch_model.safetensors"
    if not path.exists():
        save_file({name: x.contiguous() for name, x in module.state_dict().items()}, path)


BUILDERS: Mapping[str, Callable[[Job], Ready]] = {
    "eager": _eager,
    "compile": _compile,
    "graphs": _graphs,
    "inductor": _inductor,
}


def count_flops(job: Job, inputs: Tensors) -> dict[str, float]:
    """Floating point operations of a forward with these rows, and of a decode of one picture."""
    from torch.utils.flop_counter import FlopCounterMode

    counts = {}
    latents = torch.empty(1, 4, job.cells, job.cells, device="meta", dtype=job.vae.dtype)
    calls: dict[str, Callable[[], object]] = {
        "unet": lambda: UNetRows(_on_meta(job.unet))(
            **{k: x.to("meta") for k, x in inputs.items()}
        ),
        "decode": lambda: Decoder(_on_meta(job.vae))(latents),
    }
    for name, call in calls.items():
        with FlopCounterMode(display=False) as counter:
            call()
        counts[name] = float(counter.get_total_flops())
    return counts


def _on_meta(module: Any) -> Any:
    with torch.device("meta"):
        return type(module).from_config(module.config).to(module.dtype)


def _in_float32(unet: Any, inputs: Tensors) -> torch.Tensor:
    """The output of the same weights in float32."""
    dtype = unet.dtype
    unet.float()
    output: torch.Tensor = UNetRows(unet)(**{name: x.float() for name, x in inputs.items()})
    unet.to(dtype)
    return output


def _decibels(output: torch.Tensor, wanted: torch.Tensor) -> float | None:
    """None where both are equal: JSON has no infinity."""
    found = psnr_db(output.float(), wanted)
    return round(found, 1) if math.isfinite(found) else None


def seconds(device: torch.device, call: Callable[[], object], runs: int) -> float:
    """Time of a call when the device is kept busy with them. The first is a warm-up."""
    call()
    _wait(device)
    begin = time.perf_counter()
    for _ in range(runs):
        call()
    _wait(device)
    return (time.perf_counter() - begin) / runs


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _peak(device: torch.device) -> float | None:
    """GiB; None on a CPU, where nobody counts them."""
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("name")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--no-autotune", dest="autotune", action="store_false")
    return parser.parse_args()


if __name__ == "__main__":
    main()
