"""The library classes that the stages build on, without static types.

diffusers builds its classes with mixins and decorators that a type checker cannot follow, so they
are named here once as dynamic values; everything around them stays strictly typed.
"""

from typing import Any, TypeAlias

import diffusers

Vae: TypeAlias = Any
"""An instance of ``AutoencoderKL``."""
Unet: TypeAlias = Any
"""An instance of ``UNet2DConditionModel``."""
Pipeline: TypeAlias = Any
"""An instance of one of the two pipeline classes."""

AutoencoderKL: Any = diffusers.AutoencoderKL
UNet2DConditionModel: Any = diffusers.UNet2DConditionModel
EulerDiscreteScheduler: Any = diffusers.EulerDiscreteScheduler
BasePipeline: Any = diffusers.StableDiffusionXLPipeline
RefinerPipeline: Any = diffusers.StableDiffusionXLImg2ImgPipeline
