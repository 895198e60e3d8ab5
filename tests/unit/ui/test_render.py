"""The page's HTML says what is the case, and nobody's text becomes markup."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from sdxl_bento.errors import EngineDead, InvalidInput, Overloaded
from sdxl_bento.order import Task
from sdxl_bento.protocols.http.errors import error_body
from sdxl_bento.serving.results import ModelSummary
from sdxl_bento.ui import render
from sdxl_bento.ui.album import Album, Entry, Start
from sdxl_bento.ui.progress import Snapshot

EVIL = '<img src=x onerror="alert(1)">'
CALL = {
    "prompt": EVIL,
    "negative_prompt": EVIL,
    "model": EVIL,
    "sampler": "euler",
    "num_inference_steps": 25,
    "guidance_scale": 5.0,
    "loras": [{"name": EVIL, "scale": 0.5}],
    "strength": 0.3,
}


def album(count: int = 1) -> Album:
    made = Album()
    made.pictures = [Entry(f"id{i}", "png", i, 128, 96, CALL, 1.5) for i in range(count)]
    made.chosen = 0
    return made


def test_text_stays_text() -> None:
    one = album()
    error = error_body(InvalidInput("prompt", EVIL, EVIL))["error"]
    pages = [
        render.details(one.picture),
        render.gallery(one),
        render.finished(one),
        render.chips([EVIL]),
        render.headline((), "dead", EVIL),
        render.failure(error),
        render.remark(EVIL),
    ]
    for page in pages:
        assert "onerror" in page
        assert "<img src=x" not in page
        assert 'onerror="' not in page


@pytest.mark.parametrize(
    ("snapshot", "words"),
    [
        (Snapshot("", 0, 25, 3, 0.0, ()), "Waiting in the queue: 2 before yours"),
        (Snapshot("", 0, 25, 1, 0.0, ()), "Waiting in the queue: yours is next"),
        (Snapshot("", 0, 0, 0, 0.0, ()), "Starting"),
        (Snapshot("encode", 0, 25, 0, 0.0, ()), "Reading the prompt"),
        (Snapshot("base", 7, 25, 0, 0.28, ()), "Drawing: step 7 of 25"),
        (Snapshot("refine", 21, 25, 0, 0.84, ()), "Refining: step 21 of 25"),
        (Snapshot("decode", 25, 25, 0, 1.0, ()), "Developing"),
    ],
)
def test_progress_in_words(snapshot: Snapshot, words: str) -> None:
    assert render.doing(snapshot) == words
    assert words in render.at_work(snapshot)


def test_an_error_names_what_is_given_and_allowed() -> None:
    error = error_body(InvalidInput("num_inference_steps", 500, "at most 150 on this server"))
    html = render.failure(error["error"])
    assert "Steps: this does not fit" in html
    assert "Given: 500" in html
    assert "Allowed: at most 150 on this server" in html


def test_a_busy_server_says_when_to_come_back() -> None:
    html = render.failure(error_body(Overloaded("the queue is full", 3.2))["error"])
    assert "The server is busy" in html
    assert "Try again in 4 s." in html


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        ("loading", "", "The model is loading"),
        ("ready", "", "tiny · onnx, fp32 on cpu, and 1 more"),
        ("dead", "no memory", "The engine has ended: no memory"),
        ("draining", "", "The server is stopping."),
        ("stopped", "", "The server is stopping."),
    ],
)
def test_the_headline_says_what_draws(state: str, reason: str, words: str) -> None:
    one = ModelSummary("tiny", "tiny:1", True, 8, 8, 8, True, "fp32", "onnx", "cpu", 1.0, 1.0)
    html = render.headline([one, replace(one, name="other")], state, reason)
    assert words in html
    assert ("sb-busy" in html) is (state != "ready")
    alone = render.headline([one], "ready", "")
    assert "more" not in alone


@pytest.mark.parametrize(
    ("value", "allowed", "lines"),
    [
        (0, "over 0", ["Given: 0", "Allowed: over 0"]),
        ("", "a word", ["Allowed: a word"]),
        (None, None, ["message"]),
    ],
)
def test_what_an_error_does_not_have_is_left_out(
    value: object, allowed: object, lines: list[str]
) -> None:
    body = {"type": "invalid_input", "message": "message", "field": "prompt"}
    html = render.failure(body | {"value": value, "allowed": allowed})
    assert re.findall("<span>(.*?)</span>", html) == lines


@pytest.mark.parametrize(
    ("retry", "seconds"), [(0.2, 1), (1.0, 1), (1.001, 2), (1.01, 2), (9.5, 10)]
)
def test_seconds_are_rounded_up(retry: float, seconds: int) -> None:
    html = render.failure({"type": "overloaded", "message": "full", "retry_after_s": retry})
    assert f"Try again in {seconds} s." in html


def test_a_bar_waits_until_there_is_progress() -> None:
    waiting = render.at_work(Snapshot("", 0, 25, 3, 0.5, (None,)))
    starting = render.at_work(Snapshot("encode", 0, 25, 0, 0.0, (None,)))
    working = render.at_work(Snapshot("base", 5, 25, 0, 0.2, (b"a", None)))
    assert [("sb-waits" in each) for each in (waiting, starting, working)] == [True, True, False]
    assert [("sb-many" in each) for each in (waiting, working)] == [False, True]
    assert 'aria-valuenow="20"' in working
    assert "width:20.0%" in working
    assert (working.count("sb-rough"), working.count("sb-blank")) == (1, 1)
    assert "base64,YQ==" in working


def test_the_facts_of_a_picture() -> None:
    call = CALL | {"prompt": "x", "negative_prompt": "", "model": "m", "loras": [],
                   "refiner": True, "high_noise_frac": 0.8}  # fmt: skip
    plain = Entry("i", "png", 7, 128, 96, call, 1.234)
    expected = [
        ("Prompt", "x"), ("Seed", "7"), ("Size", "128 × 96"), ("Drawn with", "25 steps of euler"),
        ("Guidance", "5"), ("Refiner", "from 80% on"), ("Model", "m"), ("Time", "1.23 s"),
    ]  # fmt: skip
    assert render.facts(plain) == expected
    redrawings: list[tuple[Task, str]] = [("refine", "Refined"), ("img2img", "Drawn over")]
    for task, name in redrawings:
        redrawn = replace(plain, start=Start("s", task=task))
        assert (name, "another picture, strength 0.3") in render.facts(redrawn)


def test_an_error_of_ours_says_so() -> None:
    assert "engine has ended" in render.failure(error_body(EngineDead("gone"))["error"])
    html = render.failure(error_body(RuntimeError("secret"))["error"])
    assert "secret" not in html


def test_a_picture_is_chosen_by_its_number_only() -> None:
    some = album(3)
    assert some.choose(2) is some.pictures[2]
    assert some.choose(3) is None
    assert some.choose(-1) is None
    assert some.chosen == 2
    assert render.gallery(some).count('aria-pressed="true"') == 1
