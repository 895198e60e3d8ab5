"""The kinds of quantization that there are for an ONNX graph of a UNet.

int8-weights   a `DequantizeLinear` before the layer: linear layers and convolutions; a quarter
               of the file, the arithmetic stays float
int8           linear layers by integer products, their inputs quantized at run time; ONNX
               Runtime fuses the nodes into one
int8-static    linear layers and convolutions by integer products, their inputs rounded by
               ranges that were measured before (`static.py`)
"""

from __future__ import annotations

from sdxl_bento.manifest import Quantization

QUANTIZATIONS: tuple[Quantization, ...] = ("int8-weights", "int8", "int8-static")
