"""What AUTOMATIC1111's clients get: pictures in base64, and its `info` about them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from sdxl_bento import __version__
from sdxl_bento.pictures.infotext import infotext
from sdxl_bento.pictures.publish import one_of
from sdxl_bento.protocols.a1111.samplers import name_of
from sdxl_bento.protocols.native.routes import Answer


def response_body(answer: Answer, asked: Mapping[str, Any], with_picture: bool) -> dict[str, Any]:
    """The body of an answer; `asked` is the call's body, which comes back as `parameters`."""
    # A picture that was not stored could not be fetched afterwards.
    stored = all(picture.image_id is not None for picture in answer.pictures)
    sent = answer.pictures if asked.get("send_images", True) or not stored else ()
    return {
        "images": [base64.b64encode(picture.data).decode("ascii") for picture in sent],
        "parameters": {name: asked[name] for name in asked if name != "init_images"},
        "info": json.dumps(_info(answer, asked, with_picture)),
    }


def _info(answer: Answer, asked: Mapping[str, Any], with_picture: bool) -> dict[str, Any]:
    params, first = answer.generation.params, answer.pictures[0]
    prompt, negative = str(asked.get("prompt", "")), params.negative_prompt or ""
    seeds = [picture.seed for picture in answer.pictures]
    return {
        "prompt": prompt,
        "all_prompts": [prompt] * len(seeds),
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * len(seeds),
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": seeds[0],
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": first.width,
        "height": first.height,
        "sampler_name": name_of(params.sampler)[0],
        "cfg_scale": params.guidance_scale,
        "steps": params.num_inference_steps,
        "batch_size": asked.get("batch_size") or 1,
        "restore_faces": False,
        "sd_model_name": params.model,
        "sd_model_hash": None,
        "denoising_strength": params.strength if with_picture else None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [infotext(one_of(params, seed), redrawn=with_picture) for seed in seeds],
        "styles": [],
        "clip_skip": 1,
        "version": f"sdxl-bento {__version__}",
        "image_ids": [picture.image_id for picture in answer.pictures],
    }
