"""Files of plain web servers, asked for as boto3 asks a store: the bucket is `https://host`."""

from __future__ import annotations

import contextlib
import email.utils
import os
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

MOST_REDIRECTS = 10


def is_web(bucket_or_uri: str) -> bool:
    """Whether it is one of these."""
    return bucket_or_uri.startswith(("https://", "http://"))


def uri_of(bucket: str, key: str) -> str:
    """What an object is called in messages, and a file of a web server by its URL."""
    return f"{bucket}/{key}" if is_web(bucket) else f"s3://{bucket}/{key}"


def below(bucket: str, key: str) -> Path:
    """Where an object is staged, below the root of the data."""
    if is_web(bucket):
        return Path(urlsplit(bucket).netloc) / key.partition("?")[0]
    return Path(bucket) / key


def host_of(uri: str) -> str:
    """`https://host` of a URL."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}"


class WebClient:
    """What of boto3's client is needed to read; redirects are followed.

    Its answers and errors are those of botocore, so that whoever reads objects reads these.
    """

    def __init__(self, num_connections: int) -> None:
        self._num_connections = num_connections
        self._pools: dict[str | None, Any] = {}

    def head_object(self, *, Bucket: str, Key: str) -> dict[str, Any]:
        answer = self._ask("HEAD", Bucket, Key, {})
        answer.pop("Body").close()
        return answer

    def get_object(self, *, Bucket: str, Key: str, Range: str = "") -> dict[str, Any]:
        return self._ask("GET", Bucket, Key, {"Range": Range} if Range else {})

    def close(self) -> None:
        for pool in self._pools.values():
            pool.clear()

    def _ask(self, method: str, bucket: str, key: str, headers: dict[str, str]) -> dict[str, Any]:
        from botocore.exceptions import ClientError
        from botocore.response import StreamingBody
        from urllib3.util import Retry, Timeout

        response = self._pool(bucket).request(
            method,
            f"{bucket}/{key}",
            headers={"Accept-Encoding": "identity", "User-Agent": "ups-train", **headers},
            preload_content=False,
            retries=Retry(
                MOST_REDIRECTS, connect=0, read=0, status=0, other=0, raise_on_redirect=False
            ),
            timeout=Timeout(connect=10, read=60),
        )
        found = {name.lower(): value for name, value in response.headers.items()}
        metadata = {"HTTPStatusCode": response.status, "HTTPHeaders": found}
        if response.status not in (200, 206):
            response.close()
            error = {"Code": str(response.status), "Message": response.reason or ""}
            answered: Any = {"Error": error, "ResponseMetadata": metadata}
            raise ClientError(answered, method)
        length = found.get("content-length", "")
        whole: Any = length if length.isdecimal() else None
        body = StreamingBody(response, whole)
        answer: dict[str, Any] = {"ResponseMetadata": metadata, "Body": body}
        if length.isdecimal():
            answer["ContentLength"] = int(length)
        for name, header in (
            ("ETag", "etag"),
            ("ContentRange", "content-range"),
            ("ContentEncoding", "content-encoding"),
        ):
            if header in found:
                answer[name] = found[header]
        with contextlib.suppress(KeyError, ValueError):
            answer["LastModified"] = email.utils.parsedate_to_datetime(found["last-modified"])
        return answer

    def _pool(self, bucket: str) -> Any:
        """Connections, through the proxy that the environment names for this server, if any."""
        import urllib3

        parts, proxies = urlsplit(bucket), urllib.request.getproxies()
        proxy = proxies.get(parts.scheme)
        if proxy is not None and urllib.request.proxy_bypass(parts.netloc):
            proxy = None
        if proxy not in self._pools:
            options: dict[str, Any] = {"maxsize": self._num_connections}
            if trusted := os.environ.get("AWS_CA_BUNDLE"):
                options["ca_certs"] = trusted
            made = (
                urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)
            )
            made = self._pools.setdefault(proxy, made)
        return self._pools[proxy]
