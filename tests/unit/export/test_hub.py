"""The hub through a stub of its HTTP interface."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote

import pytest

from export.embedded import WEIGHTS
from export.errors import SourceError, UnsafeSourceError
from export.source import vocabulary
from export.source.hub import Address
from tests.support import checkpoints

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as downloads from `repositories` need. Each has one commit."""

    repositories: ClassVar[dict[str, dict[str, bytes]]] = {}
    asked: ClassVar[list[str]] = []
    tokens: ClassVar[set[str | None]] = set()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.tokens.add(self.headers.get("authorization"))
        path = unquote(self.path.partition("?")[0])
        found = re.match(r"/(?:api/models/)?([^/]+/[^/]+)", path)
        files = self.repositories.get(found[1]) if found else None
        if found is None or files is None:
            return self.missing()
        rest = path[found.end() :]
        if path.startswith("/api/"):
            siblings = [{"rfilename": name} for name in files]
            info = {"id": found[1], "sha": COMMIT, "siblings": siblings}
            return self.answer(json.dumps(tree(files) if "/tree/" in rest else info).encode())
        file = re.match(rf"/resolve/(?:{COMMIT}|main|v2)/(.+)", rest)
        if file is None or file[1] not in files:
            return self.missing()
        self.asked.append(file[1])
        return self.answer(files[file[1]])

    def missing(self) -> None:
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

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


