"""AUTOMATIC1111's protocol: fields, answers, running calls, and the routes in this process."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from sdxl_bento import __version__
from sdxl_bento.drawing import Answer
from sdxl_bento.errors import InvalidInput, RequestNotFound
from sdxl_bento.fields import wires
from sdxl_bento.order import PICTURES_OF, InputImage, Resolved
from sdxl_bento.params import GenerateParams, ResolvedParams
from sdxl_bento.pictures.infotext import infotext
from sdxl_bento.pictures.publish import Picture
from sdxl_bento.protocols.a1111 import answers, schema
from sdxl_bento.protocols.a1111.answers import Automatic1111Progress, response_body
from sdxl_bento.protocols.a1111.fields import OWN, SAME, SCRIPTS, to_native
from sdxl_bento.protocols.a1111.neutral import IGNORED, NEUTRAL
from sdxl_bento.protocols.a1111.running_calls import RunningCall, RunningCalls
from sdxl_bento.protocols.a1111.samplers import sampler_of
from sdxl_bento.protocols.http.operations import ref
from sdxl_bento.sampler_names import A1111_SAMPLERS, A1111_SCHEDULERS
from sdxl_bento.serving.results import Generation, Progress, Timings
from tests.support import conformity
from tests.unit.protocols.conftest import Bed, png_base64

EMPTY = {"prompt": "", "loras": [], "model": None, "negative_prompt": None, "seed": None}
URL = "/sdapi/v1"


def native(body: dict[str, Any], model: str | None = None, task: Any = "generate") -> Any:
    return to_native(body, model, task)


def changed(**body: Any) -> dict[str, Any]:
    """What a body sets beyond the fields of an empty one."""
    fields = native(body)
    return {k: v for k, v in fields.items() if (EMPTY | {"num_images": 1}).get(k, ...) != v}


def refused(body: Any, task: Any = "generate") -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        to_native(body, None, task)
    return caught.value


# Fields


def test_an_empty_body() -> None:
    assert native({}) == EMPTY | {"num_images": 1}
    assert native({}, "m")["model"] == "m"
    assert to_native([1], "m", "generate") == [1]
    assert native(dict.fromkeys(("steps", "prompt", "seed", "enable_hr", "x"))) == (
        EMPTY | {"num_images": 1}
    )


def test_fields() -> None:
    assert changed(prompt="a <lora:b:0.5>", negative_prompt="c", seed=7, cfg_scale=3, steps=9) == {
        "prompt": "a",
        "loras": [{"name": "b", "scale": 0.5}],
        "negative_prompt": "c",
        "seed": 7,
        "guidance_scale": 3,
        "num_inference_steps": 9,
    }
    assert changed(width=64, height=72, slo_ms=5, priority=2) == {
        "width": 64,
        "height": 72,
        "slo_ms": 5,
        "priority": 2,
    }
    assert changed(seed=-1, negative_prompt="") == {}
    assert changed(seed=0) == {"seed": 0}
    assert changed(send_images=False, denoising_strength=0.3) == {}  # it is for img2img


def test_every_field_with_the_same_value() -> None:
    for name, wire in wires(GenerateParams).items():
        if wire.a1111:
            assert native({wire.a1111: "value"})[name] == "value"


@pytest.mark.parametrize(
    ("body", "count"),
    [({"batch_size": 2}, 2), ({"n_iter": 3}, 3), ({"batch_size": 2, "n_iter": 3}, 6)],
)
def test_counts(body: dict[str, Any], count: int) -> None:
    assert changed(**body) == {"num_images": count}


@pytest.mark.parametrize("name", ["batch_size", "n_iter"])
@pytest.mark.parametrize("count", [0, -1, 1001, 1.0, "1", True])
def test_counts_that_are_none(name: str, count: Any) -> None:
    error = refused({name: count})
    assert (error.field, error.value, error.allowed) == (name, count, "an integer over 0")
    assert native({name: 1000})["num_images"] == 1000  # validation refuses it


@pytest.mark.parametrize("name", ["prompt", "negative_prompt", "sampler_name", "scheduler"])
def test_texts(name: str) -> None:
    error = refused({name: 5})
    assert (error.field, error.value, error.allowed) == (name, 5, "text")


def test_values_that_ask_for_nothing() -> None:
    assert NEUTRAL == {
        "enable_hr": (False,),
        "script_name": ("", "None", "string"),
        "script_args": ([],),
        "styles": ([], ["string"], [""]),
        "subseed_strength": (0,),
        "seed_enable_extras": (True, False),
        "seed_resize_from_h": (0, -1),
        "seed_resize_from_w": (0, -1),
        "restore_faces": (False,),
        "tiling": (False,),
        "s_churn": (0,),
        "s_min_uncond": (0,),
        "s_tmin": (0,),
        "s_noise": (1,),
        "disable_extra_networks": (False,),
        "firstpass_image": ("", "string"),
        "infotext": ("", "string"),
        "mask": ("",),
        "latent_mask": ("",),
        "resize_mode": (0, 1),
        "initial_noise_multiplier": (1,),
        "clip_skip": (0, 1, 2),
        "enable_refiner": (False,),
        "distilled_cfg_scale": (3.5,),
    }


@pytest.mark.parametrize("name", NEUTRAL)
def test_features_that_there_are_not(name: str) -> None:
    for value in NEUTRAL[name]:
        assert native({name: value}) == EMPTY | {"num_images": 1}
        wrong = refused({name: "other"})
        assert (wrong.field, wrong.value) == (name, "other")
        assert repr(value) in wrong.allowed
        assert wrong.allowed.endswith("; it is not supported")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("enable_hr", 0), ("restore_faces", 0), ("tiling", 0), ("disable_extra_networks", 0)],
        *[("subseed_strength", False), ("s_churn", False), ("s_noise", True)],
        *[("resize_mode", False), ("s_tmin", False)],
        *[("enable_hr", True), ("subseed_strength", 0.5), ("script_args", [1]), ("resize_mode", 2)],
        *[("styles", {}), ("alwayson_scripts", []), ("seed_resize_from_h", 1), ("infotext", "a")],
    ],
)
def test_a_number_is_no_truth_value(name: str, value: Any) -> None:
    error = refused({name: value})
    assert (error.field, error.value) == (name, value)


def test_either_of_two_neutral_values() -> None:
    assert refused({"script_name": "x"}).allowed == "'' or 'None' or 'string'; it is not supported"
    assert refused({"mask": "x"}).allowed == "''; it is not supported"
    assert changed(seed_resize_from_w=-1, seed_resize_from_h=0) == {}


@pytest.mark.parametrize(
    "name",
    [
        *["hr_scale", "firstphase_width", "do_not_save_grid", "mask_blur_x", "inpaint_full_res"],
        *["comments", "eta", "force_task_id", "save_images", "image_cfg_scale", "s_tmax"],
        *["include_init_images", "mask_round", "override_settings_restore_afterwards", "subseed"],
    ],
)
def test_fields_that_are_ignored(name: str) -> None:
    assert changed(**{name: "anything"}) == {}
    assert refused({name + "-": "x"}).field == name + "-"


def test_unknown_fields() -> None:
    error = refused({"prompt": "a", "cfg_scal": 3})
    assert (error.field, error.value) == ("cfg_scal", 3)
    known = error.allowed.removeprefix("cfg_scale (the nearest), or one of the fields ")
    assert known.split(", ") == sorted([*OWN, *SAME])


def test_whether_pictures_are_sent_is_a_truth_value() -> None:
    for value in (1, "yes"):
        error = refused({"send_images": value})
        assert (error.field, error.value, error.allowed) == ("send_images", value, "true or false")


# Samplers


@pytest.mark.parametrize(
    ("body", "sampler"),
    [
        ({}, None),
        ({"sampler_name": "", "sampler_index": ""}, None),
        ({"scheduler": "Automatic"}, None),
        ({"scheduler": ""}, None),
        ({"sampler_name": "Euler a"}, "euler_a"),
        ({"sampler_index": "DDIM"}, "ddim"),
        ({"sampler_name": "LCM", "sampler_index": "DDIM"}, "lcm"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "UNIFORM"}, "dpmpp_2m"),
        ({"scheduler": "uniform"}, "euler"),  # a scheduler alone
    ],
)
def test_samplers(body: dict[str, str], sampler: str | None) -> None:
    assert native(body).get("sampler") == sampler


def test_a_scheduler_alone_is_eulers() -> None:
    error = refused({"scheduler": "karras"})
    assert (error.field, error.value) == ("scheduler", "karras")
    assert error.allowed == "one of automatic, uniform with the sampler Euler"


def test_names_of_samplers() -> None:
    with pytest.raises(InvalidInput) as caught:
        sampler_of("Heun", "automatic")
    assert (caught.value.field, caught.value.value) == ("sampler_name", "Heun")
    assert caught.value.allowed == f"one of {', '.join(A1111_SAMPLERS)}"
    for name, schedulers in A1111_SAMPLERS.items():
        for scheduler, sampler in schedulers.items():
            assert sampler_of(name.upper(), scheduler.upper()) == sampler
    for wrong in (None, 5):
        with pytest.raises(InvalidInput, match="sampler_name"):
            sampler_of(wrong, "automatic")
        with pytest.raises(InvalidInput, match="scheduler"):
            sampler_of("Euler", wrong)


# Settings, refiner, pictures


def test_settings() -> None:
    settings = {"sd_model_checkpoint": "m", "samples_format": "jpg"}
    assert changed(override_settings=settings) == {"model": "m", "output_format": "jpeg"}
    assert changed(override_settings={"samples_format": "webp"}) == {"output_format": "webp"}
    nulls = dict.fromkeys(("samples_format", "sd_model_checkpoint", "sd_vae"))
    assert changed(override_settings=nulls) == {}
    assert native({"override_settings": {"sd_model_checkpoint": "a"}}, "b")["model"] == "a"
    error = refused({"override_settings": {"sd_vae": "x"}})
    assert (error.field, error.value) == ("override_settings.sd_vae", "x")
    assert error.allowed.endswith("; it is not supported")
    error = refused({"override_settings": {"sd_model": "x"}})
    assert error.field == "override_settings.sd_model"
    assert "one of sd_model_checkpoint, samples_format, jpeg_quality" in error.allowed
    error = refused({"override_settings": [1]})
    assert (error.field, error.value, error.allowed) == ("override_settings", [1], "an object")


def test_the_refiner() -> None:
    assert changed(refiner_checkpoint="sd_xl_REFINER_1.0") == {"refiner": True}
    switch = {"refiner_checkpoint": "refiner", "refiner_switch_at": 0.7}
    assert changed(**switch) == {"refiner": True, "high_noise_frac": 0.7}
    for none in ("", "None"):
        assert changed(refiner_checkpoint=none, refiner_switch_at=1) == {}
    for wrong in ("base", 5):
        error = refused({"refiner_checkpoint": wrong})
        assert (error.field, error.value) == ("refiner_checkpoint", wrong)
    for wrong in (True, "0.7"):
        error = refused(switch | {"refiner_switch_at": wrong})
        assert (error.field, error.value) == ("refiner_switch_at", wrong)


@pytest.mark.parametrize("task", ["img2img", "refine"])
def test_image_to_image(task: Any) -> None:
    fields = native({"init_images": ["a"]}, task=task)
    assert fields == EMPTY | {"num_images": 1, "strength": 0.75, "image": "a"}
    fields = native({"init_images": ["a"], "denoising_strength": 0.2}, task=task)
    assert fields["strength"] == 0.2


@pytest.mark.parametrize(
    ("images", "shown"),
    [(None, None), ([], "0 pictures"), (["a", "b"], "2 pictures"), ("a", "a")],
)
def test_pictures_that_are_not_one(images: Any, shown: Any) -> None:
    error = refused({"init_images": images}, "img2img")
    assert (error.field, error.value) == ("init_images", shown)


def test_the_schema_has_every_field() -> None:
    params = GenerateParams.model_json_schema()
    item = schema.paths(params)[f"{URL}/img2img"]["post"]
    body = item["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == {*OWN, *SAME, *NEUTRAL, *IGNORED, SCRIPTS}
    assert body["required"] == ["init_images"]
    assert body["properties"]["steps"]["type"] == ["integer", "null"]
    assert item["requestBody"]["required"]
    assert not schema.paths(params)[f"{URL}/txt2img"]["post"]["requestBody"]["required"]
    assert body["properties"]["init_images"]["minItems"] == 1
    assert body["properties"]["init_images"]["maxItems"] == 1
    settings = body["properties"]["override_settings"]
    assert {"sd_vae", "samples_format", "samples_save"} <= set(settings["properties"])


# Answers


def answer(task: Any = "generate", image_ids: Any = ("i", "j"), **changes: Any) -> Answer:
    fields = {"prompt": "a", "model": "m", "width": 64, "height": 72, "seed": 3, "num_images": 2}
    params = ResolvedParams(**(fields | {"sampler": "ddim"} | changes))
    source = InputImage(Image.new("RGB", (64, 64)), "0")
    pictures = dict.fromkeys(PICTURES_OF[task], source)
    order = Resolved(task, params, pictures)
    pictures = tuple(
        Picture(b"\xff", "png", image_id, 3 + index, 64, 72, index)
        for index, image_id in enumerate(image_ids)
    )
    return Answer(Generation("r", order, (), Timings(0, 0, 0, 0, 0, 0)), pictures)


def info_of(drawn: Answer, **request: Any) -> Any:
    return json.loads(response_body(drawn, request)["info"])


def test_the_body() -> None:
    request = {"prompt": "p", "init_images": ["x"], "steps": 5}
    body = response_body(answer(), request)
    assert list(body) == ["images", "parameters", "info"]
    assert body["images"] == ["/w==", "/w=="]
    assert body["parameters"] == {"prompt": "p", "steps": 5}


@pytest.mark.parametrize(
    ("send", "image_ids", "count"),
    [
        ({}, ("i", "j"), 2),
        ({"send_images": True}, ("i", "j"), 2),
        ({"send_images": False}, ("i", "j"), 0),
        ({"send_images": False}, ("i", None), 2),
        ({"send_images": False}, (None, "j"), 2),
    ],
)
def test_when_pictures_are_sent(send: Any, image_ids: Any, count: int) -> None:
    assert len(response_body(answer(image_ids=image_ids), send)["images"]) == count


def test_info() -> None:
    drawn = answer(negative_prompt="n", guidance_scale=2.5, num_inference_steps=9)
    assert info_of(drawn, prompt="p <lora:x:1>", batch_size=2) == {
        "prompt": "p <lora:x:1>",
        "all_prompts": ["p <lora:x:1>"] * 2,
        "negative_prompt": "n",
        "all_negative_prompts": ["n", "n"],
        "seed": 3,
        "all_seeds": [3, 4],
        "subseed": 3,
        "all_subseeds": [3, 4],
        "subseed_strength": 0,
        "width": 64,
        "height": 72,
        "sampler_name": "DDIM",
        "steps": 9,
        "cfg_scale": 2.5,
        "batch_size": 2,
        "restore_faces": False,
        "sd_model_name": "m",
        "sd_model_hash": None,
        "denoising_strength": None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [infotext(drawn.order.single(0)), infotext(drawn.order.single(1))],
        "styles": [],
        "clip_skip": 1,
        "version": f"sdxl-bento {__version__}",
        "image_ids": ["i", "j"],
    }


def test_info_of_a_call_that_says_little() -> None:
    info = info_of(answer("img2img", strength=0.4))
    assert (info["prompt"], info["negative_prompt"], info["batch_size"]) == ("", "", 1)
    assert info["denoising_strength"] == 0.4


def test_a_field_of_the_infotext_is_in_the_info() -> None:
    info = info_of(answer())
    for name, wire in wires(GenerateParams).items():
        if wire.infotext and wire.a1111:
            assert info[wire.a1111] == getattr(answer().order.params, name)


# Running calls


def step(index: int, step: int, steps: int, preview: Any = None) -> Progress:
    return Progress("r", index, "base", step, steps, preview=preview)


def test_the_progress_of_a_call() -> None:
    call = RunningCall("r")
    assert abs(call.start - time.time()) < 5
    assert call.fraction == 0
    call.update(step(0, 2, 4))
    assert call.fraction == 0.5
    call.update(step(1, 0, 4))
    assert call.fraction == 0.25
    call.update(step(0, 3, 4))  # of each picture the latest step counts
    assert call.fraction == 0.375
    preview = Image.new("RGB", (8, 8))
    call.update(step(1, 1, 4, preview))
    call.update(step(1, 2, 4))
    assert call.previewed is not None
    assert call.previewed.preview is preview


def test_the_oldest_call() -> None:
    calls = RunningCalls()
    assert calls.oldest() is None
    with calls.running("a") as first:
        with calls.running("b"), calls.running("a"):  # the same id again
            assert calls.oldest() is first
        assert calls.oldest() is first
        with calls.running("b"):
            pass
    assert calls.oldest() is None
    with pytest.raises(RuntimeError), calls.running("c"):
        raise RuntimeError
    assert calls.oldest() is None


IDLE = {
    "progress": 0.0,
    "eta_relative": 0.0,
    "textinfo": None,
    "current_image": None,
    "state": {
        "skipped": False,
        "interrupted": False,
        "job": "",
        "job_count": 0,
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": 0,
        "sampling_steps": 0,
    },
}


async def test_progress() -> None:
    calls = RunningCalls()
    assert await calls.progress(with_image=True) == IDLE
    with calls.running("a") as call, calls.running("b"):
        begun = await calls.progress(with_image=True)
        assert (begun["progress"], begun["eta_relative"]) == (0.0, 0.0)
        call.start = time.time() - 30
        preview = Image.new("RGB", (8, 16))
        call.update(step(0, 1, 4, preview))
        call.update(step(1, 2, 4))
        body = await calls.progress(with_image=True)
        assert body["progress"] == 3 / 8
        conformity.validate(ref(Automatic1111Progress), body)
        assert body["eta_relative"] == pytest.approx(50, rel=0.02)
        stamp = time.strftime("%Y%m%d%H%M%S", time.localtime(call.start))
        state = {"job": "a", "job_count": 2, "job_timestamp": stamp}
        assert body["state"] == IDLE["state"] | state | {"sampling_step": 2, "sampling_steps": 4}
        image = Image.open(io.BytesIO(base64.b64decode(body["current_image"] or "")))
        assert (image.format, image.size) == ("PNG", (8, 16))
        assert (await calls.progress(with_image=False))["current_image"] is None


# Routes


def test_txt2img(http: TestClient, bed: Bed) -> None:
    answer = http.post(f"{URL}/txt2img", json={"prompt": "quick", "seed": 5, "steps": 9})
    assert answer.status_code == 200
    assert answer.headers["x-seed"] == "5"
    assert answer.json()["parameters"] == {"prompt": "quick", "seed": 5, "steps": 9}
    assert bed.last == {"prompt": "quick", "seed": 5, "num_inference_steps": 9}
    assert http.post(f"{URL}/txt2img").status_code == 200  # everything may be left out


def test_img2img(http: TestClient, bed: Bed) -> None:
    body = {"prompt": "quick", "init_images": [png_base64()], "denoising_strength": 0.5}
    answer = http.post(f"{URL}/img2img", json=body)
    assert "init_images" not in answer.json()["parameters"]
    order = bed.generator.orders[-1]
    assert (order.task, order.params.strength) == ("img2img", 0.5)


def error(http: TestClient, status: int, path: str, **request: Any) -> dict[str, str]:
    answer = http.post(f"{URL}/{path}", **request)
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error", "detail", "body", "errors"}
    return dict(body)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"steps": 201}, "steps"),
        ({"batch_size": 17}, "batch_size"),
        ({"n_iter": 17}, "n_iter"),
        ({"batch_size": 4, "n_iter": 5}, "batch_size x n_iter"),
        ({"enable_hr": 1}, "enable_hr"),
        ({"override_settings": {"samples_format": "gif"}}, "override_settings.samples_format"),
    ],
)
def test_errors_name_the_callers_field(http: TestClient, body: Any, field: str) -> None:
    for path in ("txt2img", "img2img"):
        more = {"init_images": [png_base64()]} if path == "img2img" else {}
        assert error(http, 422, path, json=body | more)["detail"].startswith(f"{field}: got ")


def test_bodies_that_cannot_be_read(http: TestClient) -> None:
    form = error(http, 415, "txt2img", data={"prompt": "a"}, files={"x": b"1"})
    assert (form["error"], "multipart" in form["detail"]) == ("unsupported_body", True)
    headers = {"X-Request-Id": "a b"}  # the first error is told
    assert error(http, 422, "txt2img", files={"x": b"1"}, headers=headers)["detail"].startswith(
        "X-Request-Id"
    )
    assert error(http, 422, "txt2img", json=[1])["detail"].startswith("body: got [1]")
    large = {"prompt": "x" * (1 << 20)}
    assert error(http, 413, "txt2img", json=large)["error"] == "body_too_large"
    assert error(http, 422, "img2img", json=large)["detail"].startswith("init_images")


def test_options(http: TestClient, bed: Bed) -> None:
    standard = {"sd_model_checkpoint": "fake", "samples_format": "png"}
    assert http.get(f"{URL}/options").json() == standard
    chosen = http.post(f"{URL}/options", json={"sd_model_checkpoint": "fake:1"})
    assert (chosen.status_code, chosen.json()) == (200, None)
    assert http.get(f"{URL}/options").json() == standard
    http.post(f"{URL}/txt2img", json={"prompt": "quick"})
    assert bed.last["model"] == "fake"
    headers = {"X-SLO-MS": "5", "X-Priority": "1"}
    body = {"sd_model_checkpoint": "fake"}
    assert http.post(f"{URL}/options", json=body, headers=headers).status_code == 200


def test_no_model_is_loaded_yet(http: TestClient, bed: Bed) -> None:
    bed.generator.models.publish({})
    assert http.get(f"{URL}/options").json()["sd_model_checkpoint"] is None


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ([1], "options: got [1], allowed: an object with sd_model_checkpoint"),
        ({"a": 1, "sd_model_checkpoint": "fake"}, "a: got 1, allowed: one of sd_model_checkpoint"),
        ({"samples_format": "jpg"}, "samples_format: got 'jpeg', allowed: png, or another in"),
        ({"jpeg_quality": 80}, "jpeg_quality: got 80, allowed: nothing; it is one of"),
        ({"sd_vae": "x.pt"}, "sd_vae: got 'x.pt', allowed: 'Automatic' or"),
    ],
)
def test_options_that_are_refused(http: TestClient, body: Any, shown: str) -> None:
    assert error(http, 422, "options", json=body)["detail"].startswith(shown)


def test_options_may_be_sent_back(http: TestClient, bed: Bed) -> None:
    """Clients change one of the options that they got and send all of them."""
    options = http.get(f"{URL}/options").json()
    more = {"sd_vae": "Automatic", "CLIP_stop_at_last_layers": 1, "samples_save": True}
    for body in (options, options | more, {}, {"sd_model_checkpoint": "fake.safetensors [0a]"}):
        assert http.post(f"{URL}/options", json=body).status_code == 200, body
    assert http.get(f"{URL}/options").json() == options


def test_options_of_unknown_models_and_broken_bodies(http: TestClient) -> None:
    wrong = error(http, 404, "options", json={"sd_model_checkpoint": "x"})
    assert wrong["error"] == "model_not_found"
    headers = {"Content-Type": "application/json"}
    assert error(http, 400, "options", content=b"{", headers=headers)["error"] == "malformed_body"


def test_several_processes_share_no_options(tmp_path: Any) -> None:
    bed = Bed(tmp_path, workers=2)
    with TestClient(bed.app) as http:
        body = {"sd_model_checkpoint": "fake"}
        detail = error(http, 422, "options", json=body)["detail"]
    assert detail.startswith("sd_model_checkpoint: got 'fake', allowed: one of override_settings")


def test_a_misspelt_query(http: TestClient) -> None:
    answer = http.get(f"{URL}/progress?skip_curent_image=true")
    assert answer.status_code == 422
    assert "allowed: skip_current_image (the nearest)" in answer.json()["detail"]


@pytest.mark.parametrize("query", ["", "?skip_current_image=TRUE", "?skip_current_image=0"])
def test_progress_of_nothing(http: TestClient, query: str) -> None:
    assert http.get(f"{URL}/progress{query}").json() == IDLE


@pytest.mark.parametrize(
    ("query", "with_image"),
    [("", True), ("?skip_current_image=False", True), ("?skip_current_image=1", False)],
)
def test_progress_with_and_without_image(
    http: TestClient, monkeypatch: pytest.MonkeyPatch, query: str, with_image: bool
) -> None:
    asked = []

    async def progress(self: object, with_image: bool) -> dict[str, Any]:
        asked.append(with_image)
        return IDLE

    monkeypatch.setattr(RunningCalls, "progress", progress)
    http.get(f"{URL}/progress{query}")
    assert asked == [with_image]
    refused = http.get(f"{URL}/progress?skip_current_image=Yes")
    assert refused.status_code == 422
    assert "skip_current_image: got 'yes', allowed: true or false" in refused.text


async def test_a_call_runs_while_it_is_drawn(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """And /interrupt ends it."""
    import httpx

    monkeypatch.setenv("FAKE_PREVIEWS", "1")
    bed.generator.run_s = 20
    transport = httpx.ASGITransport(bed.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        assert (await client.post(f"{URL}/interrupt")).json() == {}  # nothing runs
        headers = {"X-Request-Id": "mine"}
        call = asyncio.create_task(
            client.post(f"{URL}/txt2img", json={"prompt": "a"}, headers=headers)
        )
        while "mine" not in bed.generator.ended:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        state = (await client.get(f"{URL}/progress")).json()["state"]
        assert (state["job"], state["job_count"]) == ("mine", 1)
        assert (await client.post(f"{URL}/interrupt")).json() == {}
        assert (await call).status_code == 409
        assert (await client.get(f"{URL}/progress")).json() == IDLE


def test_a_call_that_has_just_ended_cannot_be_interrupted(
    http: TestClient, monkeypatch: pytest.MonkeyPatch, bed: Bed
) -> None:
    monkeypatch.setattr(RunningCalls, "oldest", lambda self: RunningCall("gone"))
    with pytest.raises(RequestNotFound):
        bed.generator.cancel("gone")
    assert http.post(f"{URL}/interrupt").json() == {}


def test_lists(http: TestClient) -> None:
    lists = {
        name: http.get(f"{URL}/{name}").json()
        for name in ("sd-models", "samplers", "schedulers", "loras", "scripts")
    }
    model = {"title": "fake", "model_name": "fake", "filename": "fake:1"}
    assert lists == {
        "sd-models": [model | {"hash": None, "sha256": None, "config": None}],
        "samplers": [{"name": name, "aliases": [], "options": {}} for name in A1111_SAMPLERS],
        "schedulers": [
            {"name": name, "label": name.capitalize(), "aliases": None} for name in A1111_SCHEDULERS
        ],
        "loras": [{"name": "striped", "alias": "striped", "path": "", "metadata": {}}],
        "scripts": {"txt2img": [], "img2img": []},
    }
    refreshed = http.post(f"{URL}/refresh-loras")
    assert (refreshed.status_code, refreshed.json()) == (200, None)


def test_info_has_the_values_of_fields_in_place_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `info` says by itself, because there is no such field yet, gives way to a field."""
    monkeypatch.setattr(answers, "_INFO_FIELDS", {"clip_skip": "num_inference_steps"})
    params = ResolvedParams(
        prompt="a", model="m", width=64, height=64, seed=1, sampler="euler", num_inference_steps=7
    )
    generation = Generation("r", Resolved("generate", params), (), Timings(0, 0, 0, 0, 0, 0))
    picture = Picture(b"file", "png", None, 1, 64, 64)
    info = json.loads(answers.response_body(Answer(generation, (picture,)), {})["info"])
    assert info["clip_skip"] == 7
