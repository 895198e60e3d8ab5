"""The names that a UNet's layers have in the code with which SDXL was published.

Most trainers and most checkpoint files use them: `input_blocks.4.1.proj_in` is diffusers'
`down_blocks.1.attentions.0.proj_in`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_TOP = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def original_name(name: str, layers: int, has_attention: Callable[[str], bool]) -> str:
    """The original name of a UNet's layer or weight.

    The original numbers all blocks of a half in one row, a resnet and its attention together.

    Args:
        name: in diffusers' UNet.
        layers: `layers_per_block` of its config.
        has_attention: whether the upper block of this number has attentions.
    """
    match = re.match(
        r"(down|up)_blocks\.(\d+)\.(resnets|attentions|\w+samplers)\.(\d+)\.(.*)", name
    )
    if match is None:
        top = swap_prefix(name, _TOP)
        if re.match(r"mid_block\.resnets\.\d\.", name):
            head, rest = top.split(".", 2)[:2], top.split(".", 2)[2]
            return ".".join([*head, swap_prefix(rest, _RESNET)])
        return top
    half, block, kind, index, rest = match.groups()
    row = int(block) * (layers + 1)
    if half == "down":
        place = f"input_blocks.{1 + row + (layers if kind == 'downsamplers' else int(index))}"
    else:
        place = f"output_blocks.{row + (layers if kind == 'upsamplers' else int(index))}"
    if kind == "resnets":
        return f"{place}.0.{swap_prefix(rest, _RESNET)}"
    if kind == "attentions":
        return f"{place}.1.{rest}"
    if kind == "downsamplers":
        return f"{place}.0.{swap_prefix(rest, {'conv': 'op'})}"
    return f"{place}.{2 if has_attention(block) else 1}.{rest}"


def swap_prefix(name: str, table: Mapping[str, str]) -> str:
    """Replace the beginning of a dotted name that `table` lists, if it has one."""
    for old, new in table.items():
        if name == old or name.startswith(f"{old}."):
            return new + name[len(old) :]
    return name
