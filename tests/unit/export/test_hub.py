"""The hub through a stub of its HTTP interface."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from export.embedded import WEIGHTS

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download of `shapes/base` needs."""

    asked: ClassVar[list[str]] = []
    tokens: ClassVar[set[str | None]] = set()

    def files(self) -> dict[str, bytes]:
        root = WEIGHTS / "base"
        found = {p.relative_to(root).as_posix(): p for p in root.rglob("*") if p.is_file()}
        extra = {"unet/evil.py": b"raise SystemExit", "unet/diffusion_pytorch_model.bin": b"x"}
        return {name: path.read_bytes() for name, path in found.items()} | extra

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.tokens.add(self.headers.get("authorization"))
        prefix = f"/shapes/base/resolve/{COMMIT}/"
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/shapes/base"):
            siblings = [{"rfilename": name} for name in self.files()]
            body = {"id": "shapes/base", "sha": COMMIT, "siblings": siblings}
            if "/tree/" in path:
                self.answer(json.dumps(self.tree()).encode())
            else:
                self.answer(json.dumps(body).encode())
        elif path.startswith(prefix) and path.removeprefix(prefix) in self.files():
            name = path.removeprefix(prefix)
            self.asked.append(name)
            self.answer(self.files()[name])
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def tree(self) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for name, data in self.files().items()
        ]

    def answer(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet."""


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked.clear()
    Hub.tokens.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


SCRIPT = """
import sys
from export.errors import ExportError
from export.inspection import read_pipeline
from export.downloads import Workspace
from export.sources import Wanted, resolve, settings
from pathlib import Path
try:
    workspace = Workspace(Path(sys.argv[2]), settings())
    source = resolve(sys.argv[1], workspace, Wanted(config=(sys.argv[3:] or [None])[0]))
    read_pipeline(source.folder, "base", None)
    print(source.kind, source.location, source.revision)
except ExportError as error:
    print(type(error).__name__, error)
"""


def ask(endpoint: str, cache: Path, name: str, *config: str, **environment: str) -> str:
    """In a process of its own: the hub's client reads its settings when it is imported."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, str(cache), *config],
        capture_output=True, text=True, check=True, timeout=120,
        cwd=WEIGHTS.parents[2],
        env={"PATH": "", "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "NO_PROXY": "*",
             "HF_HUB_DISABLE_XET": "1", **environment},
    )  # fmt: skip
    return done.stdout.strip()


def test_hub(hub: str, tmp_path: Path) -> None:
    assert ask(hub, tmp_path, "shapes/base") == f"hub shapes/base {COMMIT}"
    assert "unet/diffusion_pytorch_model.safetensors" in Hub.asked
    assert not [name for name in Hub.asked if name.endswith((".py", ".bin"))]
    assert Hub.tokens == {None}
    # Again without the hub: from the cache.
    offline = ask("http://127.0.0.1:9", tmp_path, "shapes/base", HF_HUB_OFFLINE="1")
    assert offline == f"hub shapes/base {COMMIT}"


def test_hub_token_comes_from_the_environment(hub: str, tmp_path: Path) -> None:
    ask(hub, tmp_path, "shapes/base", HF_TOKEN="secret")
    assert "Bearer secret" in Hub.tokens


def test_hub_has_no_such_model(hub: str, tmp_path: Path) -> None:
    assert "the hub says" in ask(hub, tmp_path, "shapes/none")


def test_hub_out_of_reach(tmp_path: Path) -> None:
    answer = ask("http://127.0.0.1:9", tmp_path, "shapes/base")
    assert answer.startswith("SourceError shapes/base")
    assert "HF_TOKEN" in answer
    assert "SourceError" in ask("http://127.0.0.1:9", tmp_path, "shapes/base", HF_HUB_OFFLINE="1")
