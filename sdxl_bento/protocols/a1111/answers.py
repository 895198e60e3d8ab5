"""What AUTOMATIC1111's clients get: pictures in base64, and its `info` about them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sdxl_bento import __version__
from sdxl_bento.drawing import Answer
from sdxl_bento.fields import wires
from sdxl_bento.params import GenerateParams
from sdxl_bento.pictures.infotext import infotext
from sdxl_bento.protocols.http.answers import base64_of
from sdxl_bento.sampler_names import a1111_name

# What is written into a picture's text is in the answer, too, under the names of the request.
_ECHOED = {
    wire.a1111: name for name, wire in wires(GenerateParams).items() if wire.a1111 and wire.infotext
}


def response_body(answer: Answer, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The body of an answer; `asked` is the call's body, which comes back as `parameters`."""
    # A picture that was not stored could not be fetched afterwards.
    stored = all(picture.image_id is not None for picture in answer.pictures)
    sent = answer.pictures if asked.get("send_images", True) or not stored else ()
    return {
        "images": [base64_of(picture.data) for picture in sent],
        "parameters": {name: asked[name] for name in asked if name != "init_images"},
        "info": json.dumps(_info(answer, asked)),
    }


def _info(answer: Answer, asked: Mapping[str, Any]) -> dict[str, Any]:
    order, first = answer.order, answer.pictures[0]
    params = order.params
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
        "sampler_name": a1111_name(params.sampler)[0],
        **{name: getattr(params, field) for name, field in _ECHOED.items()},
        "batch_size": asked.get("batch_size") or 1,
        "restore_faces": False,
        "sd_model_name": params.model,
        "sd_model_hash": None,
        "denoising_strength": params.strength if order.redraws else None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [infotext(order.single(each.index)) for each in answer.pictures],
        "styles": [],
        "clip_skip": 1,
        "version": f"sdxl-bento {__version__}",
        "image_ids": [picture.image_id for picture in answer.pictures],
    }
