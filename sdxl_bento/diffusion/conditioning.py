"""From prompts to what the UNet is conditioned on: embeddings, pooled embeddings, time ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from cachetools import LRUCache

from sdxl_bento.diffusion.backend import Mix
from sdxl_bento.diffusion.lora.pool import LoraPool
from sdxl_bento.diffusion.model import Model, Pipeline
from sdxl_bento.diffusion.plan import Job
from sdxl_bento.diffusion.prompts import prompt_fields, zeroes_negative
from sdxl_bento.diffusion.transfer import to_device
from sdxl_bento.engine.request import Stage
from sdxl_bento.params import ResolvedParams


@dataclass(frozen=True)
class Text:
    """One prompt as the encoders of one pipeline see it: a cache key.

    `prompts` has one entry for each encoder. `mix` has only the adapters that change an encoder,
    so that the others share one entry; `adapters` are the same by content.
    """

    model: str
    stage: Stage
    prompts: tuple[str, ...]
    mix: Mix
    adapters: str


@dataclass(frozen=True)
class Encoded:
    """embeddings [77, C] and pooled [P], on the device in the UNet's dtype."""

    embeddings: torch.Tensor
    pooled: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.embeddings.nbytes + self.pooled.nbytes


@dataclass(frozen=True)
class Conditioning:
    """The rows of one request in one stage: [rows, 77, C], [rows, P], [rows, 6 or 5]."""

    embeddings: torch.Tensor
    pooled: torch.Tensor
    time_ids: torch.Tensor

    @staticmethod
    def joined(parts: Sequence[Conditioning]) -> dict[str, torch.Tensor]:
        """The rows of several requests one after another, by the names of `UNetInputs`."""
        return {
            "encoder_hidden_states": torch.cat([part.embeddings for part in parts]),
            "text_embeds": torch.cat([part.pooled for part in parts]),
            "time_ids": torch.cat([part.time_ids for part in parts]),
        }


class PromptCache:
    """Encoded prompts, bounded by bytes; the least recently used one makes room."""

    def __init__(self, max_bytes: int) -> None:
        self.hits = 0
        self.misses = 0
        self._entries: LRUCache[Text, Encoded] = LRUCache(max_bytes, getsizeof=_nbytes)

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return int(self._entries.currsize)

    def get(self, text: Text) -> Encoded | None:
        entry = self._entries.get(text)
        if entry is None:
            self.misses += 1
        else:
            self.hits += 1
        return entry

    def put(self, text: Text, entry: Encoded) -> None:
        """Keep an entry, unless it alone is larger than the cache."""
        if text not in self._entries and entry.nbytes <= self._entries.maxsize:
            self._entries[text] = entry


