"""A file behind an `https://` address.

`http://` is refused, in the address and in every redirect, because content can be changed on its
way. Addresses of this machine itself are excepted. Parts of an address that may be secret (a
password, the query) are sent to the server only; they appear in no message and no manifest.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from email.message import Message
from pathlib import PurePosixPath
from urllib.parse import unquote, urlsplit

import httpx

from export.errors import SourceError, UnsafeSourceError
from export.model import weights
from export.source.remote import Hash, Interrupted, RemoteFile, changed

LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_TIMEOUT = httpx.Timeout(60.0, connect=15.0)
_SHA256 = re.compile(r"^sha256=([0-9a-fA-F]{64})$")


class Web:
    """One file at `url`. A fragment `#sha256=…` is the hash that it must have."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.name = public(url)
        self._url = parts._replace(fragment="").geturl()
        self.file_name = ""  # as the server states it; set by `stat`
        self._expected = _fragment(parts.fragment, self.name)
        self._client = httpx.Client(
            timeout=_TIMEOUT, follow_redirects=True, headers={"Accept-Encoding": "identity"},
            event_hooks={"request": [self._refuse_plain]},
        )  # fmt: skip

    def close(self) -> None:
        self._client.close()

    def _refuse_plain(self, request: httpx.Request) -> None:
        if request.url.scheme != "https" and request.url.host not in LOOPBACK:
            raise UnsafeSourceError(
                self.name, f"a way over {request.url.scheme}://{request.url.host}, which anyone on "
                "it can change", "https:// all the way, or a copy on disk",
            )  # fmt: skip

    def stat(self, name: str) -> RemoteFile:
        """The present state of the file, under the name `name`."""
        try:
            return self._ask(name)
        except Interrupted as error:
            raise SourceError(
                self.name, f"no connection ({error})", "a server that can be reached"
            ) from None

    def _ask(self, name: str) -> RemoteFile:
        """Request the first bytes. HEAD would be refused by addresses that are signed for GET."""
        with self._get({"Range": f"bytes=0-{weights.MAGIC_BYTES - 1}"}) as response:
            if response.status_code not in (200, 206):
                raise SourceError(
                    self.name, f"the server's answer {response.status_code}",
                    "an address that can be read; where it needs a token, one in the address",
                )  # fmt: skip
            first = b""
            for chunk in response.iter_raw(weights.MAGIC_BYTES):
                first += chunk
                if len(first) >= weights.MAGIC_BYTES:
                    break
            kind = response.headers.get("Content-Type", "")
            weights.check_start(first, self.name, f" ({kind})" if kind else "")
            self.file_name = _file_name(response)
            version = _version(response.headers)
            return RemoteFile(
                name,
                self.name,
                _size(response),
                version,
                self._expected or _hash([*response.history, response]),
                response.status_code == 206 and version is not None,
            )

    def read(self, file: RemoteFile, offset: int) -> Generator[bytes]:
        """The content from `offset` on."""
        headers = {}
        if offset and file.version is not None:
            headers = {"Range": f"bytes={offset}-", "If-Range": file.version}
        with self._get(headers) as response:
            if response.status_code != (206 if offset else 200):
                if offset and response.status_code in (200, 412, 416):
                    raise changed(self.name)
                raise Interrupted(f"the server answers {response.status_code}")
            if _version(response.headers) != file.version or _size(response) not in (
                None, file.size
            ):  # fmt: skip
                raise changed(self.name)
            if offset and not response.headers.get("Content-Range", "").startswith(
                f"bytes {offset}-"
            ):
                raise Interrupted("the server sends another part than was asked for")
            yield from response.iter_raw()  # as they arrive, so that an interruption loses none

    @contextmanager
    def _get(self, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """The server's response. Errors of the transport name the reason, never the address."""
        try:
            with self._client.stream("GET", self._url, headers=headers) as response:
                yield response
        except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.TooManyRedirects) as error:
            raise SourceError(self.name, _reason(error), "an address of a file") from None
        except httpx.TransportError as error:
            raise Interrupted(_reason(error)) from None


def public(url: str) -> str:
    """`url` without password, query and fragment."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    try:
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        raise SourceError(f"{parts.scheme}://{host}", "a port that is no number", "a URL") from None
    return f"{parts.scheme}://{host}{port}{parts.path}"


def _reason(error: Exception) -> str:
    return type(error).__name__ if "://" in str(error) else str(error) or type(error).__name__


def _fragment(text: str, where: str) -> Hash | None:
    if not text:
        return None
    match = _SHA256.match(text)
    if match is None:
        raise SourceError(where, "a fragment that is no hash", "#sha256= and 64 digits, or none")
    return Hash("sha256", match[1].lower())


def _version(headers: httpx.Headers) -> str | None:
    """What `If-Range` takes (RFC 9110, 13.1.5): a strong ETag, or the date of the last change."""
    tag: str | None = headers.get("ETag")
    if tag and not tag.startswith("W/"):
        return tag
    date: str | None = headers.get("Last-Modified")
    return date


def _size(response: httpx.Response) -> int | None:
    """Size of the whole file."""
    if response.status_code == 206:
        total = response.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        total = response.headers.get("Content-Length", "")
    return int(total) if total.isdecimal() else None


def _hash(responses: Sequence[httpx.Response]) -> Hash | None:
    """A hash of the whole file that the server states, if there is one.

    The hub's `X-Linked-ETag`, which comes with its redirect; `Repr-Digest` (RFC 9530); S3's and
    Google's own headers.
    """
    for response in responses:
        linked = response.headers.get("X-Linked-ETag", "").strip('"')
        if re.fullmatch(r"[0-9a-f]{64}", linked):
            return Hash("sha256", linked)
    headers = responses[-1].headers
    candidates = [
        ("sha256", re.search(r"sha-256=:([^:]+):", headers.get("Repr-Digest", ""))),
        ("md5", re.search(r"md5=([^,\s]+)", headers.get("X-Goog-Hash", ""))),
    ]
    if headers.get("X-Amz-Checksum-Type", "FULL_OBJECT") == "FULL_OBJECT":
        sha256 = headers.get("X-Amz-Checksum-Sha256", "")
        candidates.append(("sha256", re.fullmatch(r"([^-]+)", sha256)))
    for algorithm, match in candidates:
        if match:
            try:
                return Hash(algorithm, base64.b64decode(match[1], validate=True).hex())
            except binascii.Error:
                continue
    return None


def _file_name(response: httpx.Response) -> str:
    message = Message()
    message["Content-Disposition"] = response.headers.get("Content-Disposition", "")
    name = message.get_filename() or unquote(response.url.path)
    return PurePosixPath(name.replace("\\", "/")).name
