"""An S3 server (moto's) on loopback, and a bucket in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret"}


@contextmanager
def s3_server() -> Iterator[str]:
    """The URL of a running server."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@cache  # a client takes boto half a second
def _client(url: str) -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=url, region_name="us-east-1", **KEYS)


@dataclass(frozen=True)
class Bucket:
    """Puts objects, as any client of S3 would."""

    client: Any
    name: str

    @classmethod
    def empty(cls, url: str, name: str) -> Bucket:
        client = _client(url)
        client.create_bucket(Bucket=name)
        bucket = cls(client, name)
        for item in client.list_objects_v2(Bucket=name).get("Contents", []):
            bucket.delete(item["Key"])
        return bucket

    def put(self, key: str, content: bytes, **options: Any) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=content, **options)

    def put_folder(self, prefix: str, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())

    def put_in_parts(self, key: str, parts: Sequence[bytes]) -> None:
        target = {"Bucket": self.name, "Key": key}
        upload = self.client.create_multipart_upload(**target)["UploadId"]
        done = [
            {
                "PartNumber": number,
                "ETag": self.client.upload_part(
                    **target, UploadId=upload, PartNumber=number, Body=part
                )["ETag"],
            }
            for number, part in enumerate(parts, 1)
        ]
        self.client.complete_multipart_upload(
            **target, UploadId=upload, MultipartUpload={"Parts": done}
        )

    def delete(self, key: str) -> None:
        self.client.delete_object(Bucket=self.name, Key=key)
