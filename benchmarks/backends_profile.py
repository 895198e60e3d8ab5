"""Where does the time of a compiled UNet go on this CPU, and what would its arithmetic cost alone?

OpenVINO and ONNX Runtime count the time of each of their nodes; here it is summed by what the node
does. Beside it stand the operations of a forward (multiplications and additions, counted on a
UNet without weights) and what a large matrix product reaches here, in float32 and in eight bits:
convolutions and linear layers can be no quicker than their operations at that rate.

The profiled forwards are slower than others by what counting costs. Nodes are named by the
runtimes: a fused one counts as what its first part does, and OpenVINO's fused attention is among
"attention and fused". The contenders are those of `benchmarks/backends.py`, compiled by it.

    python -m benchmarks.backends_profile --folder FOLDER [--rows 1 8] [--models mid]

With `--threads 1` rates and forwards are in processor time; nodes are always by the clock.

The last line of the output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.backends import CELLS, COMPILED, CONTENDERS, CPU, load_unet
from benchmarks.report import machine, number, show
from export.model.graphs import UNetRows, draw_example
from sdxl_bento.backends.openvino import import_openvino, settings, weights_of
from sdxl_bento.backends.parts import PartOptions

DEFAULT = ("onnx-fp32", "onnx-fp32-int8-static", "openvino-fp32", "openvino-fp32-int8-static")
RUNS = 8
SIDE = 2048  # of the matrices whose product is timed
# Part of a node's kind -> what it does, the first that fits.
GROUPS = {
    "rounding": ("quantize", "convert"),
    "convolutions": ("conv",),
    "linear": ("fullyconnected", "gemm", "matmul"),
    "attention and fused": ("softmax", "subgraph", "attention"),
    "norms": ("norm", "mvn"),
    "elementwise": ("mul", "add", "sub", "swish", "gelu", "sigmoid", "div"),
}
REST = "copies and the rest"
Arrays = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="of benchmarks.backends")
    parser.add_argument("--models", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(DEFAULT))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    console = Console(stderr=True, width=120)
    rates = {kind: round(product_rate(kind, args.threads), 1) for kind in ("fp32", "int8")}
    console.print(f"a product of {SIDE}² matrices, GFLOP/s: {rates}")
    found = []
    for model in args.models:
        unet = load_unet(model)
        for rows in args.rows:
            inputs = draw_example("base", unet.config, rows, CELLS[model], CELLS[model])
            flops = operations(unet, inputs)
            arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
            profiles = {name: profile(name, model, arrays, args) for name in args.contenders}
            found.append({"model": model, "rows": rows, "gflop": flops, "ms": profiles})
            tell(console, found[-1], rates)
    document = {"benchmark": "backends_profile", **machine(), "threads": args.threads}
    print(json.dumps(document | {"gflop_per_s": rates, "profiles": found}))


def operations(unet: Any, inputs: dict[str, torch.Tensor]) -> dict[str, float]:
    """GFLOP of a forward, by what they are for."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        module = UNetRows(type(unet).from_config(unet.config))
    with FlopCounterMode(display=False) as counter:
        module(**{name: tensor.to("meta") for name, tensor in inputs.items()})
    sums: Counter[str] = Counter()
    for operator, count in counter.get_flop_counts()["Global"].items():
        name = str(operator)
        kind = "attention" if "bmm" in name or "attention" in name else "linear"
        sums["convolutions" if "conv" in name else kind] += count
    return {kind: round(count / 1e9, 3) for kind, count in sums.items()}


