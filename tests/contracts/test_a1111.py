"""AUTOMATIC1111's API through `webuiapi`, over an engine that draws nothing."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
import requests
from PIL import Image
from webuiapi import WebUIApi

from sdxl_bento.sampler_names import A1111_SAMPLERS
from tests.contracts.conftest import RUN_S, finished, until_idle, until_running
from tests.support.server import Server

RED: dict[str, Any] = {"prompt": "a quick circle", "seed": 5, "width": 64, "height": 96}
SLOW = RED | {"prompt": "a red circle"}
PICTURE = Image.new("RGB", (64, 96))


def connected(server: Server, **options: Any) -> WebUIApi:
    address = urlsplit(server.url)
    return WebUIApi(host=address.hostname, port=address.port, **options)


@pytest.fixture(scope="module")
def api(faked: Server) -> WebUIApi:
    return connected(faked)


def refused(call: Callable[[], Any], status: int) -> dict[str, Any]:
    with pytest.raises(RuntimeError) as caught:
        call()
    assert caught.value.args[0] == status, caught.value.args
    body = json.loads(caught.value.args[1])
    assert set(body) == {"error", "detail", "body", "errors"}
    assert isinstance(body, dict)
    return body


# Pictures


def test_one_picture(api: WebUIApi) -> None:
    answer = api.txt2img(**RED)
    assert answer.image.size == (64, 96)
    assert answer.image.getpixel((0, 0)) == (5, 9, 9)
    assert answer.parameters["prompt"] == "a quick circle"
    assert (answer.parameters["steps"], answer.parameters["cfg_scale"]) == (20, 7.0)


def test_info(api: WebUIApi) -> None:
    info = api.txt2img(**RED, negative_prompt="blue", steps=9, cfg_scale=3.5).info
    assert (info["seed"], info["width"], info["height"]) == (5, 64, 96)
    assert (info["steps"], info["cfg_scale"], info["sampler_name"]) == (9, 3.5, "Euler a")
    assert info["sd_model_name"] == "fake"
    first, negative, facts = info["infotexts"][0].split("\n")
    assert (first, negative) == ("a quick circle", "Negative prompt: blue")
    assert facts.startswith("Steps: 9, Sampler: Euler a, Schedule type: Automatic, CFG scale: 3.5")
    assert "Seed: 5, Size: 64x96, Model: fake" in facts


def test_several_pictures(api: WebUIApi) -> None:
    answer = api.txt2img(**RED, batch_size=2, n_iter=2)
    assert [image.getpixel((0, 0))[0] for image in answer.images] == [5, 6, 7, 8]
    assert answer.info["all_seeds"] == [5, 6, 7, 8]
    assert len(answer.info["infotexts"]) == 4


def test_any_seed(api: WebUIApi) -> None:
    assert api.txt2img(prompt="quick", width=64, height=64).info["seed"] == 7  # the fake's


def test_image_to_image(api: WebUIApi) -> None:
    answer = api.img2img(images=[PICTURE], prompt="quick", seed=3, denoising_strength=0.4)
    assert answer.image.size == (64, 96)
    assert answer.info["denoising_strength"] == 0.4
    assert "init_images" not in answer.parameters
    assert "Denoising strength: 0.4" in answer.info["infotexts"][0]


def test_fields_left_out(faked: Server) -> None:
    url = f"{faked.url}/sdapi/v1"
    answer = httpx.post(f"{url}/txt2img", json={"prompt": "quick", "seed": None}).json()
    assert json.loads(answer["info"])["width"] == 64  # the model's own
    png = io.BytesIO()
    PICTURE.save(png, "PNG")
    picture = base64.b64encode(png.getvalue()).decode()
    answer = httpx.post(f"{url}/img2img", json={"init_images": [picture]}).json()
    assert json.loads(answer["info"])["denoising_strength"] == 0.75


def test_no_pictures_on_request(api: WebUIApi) -> None:
    answer = api.txt2img(**RED, send_images=False)
    assert answer.images == []
    assert len(answer.info["image_ids"][0]) == 28


@pytest.mark.parametrize(
    ("name", "scheduler", "sampler"),
    [
        ("Euler", "automatic", "euler"),
        ("euler A", "Automatic", "euler_a"),
        ("DDIM", "Uniform", "ddim"),
        ("DPM++ 2M", "automatic", "dpmpp_2m_karras"),
        ("DPM++ 2M", "Karras", "dpmpp_2m_karras"),
        ("DPM++ 2M", "uniform", "dpmpp_2m"),
        ("DPM++ 2M Karras", "automatic", "dpmpp_2m_karras"),
        ("DPM++ 2M SDE", "Karras", "dpmpp_2m_sde_karras"),
        ("DPM++ 2M SDE", "automatic", "dpmpp_2m_sde_exponential"),
        ("DPM++ 2M SDE Exponential", "automatic", "dpmpp_2m_sde_exponential"),
        ("LCM", "automatic", "lcm"),
    ],
)
def test_samplers(api: WebUIApi, faked: Server, name: str, scheduler: str, sampler: str) -> None:
    answer = api.txt2img(**RED, sampler_name=name, scheduler=scheduler)
    stored = httpx.get(f"{faked.url}/images/{answer.info['image_ids'][0]}")
    described = json.loads(Image.open(io.BytesIO(stored.content)).info["sdxl-bento"])
    assert described["sampler"] == sampler


def test_what_the_native_call_gets(api: WebUIApi, faked: Server) -> None:
    settings = {"sd_model_checkpoint": "fake", "samples_format": "png"}
    answer = api.custom_post(
        "txt2img",
        baseurl=True,
        payload=RED
        | {"refiner_checkpoint": "sd_xl_refiner_1.0", "refiner_switch_at": 0.7}
        | {"override_settings": settings, "negative_prompt": "", "slo_ms": 60_000, "priority": 2},
    )
    stored = httpx.get(f"{faked.url}/images/{answer.info['image_ids'][0]}")
    described = json.loads(Image.open(io.BytesIO(stored.content)).info["sdxl-bento"])
    expected = {"refiner": True, "high_noise_frac": 0.7, "model": "fake"}
    assert expected.items() <= described.items()
    assert "negative_prompt" not in described  # SDXL's zeros


# Lists and options


def test_lists(api: WebUIApi) -> None:
    assert api.util_get_model_names() == ["fake"]
    assert [lora["name"] for lora in api.get_loras()] == ["striped"]
    assert sorted(api.util_get_sampler_names()) == sorted(A1111_SAMPLERS)
    assert "karras" in api.util_get_scheduler_names()
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert (api.has_controlnet, api.has_adetailer) == (False, False)


def test_options(api: WebUIApi) -> None:
    assert api.util_get_current_model() == "fake"
    api.util_set_model("FAKE")
    assert api.util_get_current_model() == "fake"
    assert api.txt2img(**RED).info["sd_model_name"] == "fake"
    assert "available: fake" in api.set_options({"sd_model_checkpoint": "nope"})["detail"]
    for wrong in ({"CLIP_stop_at_last_layers": 5}, {"sd_model": "fake"}, []):
        assert "allowed: " in api.set_options(wrong)["detail"]
    for harmless in (api.get_options(), {"CLIP_stop_at_last_layers": 1}, {}):
        assert api.set_options(harmless) is None


# Progress


def test_progress(api: WebUIApi, faked: Server) -> None:
    until_idle(faked)
    api.util_wait_for_ready()
    with drawing(faked) as call:
        while not (0 < (progress := api.get_progress())["progress"] < 1):
            assert not call.done()
        skipped = api.custom_get("progress?skip_current_image=true", baseurl=True)
    assert progress["state"]["job_count"] == 1
    assert 1 <= progress["state"]["sampling_step"] < progress["state"]["sampling_steps"] == 4
    assert progress["eta_relative"] > 0
    preview = Image.open(io.BytesIO(base64.b64decode(progress["current_image"])))
    assert preview.size == (8, 8)
    assert skipped["current_image"] is None
    assert api.get_progress()["progress"] == 0


def test_interrupt(api: WebUIApi, faked: Server) -> None:
    until_idle(faked)
    assert api.interrupt() == {}  # nothing runs
    with drawing(faked) as call:
        while not call.done():
            assert api.interrupt() == {}
    with pytest.raises(RuntimeError, match="request_cancelled") as caught:
        call.result()
    assert caught.value.args[0] == 409


@contextmanager
def drawing(server: Server) -> Iterator[Future[None]]:
    """Calls, one after the other, until one fails or the block is left."""
    left = threading.Event()

    def draw() -> None:
        api = connected(server)
        while not left.is_set():
            api.txt2img(**SLOW)

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(draw)
        try:
            yield call
        finally:
            left.set()


# Errors


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"prompt": 5}, "prompt"),
        ({"steps": 0}, "steps"),
        ({"steps": "many"}, "steps"),
        ({"cfg_scale": 99}, "cfg_scale"),
        ({"width": 65}, "width"),
        ({"batch_size": 0}, "batch_size"),
        ({"n_iter": 1.5}, "n_iter"),
        ({"batch_size": 5, "n_iter": 5}, "batch_size x n_iter"),
        ({"seed": "red"}, "seed"),
        ({"sampler_name": "Heun"}, "sampler_name"),
        ({"sampler_name": "Euler", "scheduler": "Karras"}, "scheduler"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "exponential"}, "scheduler"),
        ({"sampler_name": ["Euler"]}, "sampler_name"),
        ({"scheduler": ["Karras"]}, "scheduler"),
        ({"sampler_name": "", "scheduler": "Karras"}, "scheduler"),
        ({"scheduler": False}, "scheduler"),
        ({"prompt": "a <lora:striped:x>"}, "prompt"),
        ({"prompt": "a <lora:striped:99>"}, "prompt"),
        ({"override_settings": {"sd_vae": "other"}}, "override_settings.sd_vae"),
        ({"override_settings": {"samples_format": "gif"}}, "override_settings.samples_format"),
        ({"enable_hr": True}, "enable_hr"),
        ({"script_name": "X/Y/Z plot"}, "script_name"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True]}}}, "alwayson_scripts.ADetailer"),
        ({"styles": ["watercolour"]}, "styles"),
        ({"subseed_strength": 0.5}, "subseed_strength"),
        ({"restore_faces": True}, "restore_faces"),
        ({"send_images": "no"}, "send_images"),
        ({"tiling": True}, "tiling"),
        ({"s_churn": 1}, "s_churn"),
    ],
)
def test_wrong_fields(api: WebUIApi, fields: dict[str, Any], named: str) -> None:
    error = refused(lambda: api.txt2img(**RED | fields), 422)
    assert error["error"] == "invalid_input"
    assert error["detail"].startswith(f"{named}: got ")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"images": []}, "init_images"),
        ({"images": [PICTURE, PICTURE]}, "init_images"),
        ({"mask_image": PICTURE}, "mask"),
        ({"denoising_strength": 2}, "denoising_strength"),
        ({"resize_mode": 2}, "resize_mode"),
    ],
)
def test_wrong_fields_with_a_picture(api: WebUIApi, fields: dict[str, Any], named: str) -> None:
    error = refused(lambda: api.img2img(**{"prompt": "a", "images": [PICTURE]} | fields), 422)
    assert error["detail"].startswith(f"{named}: got ")


def test_bad_pictures(faked: Server) -> None:
    url = f"{faked.url}/sdapi/v1/img2img"
    for picture in ("http://127.0.0.1/x.png", "AAAA", 5):
        answer = httpx.post(url, json={"prompt": "a", "init_images": [picture]})
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith("init_images: got ")


def test_unknown_fields(faked: Server) -> None:
    url = f"{faked.url}/sdapi/v1/txt2img"
    answer = httpx.post(url, json=RED | {"cfg_scal": 3})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("cfg_scal: got 3, allowed: cfg_scale (the nearest)")
    answer = httpx.post(url, json=RED | {"refiner_switch_at": "late"})
    assert answer.json()["detail"].startswith("refiner_switch_at: got 'late'")


def test_unknown_names(api: WebUIApi) -> None:
    error = refused(lambda: api.txt2img(prompt="a <lora:nope:0.5>"), 404)
    assert error["detail"] == "no LoRA named 'nope'; available: striped"
    settings = {"sd_model_checkpoint": "nope"}
    error = refused(lambda: api.txt2img(prompt="quick", override_settings=settings), 404)
    assert error["error"] == "model_not_found"


@pytest.mark.parametrize("body", [b"{", b'{"prompt": NaN}', b"[]"])
def test_malformed_bodies(faked: Server, body: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{faked.url}/sdapi/v1/txt2img", content=body, headers=headers)
    assert answer.status_code == (422 if body == b"[]" else 400)
    assert answer.json()["detail"]


def test_a_form(faked: Server) -> None:
    url = f"{faked.url}/sdapi/v1/txt2img"
    answer = httpx.post(url, data={"prompt": "a"}, files={"comments": b"\xff"})
    assert (answer.status_code, answer.json()["error"]) == (415, "unsupported_body")


def test_too_large(api: WebUIApi) -> None:
    assert refused(lambda: api.txt2img(prompt="x" * 2_000_000), 413)["error"] == "body_too_large"
    huge = Image.new("1", (2000, 1000))
    error = refused(lambda: api.img2img(images=[huge], prompt="quick"), 413)
    assert (error["error"], error["detail"][:12]) == ("image_too_large", "init_images:")


def test_overload_says_when_to_try_again(api: WebUIApi, faked: Server) -> None:
    assert refused(lambda: api.txt2img(prompt="full"), 429)["error"] == "overloaded"
    answer = httpx.post(f"{faked.url}/sdapi/v1/txt2img", json={"prompt": "full"})
    assert answer.headers["retry-after"] == "4"


def test_a_deadline_that_cannot_be_met(api: WebUIApi) -> None:
    error = refused(lambda: api.txt2img(prompt="late"), 503)
    assert error["error"] == "deadline_infeasible"


def test_cancel(faked: Server) -> None:
    until_idle(faked)
    url = f"{faked.url}/sdapi/v1/txt2img"
    with ThreadPoolExecutor(1) as pool:
        headers = {"X-Request-Id": "stop-a1111"}
        call = pool.submit(httpx.post, url, json={"prompt": "slow"}, headers=headers)
        until_running(faked, 1)
        assert httpx.post(f"{faked.url}/cancel/stop-a1111").status_code == 200
        assert call.result().status_code == 409


@pytest.mark.parametrize("query", ["maybe", "2"])
def test_a_wrong_question(faked: Server, query: str) -> None:
    url = f"{faked.url}/sdapi/v1/progress?skip_current_image={query}"
    assert httpx.get(url).json()["detail"].startswith("skip_current_image: got ")


def test_a_server_that_is_not_ready(loading: Server) -> None:
    api = connected(loading)
    assert refused(lambda: api.txt2img(**RED), 503)["error"] == "not_ready"
    assert refused(lambda: api.img2img(images=[PICTURE], prompt="quick"), 503)
    assert api.set_options({"sd_model_checkpoint": "fake"})["error"] == "not_ready"
    assert api.get_progress()["progress"] == 0


def test_other_addresses(api: WebUIApi) -> None:
    assert refused(lambda: api.extra_single_image(PICTURE), 404)["error"] == "not_found"


# Calls that end early


def test_a_client_that_leaves_ends_its_call(faked: Server) -> None:
    until_idle(faked)
    before = finished(faked, "automatic1111")
    with pytest.raises(requests.Timeout):
        requests.post(f"{faked.url}/sdapi/v1/txt2img", json=SLOW, timeout=RUN_S / 4)
    until_idle(faked)
    assert finished(faked, "automatic1111") == before
    assert httpx.get(f"{faked.url}/sdapi/v1/progress").json()["state"]["job_count"] == 0


def test_metrics(api: WebUIApi, faked: Server) -> None:
    before = finished(faked, "automatic1111")
    api.txt2img(**RED)
    assert finished(faked, "automatic1111") == before + 1
