"""Training data of the UNets: latents of drawn pictures with the embeddings of their captions.

Both are computed once and kept in memory, so that a training step costs little beside the UNet.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from export.embedded.captions import junk, vary_caption
from export.embedded.images import BIG, SQUARE, TALL, WIDE, Size, normalise, to_tensor
from export.embedded.networks import Vae
from export.embedded.scenes import Scene, sample_scene
from export.embedded.text import TextEncoders
from export.embedded.training import batch_indices, save_atomically

CAPTIONS = 2  # wordings per picture
COUNTS: dict[Size, int] = {SQUARE: 8000, WIDE: 300, TALL: 300, BIG: 300}

# Share of the training steps that use a size, and pictures per step. Steps cost about the same.
MIX: tuple[tuple[float, Size, int], ...] = (
    (0.76, SQUARE, 20),
    (0.06, WIDE, 13),
    (0.06, TALL, 13),
    (0.12, BIG, 5),
)


@dataclass(frozen=True)
class Rows:
    """Pictures of one size with their texts."""

    pictures: Tensor  # bytes (n, 3, h, w), or latents (n, 4, h/8, w/8) of spread 1
    hidden: Tensor  # half floats (n, CAPTIONS, 77, 128)
    pooled: Tensor  # (n, CAPTIONS, 64)


@dataclass(frozen=True)
class Batch:
    """One training batch."""

    latents: Tensor  # (b, 4, h/8, w/8)
    hidden: Tensor  # (b, 77, 128)
    pooled: Tensor  # (b, 64)
    size: Size


def _texts(scene: Scene, rng: random.Random) -> list[str]:
    """Different wordings of one scene, a few with junk words at the end."""
    texts = []
    for _ in range(CAPTIONS):
        text = vary_caption(scene, rng).text
        texts.append(f"{text}, {junk(rng)}" if rng.random() < 0.08 else text)
    return texts


@torch.no_grad()
def draw(
    encoders: TextEncoders,
    size: Size,
    count: int,
    seed: str,
    style: str = "flat",
    rename: Callable[[str, random.Random], str] = lambda text, rng: text,
) -> Rows:
    """Draw ``count`` seen scenes of one size; ``rename`` may change each caption."""
    rng = random.Random(f"{seed}/{size}")
    pictures, hidden, pooled = [], [], []
    for start in range(0, count, 32):
        scenes = [sample_scene(rng) for _ in range(min(32, count - start))]
        pictures += [to_tensor(scene, rng, size, style) for scene in scenes]
        texts = [rename(text, rng) for scene in scenes for text in _texts(scene, rng)]
        states, summary = encoders.embed(texts)
        hidden.append(states.view(-1, CAPTIONS, *states.shape[1:]).half())
        pooled.append(summary.view(-1, CAPTIONS, summary.shape[1]))
    return Rows(torch.stack(pictures), torch.cat(hidden), torch.cat(pooled))


@torch.no_grad()
def encode(vae: Vae, pictures: Tensor) -> Tensor:
    """Latents of spread 1 from bytes."""
    factor = float(vae.config.scaling_factor)
    return torch.cat(
        [
            vae.encode(normalise(chunk)).latent_dist.mode() * factor
            for chunk in torch.split(pictures, 8)
        ]
    )


def save_rows(rows: dict[Size, Rows], path: Path) -> None:
    """Write rows of several sizes to one file."""
    save_atomically({size: (r.pictures, r.hidden, r.pooled) for size, r in rows.items()}, path)


def load_rows(path: Path) -> dict[Size, Rows]:
    """Read what ``save_rows`` wrote."""
    stored = torch.load(path, weights_only=True)
    return {size: Rows(*tensors) for size, tensors in stored.items()}


def draw_batch(
    rows: dict[Size, Rows],
    generator: torch.Generator,
    mix: tuple[tuple[float, Size, int], ...] = MIX,
) -> Batch:
    """Choose a random size, then pictures of that size, each with one of its captions."""
    shares = torch.tensor([share for share, _, _ in mix])
    _, size, count = mix[int(torch.multinomial(shares, 1, generator=generator))]
    source = rows[size]
    chosen = batch_indices(len(source.pictures), count, generator)
    wording = batch_indices(CAPTIONS, count, generator)
    return Batch(
        source.pictures[chosen],
        source.hidden[chosen, wording].float(),
        source.pooled[chosen, wording],
        size,
    )
