"""The two text encoders. They are trained without pictures, to make attributes easy to read.

Linear heads on what the UNet will get (the last-but-one hidden states of both encoders, the pooled
embedding of the second) must name every attribute. The heads are thrown away, the encoders frozen.
"""

import random
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from export.embedded.captions import Said, junk, vary_caption
from export.embedded.scenes import COLOURS, COUNTS, POSITIONS, SHAPES, SIZES, sample_scene
from export.embedded.tokenizer import LENGTH, load_both
from export.embedded.training import Plan, Trainer

HIDDEN = 64
ATTRIBUTES: dict[str, tuple[str | int, ...]] = {
    "colour": COLOURS,
    "background": COLOURS,
    "shape": SHAPES,
    "count": COUNTS,
    "size": SIZES,
    "position": tuple(POSITIONS),
}
_BATCH = 64


def _config(tokenizer: CLIPTokenizer, pad: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        intermediate_size=4 * HIDDEN,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        hidden_act="quick_gelu",
        projection_dim=HIDDEN,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=pad,
    )


class TextEncoders(nn.Module):
    """Both tokenizers and encoders; turns captions into the conditioning of the UNet."""

    def __init__(self, tokenizers: tuple[CLIPTokenizer, CLIPTokenizer]) -> None:
        super().__init__()
        self.tokenizers = tokenizers
        pads = [int(t.pad_token_id) for t in tokenizers]
        self.first = CLIPTextModel(_config(tokenizers[0], pads[0]))
        self.second = CLIPTextModelWithProjection(_config(tokenizers[1], pads[1]))

    def tokens(self, captions: list[str], length: int = LENGTH) -> tuple[Tensor, Tensor]:
        """Token numbers (n, length) for either encoder."""
        one, two = (
            tokenizer(
                captions,
                padding="max_length",
                max_length=length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            for tokenizer in self.tokenizers
        )
        return one, two

    def forward(self, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hidden states (n, length, 64) of either encoder and pooled embeddings (n, 64)."""
        first = self.first(one, output_hidden_states=True)
        second = self.second(two, output_hidden_states=True)
        return first.hidden_states[-2], second.hidden_states[-2], second.text_embeds

    @torch.no_grad()
    def embed(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """The UNet's two conditions: (n, 77, 128) and (n, 64)."""
        first, second, pooled = self(*self.tokens(captions))
        return torch.cat([first, second], -1), pooled


class _Heads(nn.Module):
    """One linear classifier per attribute, with an extra class for "not stated"."""

    def __init__(self) -> None:
        super().__init__()
        self.readers = nn.ModuleDict(
            {name: nn.Linear(HIDDEN, len(values) + 1) for name, values in ATTRIBUTES.items()}
        )

    def forward(self, features: Tensor, labels: dict[str, Tensor]) -> tuple[Tensor, float]:
        """Summed cross-entropy and the worst attribute's accuracy."""
        loss, worst = features.new_zeros(()), 1.0
        for name, reader in self.readers.items():
            logits = reader(features)
            loss = loss + F.cross_entropy(logits, labels[name])
            right = (logits.argmax(1) == labels[name]).float().mean().item()
            worst = min(worst, right)
        return loss, worst


def _label(name: str, value: str | int | None) -> int:
    values = ATTRIBUTES[name]
    return len(values) if value is None else values.index(value)


def _draw_captions(rng: random.Random, count: int) -> tuple[list[str], dict[str, Tensor]]:
    """Varied captions, a tenth of them with junk words, and the attributes that they state."""
    texts: list[str] = []
    said: list[Said] = []
    for _ in range(count):
        caption = vary_caption(sample_scene(rng), rng)
        text = caption.text
        if rng.random() < 0.1:
            noise = junk(rng, 8)
            text = rng.choice((f"{text}, {noise}", f"{noise} {text}"))
        texts.append(text)
        said.append(caption.said)
    labels = {n: torch.tensor([_label(n, s[n]) for s in said]) for n in ATTRIBUTES}
    return texts, labels


def train(plan: Plan, work: Path) -> TextEncoders:
    """Train both encoders at once; the tokenizers must lie in ``work``."""
    torch.manual_seed(plan.seed + 1)
    encoders = TextEncoders(load_both(work))
    heads = nn.ModuleList([_Heads() for _ in range(3)])

    def loss_of(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        rng = random.Random(int(torch.randint(0, 2**40, (1,), generator=generator)))
        texts, labels = _draw_captions(rng, _BATCH)
        length = LENGTH if step % 4 == 0 else 32  # short sequences are cheaper
        one, two = encoders.tokens(texts, length)
        first, second, pooled = encoders(one, two)
        rows = torch.arange(_BATCH)
        end = (one == encoders.tokenizers[0].eos_token_id).int().argmax(1)
        # Cross-attention reads the padding too, so a random position behind the end is trained.
        later = end + torch.randint(0, length, (_BATCH,), generator=generator)
        later = later.clamp(max=length - 1)
        total, worst = pooled.new_zeros(()), 1.0
        for states, head in zip((first, second), heads, strict=False):
            for place in (end, later):
                loss, accuracy = head(states[rows, place], labels)
                total, worst = total + loss / 2, min(worst, accuracy)
            # Keeps the scale of the UNet's inputs near 1.
            total = total + 0.05 * (states.std(-1) - 1).square().mean()
        loss, accuracy = heads[2](pooled, labels)
        return total + loss, {"worst": min(worst, accuracy)}

    network = nn.ModuleDict({"encoders": encoders, "heads": heads})
    Trainer(plan, dict(network.named_parameters()), work / "text.ckpt").run(loss_of)
    return encoders.eval()
