"""Adapters as inputs of a graph, against the same adapters by hooks."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from sdxl_bento.backends.slots import (
    RANK_STEP,
    SHRINK_AFTER,
    SlotLayout,
    SlotTable,
    SlottedLayers,
)
from sdxl_bento.diffusion.lora.layers import Mix
from sdxl_bento.diffusion.lora.pool import LoraPool
from tests.support import loras
from tests.support.loras import EVERYTHING, mix, wait_ready

RANKS = {"a": 4, "b": 8, "c": 2}
FINGERPRINTS = {name: name for name in RANKS}


@pytest.fixture(scope="module")
def unet() -> nn.Module:
    return loras.tiny_targets()["unet"].eval()


@pytest.fixture(scope="module")
def pool(unet: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoraPool]:
    folder = tmp_path_factory.mktemp("loras")
    for seed, (name, rank) in enumerate(RANKS.items()):
        path = folder / f"{name}.safetensors"
        factors = loras.factors({"unet": unet}, EVERYTHING, ranks=(rank, rank // 2), seed=seed)
        loras.write_peft(path, factors)
    pool = LoraPool({"unet": unet}, budget_bytes=1 << 30, on_loaded=lambda: None)
    pool.scan(folder)
    wait_ready(pool, RANKS)
    yield pool
    pool.close()


@pytest.fixture
def table(unet: nn.Module) -> SlotTable:
    return SlotTable(SlotLayout(unet), torch.device("cpu"), torch.float32)


def forward(unet: nn.Module, rows: int) -> torch.Tensor:
    with torch.inference_mode():
        output: torch.Tensor = unet(**loras.unet_inputs(rows)).sample
    return output


def by_hooks(unet: nn.Module, pool: LoraPool, rows: list[Mix]) -> torch.Tensor:
    with pool.applied("unet", rows):
        return forward(unet, len(rows))


def by_slots(unet: nn.Module, pool: LoraPool, table: SlotTable, rows: list[Mix]) -> torch.Tensor:
    slotted = deepcopy(unet)
    layers = SlottedLayers(slotted)
    with layers.reading(table.place(rows, *pool.factors("unet", RANKS))):
        return forward(slotted, len(rows))


BATCHES: list[list[Mix]] = [
    [mix(a=1.0), (), mix(b=0.5)],
    [mix(a=1.0, b=-0.5, c=2.0), mix(c=1.0), mix(a=0.3), ()],
    [mix(b=1.0)],
    [(), ()],
]


@pytest.mark.parametrize("rows", BATCHES, ids=["mixed", "several each", "alone", "none"])
def test_every_row_gets_what_hooks_would_give_it(
    unet: nn.Module, pool: LoraPool, table: SlotTable, rows: list[Mix]
) -> None:
    expected = by_hooks(unet, pool, rows)
    found = by_slots(unet, pool, table, rows)
    assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_one_table_serves_batch_after_batch(
    unet: nn.Module, pool: LoraPool, table: SlotTable
) -> None:
    for rows in [*BATCHES, *reversed(BATCHES)]:
        expected = by_hooks(unet, pool, rows)
        found = by_slots(unet, pool, table, rows)
        assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()


def place(table: SlotTable, pool: LoraPool, rows: list[Mix], **changed: str) -> Any:
    factors, _ = pool.factors("unet", RANKS)
    return table.place(rows, factors, FINGERPRINTS | changed)


def test_a_mix_keeps_its_slot_and_the_longest_unused_one_makes_room(
    pool: LoraPool, table: SlotTable
) -> None:
    first = place(table, pool, [mix(a=1.0), mix(b=1.0)])
    assert first.slot.tolist() == [1, 2]
    again = place(table, pool, [mix(b=1.0), (), mix(a=1.0)])
    assert again.slot.tolist() == [2, 0, 1]
    assert again.down is first.down, "nothing was copied"
    newcomer = place(table, pool, [mix(c=1.0), mix(a=1.0)])
    assert newcomer.slot.tolist() == [2, 1], "b had not been used for the longest"


def test_tables_grow_in_steps_and_keep_what_they_hold(pool: LoraPool, table: SlotTable) -> None:
    assert place(table, pool, [mix(a=1.0)]).down.shape[:2] == (2, RANK_STEP)
    grown = place(table, pool, [mix(a=1.0), mix(a=1.0, b=1.0), mix(c=0.5)])
    assert grown.slot.tolist() == [1, 2, 3]
    assert grown.down.shape[:2] == (5, 2 * RANK_STEP)
    assert not grown.down[0].any()


def test_tables_that_are_larger_than_they_need_be_shrink_again(
    pool: LoraPool, table: SlotTable
) -> None:
    large = [mix(a=1.0), mix(a=1.0, b=1.0, c=1.0), mix(c=0.5)]
    place(table, pool, large)
    for _ in range(SHRINK_AFTER):
        assert place(table, pool, [mix(b=1.0)]).down.shape[:2] == (5, 2 * RANK_STEP)
    place(table, pool, large)
    for _ in range(SHRINK_AFTER):
        place(table, pool, [mix(b=1.0)])
    small = place(table, pool, [mix(b=1.0)])
    assert small.down.shape[:2] == (2, RANK_STEP)
    fresh = place(SlotTable(table._layout, table._device, table._dtype), pool, [mix(b=1.0)])
    for name in ("slot", "down", "up"):
        assert torch.equal(getattr(small, name), getattr(fresh, name)), name


def test_an_adapter_whose_file_has_changed_is_laid_anew(pool: LoraPool, table: SlotTable) -> None:
    place(table, pool, [mix(a=1.0)])
    changed = place(table, pool, [mix(a=1.0), mix(b=1.0)], a="another file")
    assert changed.slot.tolist() == [2, 1] or changed.slot.tolist() == [1, 2]
    assert len(table._slots) == 2, "the old one had to go"


def test_a_changed_adapter_is_read_from_its_new_factors(pool: LoraPool, table: SlotTable) -> None:
    factors, _ = pool.factors("unet", RANKS)
    before = table.place([mix(a=1.0)], factors, FINGERPRINTS)
    old = before.down[before.slot].clone()
    swapped = {**factors, "a": factors["b"]}
    stale = table.place([mix(a=1.0)], swapped, FINGERPRINTS)
    assert torch.equal(stale.down[stale.slot], old), "the same file: what is there serves"
    after = table.place([mix(a=1.0)], swapped, FINGERPRINTS | {"a": "another file"})
    assert not torch.equal(after.down[after.slot], old)


def test_scales_are_in_the_factors(pool: LoraPool, table: SlotTable) -> None:
    slots = place(table, pool, [mix(a=1.0), mix(a=-2.0)])
    assert torch.equal(slots.up[2], -2.0 * slots.up[1])
    assert torch.equal(slots.down[2], slots.down[1])