def product_rate(kind: str, threads: int) -> float:
    """GFLOP/s of ONNX Runtime's product of two square matrices."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto
    from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

    eight = kind == "int8"
    types = (TensorProto.UINT8, TensorProto.INT8) if eight else (TensorProto.FLOAT,) * 2
    output = TensorProto.INT32 if eight else TensorProto.FLOAT
    graph = make_graph(
        [make_node("MatMulInteger" if eight else "MatMul", ["a", "b"], ["c"])],
        "product",
        [make_tensor_value_info(n, t, [SIDE, SIDE]) for n, t in zip("ab", types, strict=True)],
        [make_tensor_value_info("c", output, [SIDE, SIDE])],
    )
    model = make_model(graph, opset_imports=[make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    random = np.random.default_rng(0)
    dtypes = (np.uint8, np.int8) if eight else (np.float32, np.float32)
    feed = {
        name: random.integers(0, 99, (SIDE, SIDE)).astype(dtype)
        for name, dtype in zip("ab", dtypes, strict=True)
    }
    seconds = statistics.quantiles(times(lambda: session.run(None, feed)), n=4)[0]
    return 2 * SIDE**3 / seconds / 1e9


def times(run: Callable[[], object]) -> list[float]:
    """Seconds of some runs, after one that warms up: the processor's, where there is one thread."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    run()
    found = []
    for _ in range(RUNS):
        began = clock()
        run()
        found.append(clock() - began)
    return found


def profile(label: str, model: str, arrays: Arrays, args: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of a forward by group; `forward` is the whole by the clock."""
    path = args.folder / json.loads((args.folder / model / label / COMPILED).read_text())["path"]
    options = PartOptions(CONTENDERS[label].info(), CPU, path.parent, threads=args.threads)
    by = {"openvino": by_openvino, "onnx": by_onnx}[CONTENDERS[label].backend]
    nodes, forward = by(path, options, arrays)
    sums: Counter[str] = Counter()
    for kind, ms in nodes.items():
        sums[group(kind)] += ms
    return {"forward": round(forward, 2)} | {name: round(ms, 2) for name, ms in sums.items()}


def group(kind: str) -> str:
    """What a node of this kind does."""
    for name, words in GROUPS.items():
        if any(word in kind.lower() for word in words):
            return name
    return REST


def by_openvino(path: Path, options: PartOptions, arrays: Arrays) -> tuple[Counter[str], float]:
    """Milliseconds by kind of node, and of the whole forward."""
    core = import_openvino().Core()
    chosen = settings(core, options) | {"PERF_COUNT": True}
    compiled = core.compile_model(core.read_model(path, weights_of(path)), "CPU", chosen)
    request = compiled.create_infer_request()
    seconds = times(lambda: request.infer(arrays, share_inputs=True))
    kinds: Counter[str] = Counter()
    for node in request.profiling_info:  # of the last forward
        kinds[node.node_type] += node.real_time.total_seconds() * 1e3
    return kinds, statistics.median(seconds) * 1e3


def by_onnx(path: Path, options: PartOptions, arrays: Arrays) -> tuple[Counter[str], float]:
    """Likewise."""
    import onnxruntime

    chosen = onnxruntime.SessionOptions()
    chosen.intra_op_num_threads = options.threads
    chosen.add_session_config_entry("session.intra_op.allow_spinning", "0")
    chosen.enable_profiling = True
    with tempfile.TemporaryDirectory() as scratch:
        chosen.profile_file_prefix = str(Path(scratch) / "profile")
        session = onnxruntime.InferenceSession(path, chosen, providers=["CPUExecutionProvider"])
        seconds = times(lambda: session.run(None, arrays))
        events = json.loads(Path(session.end_profiling()).read_text())
    kinds: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            kinds[event["args"]["op_name"]] += event["dur"] / 1e3 / (RUNS + 1)
    return kinds, statistics.median(seconds) * 1e3


def tell(console: Console, found: dict[str, Any], rates: dict[str, float]) -> None:
    flops, profiles = found["gflop"], found["ms"]
    names = ["forward", *GROUPS, REST]
    rows = [
        (name, *(number(of["forward"]), *(share(of, each) for each in names[1:])))
        for name, of in profiles.items()
    ]
    heavy = flops["convolutions"] + flops["linear"]
    least = ", ".join(f"{kind} {heavy / rate * 1e3:.1f} ms" for kind, rate in rates.items())
    title = f"{found['model']}, {found['rows']} rows: {flops} GFLOP; layers alone at best: {least}"
    show(console, title, ("", "ms", *names[1:]), rows)


def share(of: dict[str, float], name: str) -> str:
    whole = sum(ms for key, ms in of.items() if key != "forward")
    return f"{of.get(name, 0) / whole:.0%}"


if __name__ == "__main__":
    main()
