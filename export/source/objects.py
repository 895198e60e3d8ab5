"""Objects in a store: `s3://` by s3fs, `gs://` by gcsfs, both through fsspec.

Endpoint and credentials of S3 come from what boto reads (`AWS_ENDPOINT_URL`, `AWS_ACCESS_KEY_ID`, a
profile, an instance's role) or from the variables that KServe uses (`S3_ENDPOINT`, `S3_USE_HTTPS`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

from export.errors import ExportError, SourceError
from export.model import weights
from export.source.remote import Hash, Interrupted, RemoteFile, changed
from sdxl_bento.config import ExportSettings

BLOCK = 16 << 20  # bytes of one request
SCHEMES = {"s3": "s3", "gs": "gcs"}  # scheme -> the extra of this package that it needs
_ADDRESS = re.compile(r"^(s3|gs)://[a-z0-9][a-z0-9._-]*(/[^\s?#]*)?$")
_MD5 = re.compile(r"^[0-9a-f]{32}$")


class Objects:
    """The objects at and below `url`, which names a bucket and a key, or a prefix of keys."""

    def __init__(self, url: str, settings: ExportSettings) -> None:
        if not _ADDRESS.match(url):
            scheme = url.partition(":")[0]
            raise SourceError(
                f"{scheme}://…", "no bucket and path", f"{scheme}://bucket/path, and keys in the "
                "environment",
            )  # fmt: skip
        self.name = url.rstrip("/")
        self._scheme, _, path = self.name.partition("://")
        self._path = path
        self._files = _filesystem(self._scheme, settings)

    def is_file(self) -> bool:
        """Whether there is an object with exactly this name."""
        with self._reported(self.name):
            return bool(self._files.isfile(self._path))

    def names(self) -> list[str]:
        """The objects below this one, by their paths relative to it."""
        with self._reported(self.name):
            paths = self._files.find(self._path + "/")
        names = [str(path)[len(self._path) + 1 :] for path in paths]
        if not names:
            raise SourceError(self.name, "nothing there", "a file or a folder of files")
        return [name for name in names if name and not name.endswith("/")]

    def parent(self) -> Objects:
        """The folder that this object is in."""
        folder = copy(self)
        folder.name = self.name.rpartition("/")[0]
        folder._path = self._path.rpartition("/")[0]
        return folder

    def check_start(self) -> None:
        """Raise unless this object begins as a safetensors file does."""
        with self._reported(self.name):
            first = self._files.cat_file(self._path, start=0, end=weights.MAGIC_BYTES)
        weights.check_start(first, self.name)

    def stat(self, name: str) -> RemoteFile:
        """The present state of the object `name` below this one."""
        path, where = f"{self._path}/{name}", f"{self.name}/{name}"
        with self._reported(where):
            if self._scheme == "s3":
                return _s3_file(name, where, self._head(path))
            return _gcs_file(name, where, self._files.info(path))

    def _head(self, path: str) -> dict[str, Any]:
        bucket, _, key = path.partition("/")
        head: dict[str, Any] = self._files.call_s3(
            "head_object", Bucket=bucket, Key=key, ChecksumMode="ENABLED"
        )
        return head

    def read(self, file: RemoteFile, offset: int) -> Generator[bytes]:
        """The content from `offset` on, in requests for ranges that S3 binds to one ETag."""
        path = f"{self._path}/{file.name}"
        try:
            with self._files.open(path, "rb", block_size=BLOCK, cache_type="none") as reader:
                if (reader.details.get("ETag") or reader.details.get("etag")) != file.version:
                    raise changed(file.where)
                reader.seek(offset)
                while chunk := reader.read(BLOCK):
                    yield chunk
        except SourceError:
            raise
        except (FileNotFoundError, PermissionError) as error:
            raise SourceError(file.where, _reason(error), "an object that can be read") from error
        except Exception as error:  # botocore's, aiohttp's and Google's errors
            if self._expired(error):
                raise changed(file.where) from None
            raise Interrupted(_reason(error)) from error

    def _expired(self, error: Exception) -> bool:
        """Whether s3fs reports that an object was replaced while it was read."""
        if self._scheme != "s3":
            return False
        from s3fs.utils import FileExpired

        return isinstance(error, FileExpired)

    @contextmanager
    def _reported(self, where: str) -> Iterator[None]:
        """Turn errors of the client libraries into `SourceError`."""
        try:
            yield
        except ExportError:
            raise
        except FileNotFoundError:
            raise SourceError(where, "no such object or bucket", "an existing one") from None
        except Exception as error:  # botocore's, aiohttp's and Google's errors
            raise SourceError(
                where, f"the store's answer: {_reason(error)}",
                "a store that can be reached, and the right to read it",
            ) from error  # fmt: skip


def _filesystem(scheme: str, settings: ExportSettings) -> Any:
    import fsspec

    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if scheme == "s3":
        options["anon"] = settings.s3_anonymous
        options["endpoint_url"] = settings.s3_endpoint_url
        if not settings.s3_verify_ssl:
            options["client_kwargs"] = {"verify": False}
        if settings.s3_virtual_bucket:
            options["config_kwargs"] = {"s3": {"addressing_style": "virtual"}}
    # Without credentials gcsfs warns at every call that it cannot determine the kind of bucket.
    logging.getLogger("gcsfs").setLevel(logging.ERROR)
    try:
        return fsspec.filesystem(scheme, **options)
    except ImportError:
        extra = SCHEMES[scheme]
        raise ExportError(
            f"{scheme}:// needs a package that is not installed: pip install 'sdxl-bento[{extra}]'"
        ) from None


def _s3_file(name: str, where: str, head: dict[str, Any]) -> RemoteFile:
    """An S3 object with its hash: SHA-256 if it was stored with one, otherwise the ETag.

    The ETag is an MD5, unless the object was uploaded in parts or is encrypted with a special key.
    """
    tag = str(head["ETag"])
    checksum = head.get("ChecksumSHA256", "")
    content_hash = None
    if checksum and "-" not in checksum and head.get("ChecksumType") != "COMPOSITE":
        content_hash = Hash.from_base64("sha256", checksum)
    elif _MD5.match(tag.strip('"')) and head.get("ServerSideEncryption") in (None, "AES256"):
        content_hash = Hash("md5", tag.strip('"'))
    return RemoteFile(name, where, int(head["ContentLength"]), tag, content_hash)


def _gcs_file(name: str, where: str, info: dict[str, Any]) -> RemoteFile:
    md5 = info.get("md5Hash")
    content_hash = Hash.from_base64("md5", md5) if md5 else None
    return RemoteFile(name, where, int(info["size"]), info.get("etag"), content_hash)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
