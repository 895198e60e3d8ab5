"""What do LoRA adapters cost in a UNet forward when every request of the batch has its own?

A merged adapter costs nothing, but then all rows have the same one. To let rows differ, each layer
must compute `up (down x)` beside `W x`. The arithmetic of that is small, `r (in + out)` against
`in * out` for a linear layer: 25 % at 64 channels and rank 8, 1.3 % at 1280. The rest of the cost
is how it is cut into kernels: eight adapters mean either eight times as many small ones or a
batched one, and a tiny model is made of small kernels already. So the ratio to a forward without
adapters is what counts, on a tiny and on a mid-sized UNet, for linear layers alone and with
convolutions.

Each contender (see `lora_contenders.py`) runs in a fresh process. In it, forwards with no adapter,
one adapter in all rows, and eight different ones take turns, so that a machine that is busy with
something else slows all of them. A figure is the median over the rounds of the ratio within one
round; times are the seconds that the thread was on the CPU (on a GPU: wall clock around a
synchronised forward). `first` is the first step of a batch into which two requests with new scales
have come; `eight` is each later one. `difference` is the largest to PEFT's output, whose range is
about ±2.

    python -m benchmarks.lora [--rounds 15] [--device cuda --dtype fp16] [--models embedded]

The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from copy import deepcopy
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.lora_contenders import CONTENDERS, make
from sdxl_bento.diffusion.lora.factors import LowRank
from sdxl_bento.diffusion.lora.layers import Mix
from sdxl_bento.dtypes import DTYPES, torch_dtype

EMBEDDED = Path(__file__).parents[1] / "export" / "embedded" / "weights" / "base" / "unet"
MODELS = {"embedded": (16, 8), "mid": (16, 16)}  # latent side, rank
REQUESTS, ROWS_EACH = 8, 2
LINEAR = r"attn\d\.to_[qkv]$|to_out\.0$|proj_(in|out)$|ff\.net\.(0\.proj|2)$"
KINDS = {"linear": LINEAR, "linear + conv": rf"{LINEAR}|resnets\.\d\.conv[12]$"}


def build_unet(model: str) -> Any:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    config = dict(UNet2DConditionModel.load_config(EMBEDDED))
    if model == "mid":
        config |= {
            "block_out_channels": (64, 128, 256),
            "attention_head_dim": (1, 2, 4),
            "layers_per_block": 2,
            "transformer_layers_per_block": (1, 1, 2),
            "cross_attention_dim": 512,
            "norm_num_groups": 32,
        }
    return UNet2DConditionModel.from_config(config).eval().requires_grad_(False)  # type: ignore[no-untyped-call]


def draw_adapters(unet: nn.Module, layers: str, rank: int) -> dict[str, dict[str, LowRank]]:
    adapters: dict[str, dict[str, LowRank]] = {}
    chosen = [(name, m.weight) for name, m in unet.named_modules() if re.search(layers, name)]
    for i in range(REQUESTS):
        adapters[f"a{i}"] = {
            name: LowRank(
                (torch.randn(rank, *weight.shape[1:]) / weight[0].numel() ** 0.5).to(weight),
                (torch.randn(weight.shape[0], rank) / rank).to(weight),
            )
            for name, weight in chosen
        }
    return adapters


def draw_inputs(unet: Any, side: int) -> dict[str, Any]:
    rows, config = REQUESTS * ROWS_EACH, unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(rows, *shape).to(unet.device, unet.dtype)

    return {
        "sample": draw(4, side, side),
        "timestep": torch.full((rows,), 500.0, device=unet.device),
        "encoder_hidden_states": draw(77, config.cross_attention_dim),
        "added_cond_kwargs": {"text_embeds": draw(pooled), "time_ids": draw(6)},
    }


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.thread_time()


@torch.inference_mode()
def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One contender, one model, one kind of adapter, in this process."""
    warnings.simplefilter("ignore")  # PEFT's, about having more than one adapter
    torch.set_num_threads(args.threads)
    side, rank = MODELS[args.model]
    plain = build_unet(args.model).to(args.device)
    if args.dtype != "fp32":
        plain.to(torch_dtype(args.dtype))
    adapters = draw_adapters(plain, KINDS[args.kind], rank)
    inputs = draw_inputs(plain, side)
    unet = deepcopy(plain)
    way = make(args.contender, unet, adapters)
    one: list[Mix] = [(("a0", 1.0),)] * (REQUESTS * ROWS_EACH)
    eight: list[Mix] = [((f"a{i}", 1.0),) for i in range(REQUESTS) for _ in range(ROWS_EACH)]

    def timed(prepared: Any) -> tuple[float, torch.Tensor]:
        begin = clock(args.device)
        if prepared is None:
            output = plain(**inputs).sample
        else:
            with way.active(prepared):
                output = unet(**inputs).sample
        return clock(args.device) - begin, output

    def newcomers(i: int) -> list[Mix]:
        return [((name, 0.5 + 0.01 * i),) for name in ("a6", "a7") for _ in range(ROWS_EACH)]

    timed(None)
    prepared = {"one": way.prepare(one), "eight": way.prepare(eight)}
    for ready in prepared.values():
        timed(ready)
    rounds: list[dict[str, float]] = []
    for _ in range(args.rounds):
        figures = {"none": timed(None)[0]}
        figures |= {name: timed(ready)[0] for name, ready in prepared.items()}
        begin = clock(args.device)
        fresh = way.prepare([*eight[:-4], *newcomers(len(rounds))])
        figures["first"] = clock(args.device) - begin + timed(fresh)[0]
        rounds.append(figures)
    # Prepared anew, because PEFT has one scale for each adapter and the newcomers have set it.
    save_file({"output": timed(way.prepare(eight))[1].float().cpu().contiguous()}, args.output)
    ratios = {
        name: round(statistics.median(r[name] / r["none"] for r in rounds), 3)
        for name in ("one", "eight", "first")
    }
    return {"none_ms": round(statistics.median(r["none"] for r in rounds) * 1e3, 2)} | ratios


