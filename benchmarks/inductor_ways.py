"""How should Inductor's work be kept: a package with or without weights, or the compile cache?

The embedded UNet in float32 on the CPU. Compiling and using are separate processes, with an empty
compile cache each; every way is timed against eager in the same process, taking turns.

    package   AOTInductor without weights, which are set from the module's at load
    frozen    AOTInductor with its weights inside, prepacked (`freezing`)
    cache     `torch.compile(dynamic=True)` and `torch.compiler.save_cache_artifacts`

    python -m benchmarks.inductor_ways compile WAY FILE     FILE ends in .pt2, or in .bin for cache
    python -m benchmarks.inductor_ways use WAY FILE
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from export.embedded import WEIGHTS
from export.model.graphs import Graph, unet_example, unet_graph

ROWS = (1, 2, 4, 8)
CELLS = 16
Run = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]


def main(action: str, way: str, file: Path) -> None:
    from torch._inductor.utils import fresh_cache

    with tempfile.TemporaryDirectory() as scratch, fresh_cache(dir=scratch, delete=False):
        found = compiled(way, file) if action == "compile" else used(way, file)
    print(json.dumps({"way": way, **found}))


def graph() -> tuple[Graph, Any]:
    from diffusers import UNet2DConditionModel

    model: Any = UNet2DConditionModel
    unet = model.from_pretrained(WEIGHTS / "base" / "unet", torch_dtype=torch.float32)
    return unet_graph("base", unet.eval().requires_grad_(False), CELLS), unet


def compiled(way: str, file: Path) -> dict[str, Any]:
    from torch._inductor import aoti_compile_and_package

    made, unet = graph()
    begin = time.perf_counter()
    with torch.no_grad():
        if way == "cache":
            module = torch.compile(made.module, dynamic=True)
            for rows in (2, 1, 8):
                module(**unet_example("base", unet, rows, CELLS, CELLS))
            saved = torch.compiler.save_cache_artifacts()
            file.write_bytes(saved[0] if saved else b"")
        else:
            config: dict[str, Any] = {"aot_inductor.precompile_headers": False}
            config |= (
                {"freezing": True}
                if way == "frozen"
                else {"aot_inductor.package_constants_in_so": False}
            )
            aoti_compile_and_package(made.trace(), package_path=str(file), inductor_configs=config)
    return {"compile_s": round(time.perf_counter() - begin, 1), "bytes": file.stat().st_size}


def used(way: str, file: Path) -> dict[str, Any]:
    made, unet = graph()
    examples = {rows: unet_example("base", unet, rows, CELLS, CELLS) for rows in ROWS}
    begin = time.perf_counter()
    run = _loaded(way, file, made)
    loaded = time.perf_counter()
    with torch.no_grad():
        run(examples[2])
        first = time.perf_counter()
        times = {rows: _times(run, made, example) for rows, example in examples.items()}
    return {"load_s": round(loaded - begin, 3), "first_s": round(first - loaded, 3), "ms": times}


def _loaded(way: str, file: Path, made: Graph) -> Run:
    if way == "cache":
        torch.compiler.load_cache_artifacts(file.read_bytes())
        module = torch.compile(made.module, dynamic=True)
        return lambda inputs: module(**inputs)
    loader: Any = torch._C._aoti.AOTIModelPackageLoader(str(file), "model", False, 1, -1)
    if way == "package":
        weights = made.module.state_dict()
        names = loader.get_constant_fqns()
        loader.load_constants({name: weights[name] for name in names}, False, True, True)
    return lambda inputs: loader.boxed_run(list(inputs.values()))[0]


def _times(run: Run, made: Graph, inputs: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Median milliseconds, and how many times as fast as eager."""
    taken: dict[str, list[float]] = {"eager": [], "ours": []}
    calls: dict[str, Callable[[], object]] = {
        "eager": lambda: made.module(**inputs),
        "ours": lambda: run(inputs),
    }
    for turn in range(18):
        for name, call in calls.items():
            begin = time.perf_counter()
            call()
            if turn > 2:
                taken[name].append((time.perf_counter() - begin) * 1e3)
    eager, ours = (statistics.median(taken[name]) for name in ("eager", "ours"))
    return {"ms": round(ours, 2), "against_eager": round(eager / ours, 2)}


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