class Conditioner:
    """Encodes the prompts of one model, several requests at once."""

    def __init__(self, model: Model, adapters: LoraPool, cache: PromptCache) -> None:
        self._model = model
        self._adapters = adapters
        self.cache = cache

    def condition(
        self, jobs: Sequence[Job], mixes: Sequence[Mix]
    ) -> list[dict[Stage, Conditioning]]:
        """The conditioning of every denoising stage of each job, with the adapters of each."""
        texts = [
            {stage: self._texts(job, stage, mix) for stage in job.stages}
            for job, mix in zip(jobs, mixes, strict=True)
        ]
        encoded = self._encode_all({t for of in texts for part in of.values() for t in part})
        return [
            {
                stage: self._assemble(job, stage, [encoded[text] for text in part])
                for stage, part in of.items()
            }
            for job, of in zip(jobs, texts, strict=True)
        ]

    def _texts(self, job: Job, stage: Stage, mix: Mix) -> list[Text]:
        """The prompts to encode for a job: the positive, and the negative unless it is zeros."""
        params = job.params
        zeros = zeroes_negative(params, self._model.pipeline(stage).info)
        prompts = [
            tuple(getattr(params, field) or "" for field in fields)
            for fields in prompt_fields(params, zeros)
        ]
        mix = self._changing(mix) if stage is Stage.BASE else ()
        adapters = self._adapters.fingerprint(name for name, _ in mix) if mix else ""
        encoders = len(self._model.pipeline(stage).text_encoders)
        return [Text(self._model.name, stage, p[:encoders], mix, adapters) for p in prompts]

    def _changing(self, mix: Mix) -> Mix:
        """Those of a loaded mix that have anything for a text encoder."""
        changes = self._adapters.changes
        return tuple(
            (name, scale)
            for name, scale in mix
            if changes(name, "text_encoder") or changes(name, "text_encoder_2")
        )

    def _encode_all(self, wanted: Iterable[Text]) -> dict[Text, Encoded]:
        cached = {text: self.cache.get(text) for text in wanted}
        encoded = {text: entry for text, entry in cached.items() if entry is not None}
        encoded |= {text: self._encode(text) for text in cached if text not in encoded}
        for text, entry in encoded.items():
            self.cache.put(text, entry)
        return encoded

    def _encode(self, text: Text) -> Encoded:
        """One prompt by itself.

        Kernels differ in the last bits with the number of prompts, and what is encoded here is kept
        for later requests, so it must not depend on which prompts came together.
        """
        pipeline = self._model.pipeline(text.stage)
        hidden: list[torch.Tensor] = []
        pooled = torch.empty(0)
        names = ("text_encoder", "text_encoder_2")[-len(pipeline.text_encoders) :]
        for name, tokenizer, encoder, prompt in zip(
            names, pipeline.tokenizers, pipeline.text_encoders, text.prompts, strict=True
        ):
            ids = _tokenize(tokenizer, [prompt])
            with self._adapters.applied(name, [text.mix]):
                output = encoder(
                    to_device(ids, self._model.placement.device), output_hidden_states=True
                )
            hidden.append(output.hidden_states[-2])
            pooled = output[0]  # the last encoder's: the projected, pooled embedding
        dtype = self._model.placement.dtype
        embeddings = torch.cat(hidden, dim=-1).to(dtype)
        return Encoded(embeddings[0].clone(), pooled.to(dtype)[0].clone())

    def _assemble(self, job: Job, stage: Stage, entries: Sequence[Encoded]) -> Conditioning:
        """Rows of one request: negative then positive with guidance, else positive alone."""
        positive = entries[0]
        rows = [positive]
        if job.params.uses_guidance:
            zeros = Encoded(
                torch.zeros_like(positive.embeddings), torch.zeros_like(positive.pooled)
            )
            rows.insert(0, entries[1] if len(entries) > 1 else zeros)
        ids = time_ids(job.params, self._model.pipeline(stage))
        return Conditioning(
            torch.stack([row.embeddings for row in rows]),
            torch.stack([row.pooled for row in rows]),
            to_device(
                torch.tensor(ids[-len(rows) :], dtype=positive.pooled.dtype), positive.pooled.device
            ),
        )


def time_ids(params: ResolvedParams, pipeline: Pipeline) -> list[list[float]]:
    """SDXL's micro-conditioning, the negative branch's and the positive's (arXiv 2307.01952, 2.2).

    Original size, crop, and target size; for a refiner the aesthetic score in the last's place.
    """
    size = (params.height, params.width)
    original, target = params.original_size or size, params.target_size or size
    crop = params.crops_coords_top_left
    negative_original = params.negative_original_size or original
    negative_target = params.negative_target_size or target
    negative_crop = params.negative_crops_coords_top_left
    if pipeline.info.requires_aesthetics_score:
        return [
            [*negative_original, *negative_crop, params.negative_aesthetic_score],
            [*original, *crop, params.aesthetic_score],
        ]
    if params.negative_original_size is None or params.negative_target_size is None:
        # As in diffusers, the negative branch differs only where both of its sizes are set.
        negative_original, negative_crop, negative_target = original, crop, target
    return [[*negative_original, *negative_crop, *negative_target], [*original, *crop, *target]]


def _nbytes(entry: Encoded) -> int:
    return entry.nbytes


def _tokenize(tokenizer: Any, prompts: list[str]) -> torch.Tensor:
    """[n, 77] int64; what is longer is cut off, as CLIP cannot read it."""
    ids: torch.Tensor = tokenizer(
        prompts,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return ids
