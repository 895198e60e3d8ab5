"""Bodies as other servers' clients and documentation have them are accepted as they stand.

They are defaults, examples and what well-known programs send, with everything that they leave off.
"""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.unit.protocols.conftest import Bed, png_base64

TXT2IMG, IMG2IMG = "/sdapi/v1/txt2img", "/sdapi/v1/img2img"
# What AUTOMATIC1111 1.10 has as defaults, all of them sent.
DEFAULTS: dict[str, Any] = {
    "prompt": "", "negative_prompt": "", "styles": [], "seed": -1, "subseed": -1,
    "subseed_strength": 0, "seed_resize_from_h": -1, "seed_resize_from_w": -1,
    "sampler_name": None, "scheduler": None, "batch_size": 1, "n_iter": 1, "steps": 50,
    "cfg_scale": 7.0, "width": 64, "height": 64, "restore_faces": None, "tiling": None,
    "do_not_save_samples": False, "do_not_save_grid": False, "eta": None,
    "denoising_strength": None, "s_min_uncond": 0, "s_churn": 0, "s_tmax": 0, "s_tmin": 0,
    "s_noise": 1.0, "override_settings": {}, "override_settings_restore_afterwards": True,
    "refiner_checkpoint": None, "refiner_switch_at": None, "disable_extra_networks": False,
    "firstpass_image": "", "comments": {}, "enable_hr": False, "firstphase_width": 0,
    "firstphase_height": 0, "hr_scale": 2.0, "hr_upscaler": None, "hr_second_pass_steps": 0,
    "hr_resize_x": 0, "hr_resize_y": 0, "hr_checkpoint_name": None, "hr_sampler_name": None,
    "hr_scheduler": None, "hr_prompt": "", "hr_negative_prompt": "", "force_task_id": None,
    "sampler_index": "Euler", "script_name": None, "script_args": [], "send_images": True,
    "save_images": False, "alwayson_scripts": {}, "infotext": None,
}  # fmt: skip
# The example of AUTOMATIC1111's API page: "string" wherever there is a text, true or 0 wherever the
# schema has no default.
EXAMPLE = DEFAULTS | {
    "styles": ["string"], "sampler_name": "string", "scheduler": "string",
    "refiner_checkpoint": "string", "refiner_switch_at": 0, "firstpass_image": "string",
    "hr_upscaler": "string", "hr_checkpoint_name": "string", "hr_sampler_name": "string",
    "hr_scheduler": "string", "force_task_id": "string", "script_name": "string", "s_noise": 0,
    "denoising_strength": 0, "restore_faces": True, "tiling": True, "infotext": "string",
    "override_settings": {"sd_model_checkpoint": "string"},
}  # fmt: skip
OFF = {
    "ADetailer": {"args": [False, False, {"ad_model": "face_yolov8n.pt"}]},
    "ControlNet": {"args": [{"enabled": False, "module": "canny"}, {"enabled": False}]},
    "Refiner": {"args": []},
}
BODIES: list[tuple[str, dict[str, Any]]] = [
    (TXT2IMG, DEFAULTS),
    (TXT2IMG, EXAMPLE),
    (TXT2IMG, EXAMPLE | {"sampler_name": "Euler a", "styles": []}),
    (IMG2IMG, EXAMPLE | {"init_images": [png_base64()], "mask": "string", "latent_mask": "string",
                         "initial_noise_multiplier": 0, "denoising_strength": 0.75}),
    (TXT2IMG, {"alwayson_scripts": OFF}),
    (TXT2IMG, {"seed": "-1", "clip_skip": 1, "hr_additional_modules": []}),
    (TXT2IMG, {"override_settings": {
        "sd_vae": "Automatic", "CLIP_stop_at_last_layers": 1, "filter_nsfw": False,
        "sd_model_checkpoint": "fake.safetensors", "eta_noise_seed_delta": 0,
        "samples_save": False, "jpeg_quality": 80, "randn_source": "CPU",
    }}),
    (TXT2IMG, {"override_settings": {"sd_model_checkpoint": "xl/fake.safetensors [31e35c80fc]"}}),
    (IMG2IMG, {"init_images": [png_base64()], "mask": None, "mask_blur": 4, "mask_blur_x": 4,
               "mask_blur_y": 4, "mask_round": True, "inpainting_fill": 0,
               "inpaint_full_res": True, "inpaint_full_res_padding": 0, "resize_mode": 0,
               "inpainting_mask_invert": 0, "initial_noise_multiplier": None,
               "image_cfg_scale": 0, "include_init_images": False, "latent_mask": None}),
    ("/generate", {"prompt": "a", "num_inference_steps": 25, "width": 64, "height": 64,
                   "seed": None, "guidance_scale": 7.5, "strength": 0.3, "num_images": 1,
                   "scheduler": "K_EULER"}),
    ("/generate", {"prompt": "a", "num_outputs": 1, "scheduler": "DDIM", "prompt_strength": 0.8,
                   "high_noise_frac": 0.8}),
    ("/generate", {"prompt": "a", "num_images_per_prompt": 2, "steps": 4, "cfg_scale": 0,
                   "scheduler": "EulerAncestralDiscreteScheduler", "use_refiner": True}),
    ("/v1/models/fake:predict", {"instances": [{
        "prompt": "a", "negative_prompt": "b", "guidance_scale": 8.0, "num_inference_steps": 50,
        "crops_coords_top_left": [256, 0], "width": 64, "height": 64, "denoising_limit": 0.8}]}),
    ("/v2/models/fake/infer", {"id": "1", "model_name": "fake", "inputs": [
        {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["a"],
         "parameters": {"content_type": "str"}},
        {"name": "steps", "shape": [1], "datatype": "INT32", "data": [4]}]}),
    ("/v1/images/generations", {"prompt": "a", "model": None, "n": 1, "quality": "standard",
                                "response_format": "url", "size": "64x64", "style": "vivid",
                                "user": "u", "num_inference_steps": 4, "scheduler": "LCM"}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_accepted_as_they_stand(http: TestClient, path: str, body: dict[str, Any]) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"alwayson_scripts": {"ControlNet": {"args": [{"module": "canny"}]}}},
         "alwayson_scripts.ControlNet"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True]}}}, "alwayson_scripts.ADetailer"),
        ({"alwayson_scripts": []}, "alwayson_scripts"),
        ({"styles": ["photo"]}, "styles"),
        ({"s_noise": 0, "sampler_name": "Euler a"}, "s_noise"),
        ({"s_min_uncond": 0.5}, "s_min_uncond"),
        ({"restore_faces": True}, "restore_faces"),
        (EXAMPLE | {"s_noise": 0.5, "sampler_name": "Euler a"}, "s_noise"),
        (EXAMPLE | {"enable_hr": True}, "enable_hr"),
        ({"override_settings": {"filter_nsfw": True}}, "override_settings.filter_nsfw"),
        ({"override_settings": {"sd_vae": "x.safetensors"}}, "override_settings.sd_vae"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 3}},
         "override_settings.CLIP_stop_at_last_layers"),
        ({"firstpass_image": png_base64()}, "firstpass_image"),
        ({"do_not_save_gird": True}, "do_not_save_gird"),
        ({"hr_scal": 2}, "hr_scal"),
    ],
)  # fmt: skip
def test_what_asks_for_something_is_refused_by_name(
    http: TestClient, body: dict[str, Any], field: str
) -> None:
    answer = http.post(TXT2IMG, json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(f"{field}: got ")


def test_seed_minus_one_is_random(http: TestClient, bed: Bed) -> None:
    for seed in (-1, "-1", "", None):
        assert http.post(TXT2IMG, json={"seed": seed}).status_code == 200
        assert bed.generator.orders[-1].params.seed is None
    assert http.post("/generate", json={"prompt": "a", "seed": -1}).status_code == 422


def test_aliases_set_their_fields(http: TestClient, bed: Bed) -> None:
    body = {
        "prompt": "a", "steps": 7, "cfg_scale": 2.5, "num_outputs": 2, "denoising_limit": 0.7,
        "scheduler": "DPMSolverMultistep", "use_refiner": True, "denoising_strength": 0.6,
    }  # fmt: skip
    assert http.post("/generate", json=body).status_code == 200
    assert bed.last == {
        "prompt": "a", "num_inference_steps": 7, "guidance_scale": 2.5, "num_images": 2,
        "high_noise_frac": 0.7, "sampler": "dpmpp_2m", "refiner": True, "strength": 0.6,
    }  # fmt: skip


# Envelopes: a typing error anywhere is not mistaken for a default.

PROMPT = {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["a"]}
V2 = "/v2/models/fake/infer"


@pytest.mark.parametrize(
    ("path", "body", "field", "nearest"),
    [
        (V2, {"inputs": [PROMPT], "paramaters": {"seed": 1}}, "paramaters", "parameters"),
        (V2, {"inputs": [PROMPT | {"shpae": [1]}]}, "inputs.0.shpae", "shape"),
        (V2, {"inputs": [PROMPT | {"parameters": {"binary_size": 3}}]},
         "inputs.0.parameters.binary_size", "binary_data_size"),
        (V2, {"inputs": [PROMPT], "outputs": [{"name": "seed", "params": {}}]},
         "outputs.0.params", "parameters"),
        (V2, {"inputs": [PROMPT], "outputs": [{"name": "seed", "parameters": {"binary": True}}]},
         "outputs.0.parameters.binary", "binary_data"),
        (V2, {"inputs": [PROMPT], "parameters": {"sed": 1}}, "sed", "seed"),
        (V2, {"inputs": [PROMPT | {"name": "promt"}]}, "inputs", "prompt"),
        (V2, {"inputs": [PROMPT], "model_name": "other"}, "model_name", ""),
        (V2, {"inputs": [PROMPT, PROMPT]}, "inputs", ""),
        ("/v2/repository/index", {"raedy": True}, "raedy", "ready"),
        ("/v2/repository/models/fake/load", {"paramters": {"a": 1}}, "paramters", "parameters"),
        ("/v2/repository/models/fake/load", {"parameters": False}, "parameters", ""),
        ("/v1/models/fake:predict", {"instances": ["a"], "paramters": {}}, "paramters",
         "parameters"),
        ("/generate_batch", {"requests": [{"prompt": "a"}], "slo_ms": 1}, "slo_ms", ""),
        ("/generate_batch", {"requests": [{"prompt": "a"}], "request": 1}, "request", "requests"),
        ("/generate", {"prompt": "a", "negativ_prompt": "b"}, "negativ_prompt", "negative_prompt"),
        ("/generate", {"prompt": "a", "image": "x"}, "image", "num_images"),
        ("/v1/images/generations", {"prompt": "a", "resolution": 1}, "resolution", ""),
        ("/v1/images/generations", {"prompt": "a", "respons_format": "url"}, "respons_format",
         "response_format"),
        (TXT2IMG, {"promt": "a"}, "promt", "prompt"),
        (TXT2IMG, {"override_setting": {}}, "override_setting", "override_settings"),
        ("/sdapi/v1/options", {"sd_model_chekpoint": "fake"}, "sd_model_chekpoint",
         "sd_model_checkpoint"),
    ],
)  # fmt: skip
def test_nothing_is_read_over(
    http: TestClient, path: str, body: dict[str, Any], field: str, nearest: str
) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    text = error["message"] if isinstance(error, dict) else answer.json().get("detail", error)
    assert text.startswith(f"{field}: got ")
    assert f"allowed: {nearest} (the nearest)" in text if nearest else "(the nearest)" not in text


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models/fake:predict", {"instances": ["a"] * 4, "parameters": {"num_images": 2}}),
        (V2, {"inputs": [PROMPT | {"shape": [4], "data": ["a"] * 4}],
              "parameters": {"num_images": 2}}),
    ],
)  # fmt: skip
def test_what_never_fits_is_refused_for_good(tmp_path: Any, path: str, body: Any) -> None:
    with TestClient(Bed(tmp_path, max_running=2, max_queue=4).app) as http:
        answer = http.post(path, json=body)
    assert answer.status_code == 422
    assert "got '8 pictures with 0.0 megapixels', allowed: at most 6 pictures" in answer.text