def in_fresh_process(args: argparse.Namespace, folder: Path, **which: str) -> dict[str, Any]:
    output = folder / "-".join(which.values()).replace(" ", "")
    command = [sys.executable, "-m", "benchmarks.lora", "--output", str(output)]
    for name in ("rounds", "threads", "device", "dtype"):
        command += [f"--{name}", str(getattr(args, name))]
    for name, value in which.items():
        command += [f"--{name}", value]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = which | json.loads(done.stdout.splitlines()[-1])
    reference = output.with_name(output.name.replace(which["contender"], "peft"))
    ours, theirs = (load_file(path)["output"] for path in (output, reference))
    return result | {"difference": float(f"{(ours - theirs).abs().max():.1e}")}


def describe_machine(args: argparse.Namespace) -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"model name\s*: (.*)", info.read_text())):
        name = found[1]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else name,
        "dtype": args.dtype,
        "threads": args.threads,
        "versions": {name: version(name) for name in ("torch", "diffusers", "peft")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    for name in ("model", "kind", "contender", "output"):  # of the process of one contender
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        print(json.dumps(measure(args)))
        return
    results = []
    columns = ("none_ms", "one", "eight", "first", "difference")
    print(f"{'model':10} {'adapters':14} {'contender':10}" + "".join(f"{c:>12}" for c in columns))
    with tempfile.TemporaryDirectory() as folder:
        for model in args.models:
            for kind in KINDS:
                for contender in CONTENDERS:
                    which = {"model": model, "kind": kind, "contender": contender}
                    result = in_fresh_process(args, Path(folder), **which)
                    results.append(result)
                    row = "".join(f"{result[column]:>12}" for column in columns)
                    print(f"{model:10} {kind:14} {contender:10}{row}", flush=True)
    print(json.dumps({"benchmark": "lora", **describe_machine(args), "results": results}))


if __name__ == "__main__":
    main()
