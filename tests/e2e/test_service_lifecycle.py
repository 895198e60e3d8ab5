"""Start and end of the process, mostly over an engine that draws nothing."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil

from tests.support.server import FAKED, Server, faked_environment, serve

BODY = {"prompt": "a red circle", "seed": 1}


def _post(server: Server, **fields: str) -> httpx.Response:
    return httpx.post(f"{server.url}/generate", json=BODY | fields, timeout=30)


def _running(server: Server) -> int:
    running: int = httpx.get(f"{server.url}/stats").json()["running"]
    return running


def test_probes_while_loading_ready_and_dead(tmp_path: Path) -> None:
    env = faked_environment(tmp_path / "home", FAKE_LOAD_S=3, FAKE_DIE_AFTER=1)
    with serve(FAKED, tmp_path / "log", env=env, ready=False) as server:
        server.wait_for("/livez", 200)
        assert server.status("/readyz") == 503
        early = _post(server)
        assert early.status_code == 503
        assert early.json()["error"]["type"] == "not_ready"
        assert int(early.headers["retry-after"]) >= 1
        assert "Ready at" not in server.output()

        server.wait_for("/readyz", 200)
        assert _post(server).status_code == 200
        assert server.output().count("Ready at") == 1

        # That was its last: the process is up, but nothing will run in it again.
        assert server.status("/readyz") == 503
        assert server.status("/livez") == 503
        late = _post(server)
        assert late.status_code == 503
        assert late.json()["error"]["type"] == "engine_dead"
        assert "the device is gone" in late.json()["error"]["message"]
        assert "the device is gone" in httpx.get(f"{server.url}/stats").text


def test_loading_that_fails_is_told(tmp_path: Path) -> None:
    env = faked_environment(tmp_path / "home", FAKE_LOAD_ERROR="the weights are cut short")
    with serve(FAKED, tmp_path / "log", env=env, ready=False) as server:
        server.wait_for("/livez", 503)
        assert server.status("/readyz") == 503
        time.sleep(0.2)
        assert "the engine could not start: the weights are cut short" in server.output()


def test_running_calls_are_answered_before_the_end_and_new_ones_refused(tmp_path: Path) -> None:
    """Every request below is a connection of its own, as a probe's is."""
    env = faked_environment(tmp_path / "home", FAKE_RUN_S=3)
    with serve(FAKED, tmp_path / "log", env=env) as server, ThreadPoolExecutor(1) as pool:
        image_id = _post(server, prompt="quick").headers["x-image-id"]
        call = pool.submit(_post, server)
        while not _running(server):
            time.sleep(0.02)
        server.terminate()
        server.wait_for("/readyz", 503)
        refused = {
            "/generate": BODY,
            "/v1/images/generations": {"prompt": "a red circle"},
            "/sdapi/v1/txt2img": {"prompt": "a red circle"},
            "/v1/models/fake:predict": {"instances": [BODY]},
            "/v2/models/fake/infer": {
                "inputs": [
                    {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["a red circle"]}
                ]
            },
        }
        for path, body in refused.items():
            answer = httpx.post(server.url + path, json=body, timeout=10)
            assert (path, answer.status_code) == (path, 503)
            assert int(answer.headers["retry-after"]) >= 1
            assert "draining" in answer.text
        assert server.status("/livez") == 200
        assert server.status("/readyz") == 503
        assert server.status(f"/images/{image_id}") == 200
        assert not call.done()
        assert call.result().status_code == 200
        assert "x-image-id" in call.result().headers
        assert server.wait() == 0
        assert "Traceback" not in server.output()


