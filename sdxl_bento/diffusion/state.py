"""The tensors of one request: its latents, history, noise source and solver tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from sdxl_bento.diffusion.conditioning import Conditioning
from sdxl_bento.diffusion.model import Model
from sdxl_bento.diffusion.plan import Job
from sdxl_bento.diffusion.transfer import to_device
from sdxl_bento.engine.request import Stage


class LatentState:
    """Everything that one picture needs on the device between its steps.

    Noise is drawn on the CPU in float32 from the request's own generator, in the order in which
    diffusers' pipelines draw it, so neither its batch nor its device changes the picture.

    Attributes:
        latents: [1, 4, h, w] float32.
        previous: [1, 4, h, w] float32, the last denoised estimate.
        guidance, guidance_rescale: [1] float32; 1 and 0 without guidance.
        tables: per stage, [n, 8] float32 on the device: six coefficients, input scale, timestep.
    """

    def __init__(self, job: Job, model: Model, conditioning: Mapping[Stage, Conditioning]) -> None:
        self.job = job
        self.conditioning = conditioning
        self._device = model.placement.device
        self._generator = torch.Generator().manual_seed(job.params.seed)
        self._fresh: torch.Tensor | None = None
        info = model.pipeline(job.stages[0]).info
        factor = info.vae_scale_factor
        height, width = job.params.height // factor, job.params.width // factor
        self.shape = (1, info.latent_channels, height, width)
        self.tables = {stage: self._upload(stage) for stage in job.stages}
        self.draws = {stage: table.draws.tolist() for stage, table in job.tables.items()}
        guided = job.rows == 2
        self.guidance = self._number(job.params.guidance_scale if guided else 1.0)
        self.guidance_rescale = self._number(job.params.guidance_rescale if guided else 0.0)
        self.zero = torch.zeros(self.shape, device=self._device)
        self.previous = self.zero
        self.latents = self.zero
        if job.order.image is None:
            scale = job.tables[job.stages[0]].init_noise_sigma
            self.latents = to_device(self._draw() * scale, self._device)

    def start_from(
        self,
        mean: torch.Tensor,
        std: torch.Tensor,
        rescale: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        """Image-to-image: sample the VAE's posterior and noise it to the first step's level.

        Args:
            mean, std: [1, 4, h, w], of the posterior.
            rescale: from the VAE's latents to the UNet's.
        """
        keep, noise = self.job.tables[self.job.stages[0]].start[0]
        drawn = to_device(self._draw(), self._device)
        sample = rescale(mean.float() + std.float() * drawn)
        self.latents = sample * keep + to_device(self._draw() * noise, self._device)

    def noise(self, stage: Stage, step: int) -> torch.Tensor:
        """Fresh noise for a step, [1, 4, h, w]; the same again until `step_done`."""
        if not self.draws[stage][step]:
            return self.zero
        if self._fresh is None:
            self._fresh = to_device(self._draw(), self._device)
        return self._fresh

    def step_done(self, latents: torch.Tensor, denoised: torch.Tensor) -> None:
        """Take over the results of a step. Only now is its noise used up."""
        self.latents, self.previous, self._fresh = latents, denoised, None

    def _draw(self) -> torch.Tensor:
        return torch.randn(self.shape, generator=self._generator, dtype=torch.float32)

    def _number(self, value: float) -> torch.Tensor:
        return to_device(torch.tensor([value], dtype=torch.float32), self._device)

    def _upload(self, stage: Stage) -> torch.Tensor:
        table = self.job.tables[stage]
        rows = torch.cat(
            [
                torch.from_numpy(table.coefficients),
                torch.from_numpy(table.input_scale.copy())[:, None],
                torch.from_numpy(table.timesteps.copy())[:, None],
            ],
            dim=1,
        )
        return to_device(rows.float(), self._device)
