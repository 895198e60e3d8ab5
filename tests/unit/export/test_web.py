"""One file by HTTP, from a real server on loopback that breaks, changes and lies."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from export.errors import SourceError, UnsafeSourceError
from export.source import remote, resolution, web
from export.source.downloads import Workspace
from tests.support import checkpoints
from tests.support.files import FileServer, self_signed

HEADER = b'{"x":{"dtype":"F32","shape":[500000],"data_offsets":[0,2000000]}}'
CONTENT = len(HEADER).to_bytes(8, "little") + HEADER + bytes(range(250)) * 8000
MIB = 1 << 20


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(remote, "PAUSE_S", 0.001)
    with FileServer(CONTENT).running() as running:
        yield running


def fetch(workspace: Workspace, url: str) -> Path:
    page = web.Web(url)
    try:
        return workspace.download(page, ["model.safetensors"]) / "model.safetensors"
    finally:
        page.close()


def test_whole(server: FileServer, workspace: Workspace) -> None:
    path = fetch(workspace, f"{server.url}/x.safetensors")
    assert path.read_bytes() == CONTENT


def test_again_costs_nothing(server: FileServer, workspace: Workspace) -> None:
    fetch(workspace, f"{server.url}/x.safetensors")
    with Workspace(workspace.scratch, workspace.settings) as later:
        workspace.__exit__()  # it holds the lock on the cache
        sent = server.sent
        fetch(later, f"{server.url}/x.safetensors")
        assert server.sent < sent + 100


def test_goes_on_where_the_connection_broke(server: FileServer, workspace: Workspace) -> None:
    server.breaks = [MIB, 300_000]
    path = fetch(workspace, f"{server.url}/x.safetensors")
    assert path.read_bytes() == CONTENT
    starts = [
        int(asked["range"][6:].split("-")[0]) for asked in server.asked if "if-range" in asked
    ]
    assert starts == sorted(starts)
    assert len(starts) == 2
    assert server.sent < len(CONTENT) + 100  # nothing came twice


def test_goes_on_in_a_later_run(server: FileServer, workspace: Workspace) -> None:
    server.breaks = [MIB] + [0] * 20
    with pytest.raises(SourceError, match=r"a connection that breaks(?s:.)*next run goes on"):
        fetch(workspace, f"{server.url}/x.safetensors?signature=1")
    server.breaks = []
    workspace.__exit__()
    with Workspace(workspace.scratch, workspace.settings) as later:
        path = fetch(later, f"{server.url}/x.safetensors?signature=2")
    assert path.read_bytes() == CONTENT
    assert server.sent < len(CONTENT) + 200


def test_a_server_without_ranges_starts_anew(server: FileServer, workspace: Workspace) -> None:
    server.ranges = False
    server.breaks = [1000, MIB]  # the first is the probe's
    assert fetch(workspace, f"{server.url}/x.safetensors").read_bytes() == CONTENT


def test_another_export_of_the_same_waits(server: FileServer, workspace: Workspace) -> None:
    """Two at once would write into one file; the second then finds it there."""
    fetch(workspace, f"{server.url}/x.safetensors")
    asked = len(server.asked)
    done = threading.Event()

    def second() -> None:
        with Workspace(workspace.scratch, workspace.settings) as other:
            fetch(other, f"{server.url}/x.safetensors")
        done.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not done.wait(0.3)
    assert len(server.asked) == asked
    workspace.__exit__()
    thread.join(30)
    assert done.is_set()


def test_nothing_known_of_the_version(server: FileServer, workspace: Workspace) -> None:
    server.etag = None
    server.breaks = [MIB]
    assert fetch(workspace, f"{server.url}/x.safetensors").read_bytes() == CONTENT


class TestChanges:
    """A file that is replaced while it is read is refused, and nothing of it is taken."""

    def refused(self, server: FileServer, workspace: Workspace) -> None:
        with pytest.raises(SourceError, match="another content than when"):
            fetch(workspace, f"{server.url}/x.safetensors")
        assert not list(workspace.settings.cache.rglob("model.safetensors"))

    def test_between_two_parts(
        self, server: FileServer, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server.breaks = [MIB]
        monkeypatch.setattr(
            remote.time, "sleep", lambda _: server.change(CONTENT[:-8] + b"12345678")
        )
        self.refused(server, workspace)

    def test_to_another_one_between_runs(self, server: FileServer, workspace: Workspace) -> None:
        server.breaks = [MIB] + [0] * 20
        with pytest.raises(SourceError):
            fetch(workspace, f"{server.url}/x.safetensors")
        server.breaks = []
        server.change(CONTENT[:-8] + b"12345678")
        workspace.__exit__()
        with Workspace(workspace.scratch, workspace.settings) as later:
            assert fetch(later, f"{server.url}/x").read_bytes() == server.content

    def test_after_the_last_byte(
        self, server: FileServer, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        check = remote._check

        def change_then_check(*given: Any) -> str:
            server.change(CONTENT[:-8] + b"12345678")
            return check(*given)

        monkeypatch.setattr(remote, "_check", change_then_check)
        with pytest.raises(SourceError, match="another content than when"):
            fetch(workspace, f"{server.url}/x.safetensors")


class TestHash:
    """Every way in which a server, or the user, says what the file must be."""

    RIGHT = hashlib.sha256(CONTENT)
    SHA256 = base64.b64encode(RIGHT.digest()).decode()
    MD5 = base64.b64encode(hashlib.md5(CONTENT).digest()).decode()

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("X-Linked-ETag", f'"{RIGHT.hexdigest()}"'),
            ("Repr-Digest", f"sha-256=:{SHA256}:"),
            ("X-Amz-Checksum-Sha256", SHA256),
            ("X-Goog-Hash", f"crc32c=AAAAAA==,md5={MD5}"),
        ],
    )
    def test_given_by_the_server(
        self, server: FileServer, workspace: Workspace, name: str, value: str
    ) -> None:
        server.headers = {name: value}
        fetch(workspace, f"{server.url}/right.safetensors")
        server.change(CONTENT[:-8] + b"12345678")
        with pytest.raises(SourceError, match=r"/wrong\.safetensors(?s:.)*instead of"):
            fetch(workspace, f"{server.url}/wrong.safetensors")
        wrong = [
            path for path in workspace.settings.cache.rglob("model.*") if path.suffix != ".json"
        ]
        assert len(wrong) == 1  # the right one

    def test_given_by_the_user(self, server: FileServer, workspace: Workspace) -> None:
        fetch(workspace, f"{server.url}/x#sha256={self.RIGHT.hexdigest()}")
        with pytest.raises(SourceError, match="sha256"):
            fetch(workspace, f"{server.url}/y#sha256={'0' * 64}")
        with pytest.raises(SourceError, match="a fragment that is no hash"):
            web.Web(f"{server.url}/y#sha256=12")

    def test_of_parts_is_not_one_of_the_file(
        self, server: FileServer, workspace: Workspace
    ) -> None:
        server.headers = {"X-Amz-Checksum-Sha256": "AAAA-2", "X-Amz-Checksum-Type": "COMPOSITE"}
        fetch(workspace, f"{server.url}/x")


class TestRefused:
    @pytest.mark.parametrize(
        "url", ["http://example.org/x.safetensors", "http://127.0.0.1.example.org/x.safetensors"]
    )
    def test_plain_http(self, workspace: Workspace, url: str) -> None:
        with pytest.raises(UnsafeSourceError, match="anyone on it can change"):
            fetch(workspace, url)

    def test_a_way_over_plain_http(self, server: FileServer, workspace: Workspace) -> None:
        server.redirect = "http://example.org/x.safetensors"
        with pytest.raises(UnsafeSourceError, match=r"http://example\.org"):
            fetch(workspace, f"{server.url}/x.safetensors")

    def test_redirects_without_end(self, server: FileServer, workspace: Workspace) -> None:
        server.redirect = "/again"
        with pytest.raises(SourceError, match="redirects"):
            fetch(workspace, f"{server.url}/x.safetensors")

    @pytest.mark.parametrize(
        ("start", "words"),
        [
            (b"<!DOCTYPE html>", r"no safetensors file \(text/html\)"),
            (b"PK\3\4\x14\0\0\0\x08\0", "a pickle or zip file"),
            (b"\x80\2}q\0(X\3\0\0\0", "a pickle or zip file"),
            (b"", "no safetensors file"),
        ],
    )
    def test_something_else(
        self, server: FileServer, workspace: Workspace, start: bytes, words: str
    ) -> None:
        server.change(start)
        server.headers = {"Content-Type": "text/html"}
        with pytest.raises(SourceError, match=words):
            fetch(workspace, f"{server.url}/x.safetensors")

    @pytest.mark.parametrize("status", [401, 404, 500])
    def test_an_answer_that_says_no(
        self, server: FileServer, workspace: Workspace, status: int
    ) -> None:
        server.status = status
        with pytest.raises(SourceError, match=f"the server's answer {status}"):
            fetch(workspace, f"{server.url}/x.safetensors")

    def test_nobody_there(self, workspace: Workspace) -> None:
        with pytest.raises(SourceError, match="no connection"):
            fetch(workspace, "http://127.0.0.1:9/x.safetensors")

    def test_no_disk(
        self, server: FileServer, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from shutil import _ntuple_diskusage  # type: ignore[attr-defined]

        monkeypatch.setattr("shutil.disk_usage", lambda _: _ntuple_diskusage(10, 10, 0))
        with pytest.raises(Exception, match=r"0\.0 GB free"):
            fetch(workspace, f"{server.url}/x.safetensors")


class TestHttps:
    """A certificate that nobody vouches for is refused; SSL_CERT_FILE names one who does."""

    @pytest.fixture
    def certificate(self, tmp_path: Path) -> Path:
        return self_signed(tmp_path / "certificate.pem")

    @pytest.fixture
    def server(self, certificate: Path) -> Iterator[FileServer]:
        with FileServer(CONTENT).running(certificate) as running:
            yield running

    def test_unknown(self, server: FileServer, workspace: Workspace) -> None:
        assert server.url.startswith("https://")
        with pytest.raises(SourceError, match=r"no connection \(.*certificate"):
            fetch(workspace, f"{server.url}/x.safetensors")

    def test_known(
        self, server: FileServer, workspace: Workspace, certificate: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert fetch(workspace, f"{server.url}/x.safetensors").read_bytes() == CONTENT


class TestSource:
    """Through `resolve`, with a checkpoint that is one."""

    @pytest.fixture
    def server(self, tmp_path: Path) -> Iterator[FileServer]:
        path = checkpoints.write(tmp_path / "x.safetensors", checkpoints.base())
        with FileServer(path.read_bytes()).running() as running:
            yield running

    def test_what_is_recorded(self, server: FileServer, workspace: Workspace) -> None:
        server.headers = {"Content-Disposition": 'attachment; filename="Fine Tune.safetensors"'}
        secret = server.url.replace("http://", "http://me:secret@")
        source = resolution.resolve(f"{secret}/api/models/7?token=secret", workspace)
        assert (source.kind, source.location) == ("url", f"{server.url}/api/models/7")
        assert (source.revision, source.name) == (server.etag, "Fine Tune")
        assert server.asked[0]["authorization"].startswith("Basic ")
        assert server.paths[0].endswith("?token=secret")

    def test_the_name_decides_first(self, server: FileServer, workspace: Workspace) -> None:
        server.headers = {"Content-Disposition": 'attachment; filename="../../x.ckpt"'}
        with pytest.raises(UnsafeSourceError, match="pickled checkpoint"):
            resolution.resolve(f"{server.url}/api/models/7", workspace)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://me:secret@example.org:8443/a/b.safetensors?token=secret#x",
         "https://example.org:8443/a/b.safetensors"),
        ("https://[::1]:80/a", "https://[::1]:80/a"),
        ("https://secret@example.org", "https://example.org"),
    ],
)  # fmt: skip
def test_public(url: str, shown: str) -> None:
    assert web.public(url) == shown
    assert resolution.printable(url) == shown