def test_calls_that_take_too_long_to_end_can_be_made_again(tmp_path: Path) -> None:
    """Not even an image store that hangs keeps the process from ending."""
    hangs = tmp_path / "hangs"
    env = faked_environment(
        tmp_path / "home",
        FAKE_RUN_S=60,
        FAKE_STORE_HANGS=hangs,
        SDXL_DRAIN_S=0.5,
        SDXL_STORE=f"hanging://{tmp_path}/store",
        SDXL_STORE_TIMEOUT_S=0.5,
    )
    with serve(FAKED, tmp_path / "log", env=env) as server, ThreadPoolExecutor(1) as pool:
        assert "x-image-id" in _post(server, prompt="quick").headers
        hangs.touch()
        for _ in range(3):
            answer = _post(server, prompt="quick")
            assert answer.status_code == 200
            assert "x-image-id" not in answer.headers
        assert "could not be stored: no answer within 0.5 s" in server.output()
        assert "sdxl_store_available 0.0" in httpx.get(f"{server.url}/metrics").text
        gone = httpx.get(f"{server.url}/images/{'a' * 28}")
        assert (gone.status_code, gone.json()["error"]["type"]) == (503, "store_unavailable")
        call = pool.submit(_post, server)
        while not _running(server):
            time.sleep(0.02)
        server.terminate()
        answer = call.result()
        assert answer.status_code == 503, "another server may take it"
        assert "Retry-After" in answer.headers
        assert server.wait(20) == 0


def test_workers_share_their_pictures(tmp_path: Path) -> None:
    env = faked_environment(tmp_path / "home", SDXL_WORKERS=2)
    with serve(FAKED, tmp_path / "log", env=env) as server:
        time.sleep(3)  # until the other worker answers, too
        images = [_post(server).headers["x-image-id"] for _ in range(4)]
        for image_id in images * 3:
            assert httpx.get(f"{server.url}/images/{image_id}").status_code == 200
        assert server.output().count("Ready at") == 1


def test_processes_that_are_killed(tmp_path: Path) -> None:
    """A worker is replaced, and finds the pictures. A supervisor takes its workers along."""
    of_user = tmp_path / "tmp" / f"sdxl-bento-{os.getuid()}"
    of_user.mkdir(mode=0o700, parents=True)
    dead = of_user / "1234567"
    dead.mkdir()
    (dead / ".in-use").touch()
    env = faked_environment(tmp_path / "home", TMPDIR=tmp_path / "tmp")
    with serve(FAKED, tmp_path / "log", env=env) as server:
        assert not dead.exists()
        supervisor = psutil.Process(server.process.pid)
        image_id = _post(server).headers["x-image-id"]

        port = int(server.url.rpartition(":")[2])
        with serve(FAKED, tmp_path / "log-2", env=env, port=port, ready=False) as second:
            assert second.wait() != 0
        said = " ".join(second.output().split())
        assert f"port {port} of 127.0.0.1 is already in use by process {supervisor.pid} (" in said
        assert "Traceback" not in said
        assert "sdxl_store_writes_total" in httpx.get(f"{server.url}/metrics").text

        [worker] = supervisor.children()
        worker.kill()
        psutil.wait_procs([worker])
        server.wait_for("/readyz", 200)
        assert server.status(f"/images/{image_id}") == 200

        [worker] = supervisor.children()
        supervisor.kill()
        supervisor.wait()
        assert psutil.wait_procs([worker], timeout=20)[0] == [worker], "an orphan goes on serving"
        assert server.status("/livez") is None
        assert list(of_user.iterdir()) == []


def test_a_model_that_is_missing_is_named_with_its_remedy(tmp_path: Path) -> None:
    env = faked_environment(tmp_path / "home") | {"SDXL_MODEL": "mine:latest"}
    with serve("service:SDXLService", tmp_path / "log", env=env, ready=False) as server:
        assert server.wait() != 0
        output = " ".join(server.output().split())
    assert "there is no model mine:latest" in output
    assert "It holds stub:1." in output
    assert "`python -m export <folder or hub id> --name mine`" in output
    assert "Traceback" not in output


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    env = faked_environment(tmp_path / "home", SDXL_WORKERS=0)
    with serve("service:SDXLService", tmp_path / "log", env=env, ready=False) as server:
        assert server.wait() != 0
        assert "SDXL_WORKERS is '0'" in server.output()
        assert "Traceback" not in server.output()


def test_a_wrong_store_is_named_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    env = faked_environment(tmp_path / "home", SDXL_STORE=tmp_path / "file" / "pictures")
    with serve("service:SDXLService", tmp_path / "log", env=env, ready=False) as server:
        assert server.wait() != 0
        output = " ".join(server.output().split())
    assert f"SDXL_STORE is {tmp_path / 'file' / 'pictures'}, which cannot be used" in output
    assert "it has to be a folder that this user may write to" in output
    assert "Traceback" not in output
