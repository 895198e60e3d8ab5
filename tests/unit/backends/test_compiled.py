"""What is done around compiled parts, whichever runtime runs them: with parts that run eagerly."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.full_size import TINY, serve
from export.model.graphs import unet_example
from sdxl_bento.backends.compiled import CompiledBackend
from sdxl_bento.backends.parts import MOST_ROWS
from sdxl_bento.backends.slots import RANK_STEP
from sdxl_bento.diffusion.backend import Mix, UNetInputs
from sdxl_bento.diffusion.lora.factors import LowRank
from sdxl_bento.diffusion.model import Model, Placement
from sdxl_bento.engine.request import Stage
from sdxl_bento.manifest import BackendInfo, Size
from tests.support.loras import mix

INFO = BackendInfo(backend="onnx", device="cpu", versions={}, dtype="fp32")
LAYER = "time_embedding.linear_1"
SIZES = (Size(width=64, height=128), Size(width=64, height=64))


class FakePart:
    """Gives each row a number of its own, and notes the shapes it was called with."""

    def __init__(self) -> None:
        self.calls: list[dict[str, torch.Tensor]] = []
        self.unloaded = 0

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        self.calls.append(dict(inputs))
        if "latents" in inputs:
            return inputs["latents"].repeat_interleave(8, 2).repeat_interleave(8, 3)[:, :3]
        return inputs["sample"] * inputs["timestep"][:, None, None, None]

    def unload(self) -> None:
        self.unloaded += 1

    @property
    def rows(self) -> list[int]:
        return [len(call["sample"]) for call in self.calls]

    def shapes(self, name: str) -> list[tuple[int, ...]]:
        return [tuple(call[name].shape) for call in self.calls]


class FakePool:
    """Every name is an adapter of rank 4 of one layer, `LAYER`."""

    def __init__(self, unet: Any) -> None:
        layer = unet.get_submodule(LAYER)
        self.part = LowRank(torch.ones(4, layer.in_features), torch.ones(layer.out_features, 4))
        self.asked: list[tuple[str, set[str]]] = []

    def factors(self, target: str, names: set[str]) -> tuple[dict[str, Any], dict[str, str]]:
        self.asked.append((target, set(names)))
        return {name: {LAYER: self.part} for name in names}, dict.fromkeys(names, "a file")

    def applied(self, target: str, mixes: list[Mix]) -> Any:
        assert not any(mixes)
        return nullcontext()


class Bench:
    def __init__(self, **changes: Any) -> None:
        served, _ = serve(Placement.choose("cpu", "fp32"), TINY)
        self.model: Model = served.model
        self.parts = {name: FakePart() for name in ("base/unet", "base/unet_slots")}
        self.decoder = FakePart()
        self.pool = FakePool(served.model.base.unet)
        self.backend = CompiledBackend(
            self.model,
            self.pool,  # type: ignore[arg-type]
            INFO.model_copy(update=changes),
            {**self.parts, "base/vae_decoder": self.decoder},
            tile_pixels=10**6,
        )

    def inputs(self, rows: int, mixes: list[Mix] | None = None) -> UNetInputs:
        example = unet_example("base", self.model.base.unet, rows, height=8, width=8)
        example["timestep"] = torch.arange(1, rows + 1).float()
        return UNetInputs(**example, mixes=mixes or [()] * rows)

    def denoise(self, inputs: UNetInputs) -> torch.Tensor:
        return self.backend.denoise(Stage.BASE, inputs)


def wanted(inputs: UNetInputs) -> torch.Tensor:
    return inputs.sample * inputs.timestep[:, None, None, None]


@pytest.mark.parametrize(
    ("rows", "built_for", "ran"),
    [
        (1, (), [1]),
        (5, (), [5]),
        (MOST_ROWS, (), [MOST_ROWS]),
        (MOST_ROWS + 1, (), [MOST_ROWS, 1]),
        (1, (4, 2), [2]),
        (2, (4, 2), [2]),
        (3, (4, 2), [4]),
        (4, (4, 2), [4]),
        (5, (4, 2), [4, 2]),
        (8, (4, 2), [4, 4]),
        (11, (4, 2), [4, 4, 4]),
    ],
)
def test_rows_are_split_and_filled_up(
    rows: int, built_for: tuple[int, ...], ran: list[int]
) -> None:
    bench = Bench(rows=built_for)
    inputs = bench.inputs(rows)
    output = bench.denoise(inputs)
    assert bench.parts["base/unet"].rows == ran
    assert torch.equal(output, wanted(inputs)), "each row has its own result, in its place"


def test_rows_that_would_share_a_range_of_eight_bits_run_one_by_one() -> None:
    """A row filled up with copies of itself has its own range still."""
    bench = Bench(quantization="int8")
    inputs = bench.inputs(3)
    assert torch.equal(bench.denoise(inputs), wanted(inputs))
    assert bench.parts["base/unet"].rows == [1, 1, 1]
    filled = Bench(quantization="int8", rows=(2, 4))
    filled.denoise(inputs)
    calls = filled.parts["base/unet"].calls
    assert [len(set(call["timestep"].tolist())) for call in calls] == [1, 1, 1]


def test_filled_rows_are_copies_of_the_last_one() -> None:
    """So that no input holds a number that none of the requests has."""
    bench = Bench(rows=(4,))
    inputs = bench.inputs(2)
    bench.denoise(inputs)
    [call] = bench.parts["base/unet"].calls
    assert set(call) == set(inputs.tensors())
    for name, tensor in inputs.tensors().items():
        assert torch.equal(call[name], torch.cat([tensor, tensor[-1:], tensor[-1:]])), name


def test_adapters_go_by_slots_and_the_tables_are_whole_in_every_forward() -> None:
    bench = Bench(rows=(2,))
    inputs = bench.inputs(3, [mix(a=1.0), mix(a=1.0), mix(b=0.5)])
    output = bench.denoise(inputs)
    part = bench.parts["base/unet_slots"]
    assert bench.parts["base/unet"].calls == []
    assert bench.pool.asked == [("unet", {"a", "b"})]
    assert [call["slot"].tolist() for call in part.calls] == [[1, 1], [2, 2]]
    layout = bench.backend._layout
    assert part.shapes("down") == [(3, RANK_STEP, layout.width_down)] * 2
    assert part.shapes("up") == [(3, RANK_STEP, layout.width_up)] * 2
    assert torch.equal(output, wanted(inputs))


@pytest.mark.parametrize("mixed", [(0,), (4,), (1, 3), (0, 1, 2, 3)])
def test_a_rows_graph_is_its_own_whatever_the_others_need(mixed: tuple[int, ...]) -> None:
    bench = Bench()
    mixes = [mix(a=1.0 + row) if row in mixed else () for row in range(5)]
    inputs = bench.inputs(5, mixes)
    output = bench.denoise(inputs)
    for name, rows in (
        ("base/unet_slots", list(mixed)),
        ("base/unet", [row for row in range(5) if row not in mixed]),
    ):
        [call] = bench.parts[name].calls
        for key, tensor in inputs.tensors().items():
            assert torch.equal(call[key], tensor[rows]), (name, key)
    assert torch.equal(output, wanted(inputs)), "each row has its own result, in its place"


def test_without_adapters_the_plain_part_runs() -> None:
    bench = Bench()
    bench.denoise(bench.inputs(2))
    assert bench.parts["base/unet_slots"].calls == []
    assert bench.pool.asked == []


def test_a_part_that_was_not_compiled_runs_eagerly() -> None:
    bench = Bench()
    inputs = bench.inputs(2)
    del bench.backend._parts["base/unet"]
    with torch.no_grad():
        output = bench.denoise(inputs)
    assert bench.parts["base/unet"].calls == []
    assert output.shape == inputs.sample.shape
    assert not torch.equal(output, wanted(inputs))


def test_the_refiner_takes_its_own_part_and_no_adapters() -> None:
    bench = Bench()
    bench.model.refiner = bench.model.base
    refiner = bench.backend._parts["refiner/unet"] = FakePart()
    bench.backend.denoise(Stage.REFINE, bench.inputs(2, [mix(a=1.0)] * 2))
    assert refiner.rows == [2]
    assert bench.pool.asked == []


def test_the_compiled_decoder_stands_where_the_vaes_was() -> None:
    bench = Bench()
    latents = torch.randn(2, 4, 8, 4)
    with torch.no_grad():
        pixels = bench.backend.decode(Stage.BASE, latents)
    assert pixels.shape == (2, 3, 64, 32)
    assert bench.decoder.shapes("latents") == [(2, 4, 8, 4)]
    unscaled = bench.model.unscale(Stage.BASE, latents)
    assert torch.equal(bench.decoder.calls[0]["latents"], unscaled), "only the part convolves it"


@pytest.mark.parametrize(
    ("sizes", "rows", "shapes"),
    [
        ((), (), [(1, 4, 8, 8), (2, 4, 8, 8)]),  # its own size, without and with guidance
        (SIZES, (), [(1, 4, 16, 8), (2, 4, 16, 8), (1, 4, 8, 8), (2, 4, 8, 8)]),
        (SIZES[1:], (3, 4), [(3, 4, 8, 8), (4, 4, 8, 8)]),
    ],
)
def test_warm_up_runs_each_part_in_each_shape(
    sizes: tuple[Size, ...], rows: tuple[int, ...], shapes: list[tuple[int, ...]]
) -> None:
    bench = Bench(sizes=sizes, rows=rows)
    bench.backend.warm_up()
    for part in bench.parts.values():
        assert part.shapes("sample") == shapes
    cells = [(size.height // 8, size.width // 8) for size in sizes] or [(8, 8)]
    assert bench.decoder.shapes("latents") == [(1, 4, *each) for each in cells]


def test_warm_up_gives_inputs_as_requests_do() -> None:
    """Otherwise it would warm up something else, or fail."""
    bench = Bench()
    bench.backend.warm_up()
    inputs = bench.inputs(2)
    bench.denoise(inputs)
    bench.denoise(replace(inputs, mixes=[mix(a=1.0)] * 2))
    for part in bench.parts.values():
        blank, real = part.calls[1], part.calls[-1]
        assert {name: (x.shape, x.dtype) for name, x in blank.items()} == {
            name: (x.shape, x.dtype) for name, x in real.items()
        }


def test_the_refiners_inputs_are_its_own() -> None:
    bench = Bench()
    bench.model.refiner = replace(
        bench.model.base,
        info=bench.model.base.info.model_copy(update={"requires_aesthetics_score": True}),
    )
    refiner = bench.backend._parts["refiner/unet"] = FakePart()
    bench.backend.warm_up()
    config = bench.model.base.unet.config
    width = config.projection_class_embeddings_input_dim
    assert refiner.shapes("time_ids") == [(1, 5), (2, 5)]
    assert refiner.shapes("text_embeds")[0] == (1, width - 5 * config.addition_time_embed_dim)


def test_unload_gives_everything_back() -> None:
    bench = Bench()
    bench.backend.unload()
    assert [part.unloaded for part in (*bench.parts.values(), bench.decoder)] == [1, 1, 1]
    with pytest.raises(AttributeError, match="base"):
        bench.denoise(bench.inputs(1))