def tree(files: dict[str, bytes]) -> list[dict[str, Any]]:
    return [
        {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
        for name, data in files.items()
    ]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded base model in one file."""
    path = tmp_path_factory.mktemp("hub") / "Fine Tune.safetensors"
    return checkpoints.write(path, checkpoints.base())


@pytest.fixture
def hub(checkpoint: Path) -> Iterator[str]:
    extra = {"unet/evil.py": b"raise SystemExit", "unet/diffusion_pytorch_model.bin": b"x"}
    content = checkpoint.read_bytes()
    Hub.repositories = {
        "shapes/base": files_of(WEIGHTS / "base") | extra,
        "shapes/tune": {"README.md": b"x", checkpoint.name: content},
        "shapes/tunes": {"v1.safetensors": content, "v2.safetensors": content},
        vocabulary.REPOSITORY: files_of(WEIGHTS / "base"),
    }
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
import json
import sys
from export.errors import ExportError
from export.model.inspection import read_pipeline
from export.source.downloads import Workspace
from export.source.resolution import SourceRequest, resolve, settings
from pathlib import Path
for number, (name, config) in enumerate(json.loads(sys.argv[1])):
    try:
        scratch = Path(sys.argv[2]) / str(number)
        scratch.mkdir(parents=True, exist_ok=True)
        workspace = Workspace(scratch, settings())
        source = resolve(name, workspace, SourceRequest(config=config))
        read_pipeline(source.folder, "base", None)
        print(source.kind, source.location, source.revision)
    except ExportError as error:
        print(type(error).__name__, *str(error).split())
"""


def ask(
    endpoint: str, cache: Path, *sources: str | tuple[str, str], **environment: str
) -> list[str]:
    """What each source, or source and config, has led to.

    In a process of its own: the hub's client reads its settings when it is imported.
    """
    pairs = [(item, None) if isinstance(item, str) else item for item in sources]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(pairs), tempfile.mkdtemp(dir=cache)],
        capture_output=True, text=True, check=True, timeout=120,
        cwd=WEIGHTS.parents[2],
        env={"PATH": "", "HF_ENDPOINT": endpoint, "HF_HOME": str(cache), "NO_PROXY": "*",
             "HF_HUB_DISABLE_XET": "1", "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    return done.stdout.splitlines()


def test_hub(hub: str, tmp_path: Path) -> None:
    assert ask(hub, tmp_path, "shapes/base") == [f"hub shapes/base {COMMIT}"]
    assert "unet/diffusion_pytorch_model.safetensors" in Hub.asked
    assert not [name for name in Hub.asked if name.endswith((".py", ".bin"))]
    assert Hub.tokens == {None}
    # Again without the hub: from the cache.
    offline = ask("http://127.0.0.1:9", tmp_path, "shapes/base", HF_HUB_OFFLINE="1")
    assert offline == [f"hub shapes/base {COMMIT}"]
    # And not if a file in the cache is no longer the one that the hub has.
    (weights,) = tmp_path.rglob("snapshots/*/unet/*.safetensors")
    blob = weights.resolve()
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    (answer,) = ask("http://127.0.0.1:9", tmp_path, "shapes/base", HF_HUB_OFFLINE="1")
    assert answer.startswith(f"SourceError {blob}")
    assert "delete this one" in answer


def test_hub_token_comes_from_the_environment(hub: str, tmp_path: Path) -> None:
    base, none = ask(hub, tmp_path, "shapes/base", "shapes/none", HF_TOKEN="secret")
    assert base.startswith("hub shapes/base")
    assert "Bearer secret" in Hub.tokens
    assert "the hub says" in none


def test_hub_out_of_reach(tmp_path: Path) -> None:
    (answer,) = ask("http://127.0.0.1:9", tmp_path, "shapes/base")
    assert answer.startswith("SourceError shapes/base")
    assert "HF_TOKEN" in answer
    (answer,) = ask("http://127.0.0.1:9", tmp_path, "shapes/base", HF_HUB_OFFLINE="1")
    assert "SourceError" in answer


def test_hub_with_checkpoints(hub: str, tmp_path: Path, checkpoint: Path, base: Any) -> None:
    """A repository of one, of two, and what a checkpoint on disk needs from the hub."""
    for path in base.path.glob("tokenizer*/*"):
        if path.name in ("vocab.json", "merges.txt", "tokenizer.json"):
            path.unlink()
    one, several, named, bare, configured = ask(
        hub, tmp_path, "hf://shapes/tune:v2", "shapes/tunes", "hf://shapes/tunes/v2.safetensors",
        (str(checkpoint), str(base.path)), (str(checkpoint), "hf://shapes/base"),
    )  # fmt: skip
    assert one == f"hub shapes/tune {COMMIT}"
    assert "2 checkpoints (v1.safetensors, v2.safetensors)" in several
    assert named == f"hub shapes/tunes/v2.safetensors {COMMIT}"
    assert bare == configured == "file Fine Tune.safetensors None"
    asked = set(Hub.asked)
    assert {"Fine Tune.safetensors", "v2.safetensors", "tokenizer/vocab.json"} <= asked
    assert "v1.safetensors" not in asked
    assert not [name for name in asked if name.startswith("unet/diff")]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("a/b", Address("a/b")),
        ("a/b:v1", Address("a/b", None, "v1")),
        ("a/b:refs/pr/1", Address("a/b", None, "refs/pr/1")),
        ("a/b/c d.safetensors", Address("a/b", "c d.safetensors")),
        ("a/b/c/d.safetensors:main", Address("a/b", "c/d.safetensors", "main")),
    ],
)
def test_address(text: str, address: Address) -> None:
    assert Address.parse(text) == address


@pytest.mark.parametrize("text", ["a", "a/b/c", "a/../b", "a/b/../c.safetensors", "/a/b", "a/b:"])
def test_no_address(text: str) -> None:
    with pytest.raises(SourceError):
        Address.parse(text)


def test_address_of_a_pickle() -> None:
    with pytest.raises(UnsafeSourceError, match="pickled"):
        Address.parse("a/b/c.ckpt")


def test_two_revisions() -> None:
    assert Address.parse("a/b:v1", "v1").revision == "v1"
    assert Address.parse("a/b", "v1").revision == "v1"
    with pytest.raises(SourceError, match="--revision v2 too"):
        Address.parse("a/b:v1", "v2")
