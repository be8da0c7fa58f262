"""List objects of a bucket that are known by name, many at a time."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from ups.data.manifest_notes import FOLDER
from ups.data.s3errors import answer
from ups.errors import ObjectUnavailable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PER_PAGE = 100  # of the objects, for each page of a thousand that is read to find them


def missing(
    client: S3Client,
    call: Callable[[str, Callable[[], Any]], Any],
    bucket: str,
    key: str,
    endpoint: str,
) -> ObjectUnavailable:
    """What a 404 means: it does not say whether the bucket or the key is missing; a listing does.

    Args:
        call: takes a URI and a call to make; tries again what can pass, explains what cannot.
    """
    uri, prefix = f"s3://{bucket}/{key}", key[: key.rfind("/") + 1]
    try:
        listing = call(uri, lambda: list_some(client, bucket, prefix))
    except ObjectUnavailable as error:
        if answer(error.__cause__)[0] == "NoSuchBucket":
            return error
        found = "a bucket that may not be listed"
    else:
        found = ", ".join(listing) or "nothing"
    return ObjectUnavailable(
        f"{uri}: no such key at {endpoint}; found {found}. Upload it, or correct data.sources"
    )


def list_objects(client: S3Client, bucket: str, keys: Collection[str]) -> dict[str, Any]:
    """What a listing says of these objects, by their keys; raises what boto3 raises.

    Where many others stand between them, not all are found.
    """
    found: dict[str, Any] = {}
    prefix = os.path.commonprefix([*keys])  # noqa: RUF071 (an S3 prefix may end within a name)
    list_pages = client.get_paginator("list_objects_v2").paginate
    pages = list_pages(Bucket=bucket, Prefix=prefix, Delimiter="/")
    for page in itertools.islice(pages, 1 + len(keys) // PER_PAGE):
        found |= {entry["Key"]: entry for entry in page.get("Contents", ()) if entry["Key"] in keys}
        if len(found) == len(keys):
            break
    return found


def list_some(client: S3Client, bucket: str, prefix: str) -> list[str]:
    """Some keys and folders that begin so, without the notes of manifests."""
    found = client.list_objects_v2(Bucket=bucket, Prefix=prefix, Delimiter="/", MaxKeys=6)
    folders = [entry["Prefix"] for entry in found.get("CommonPrefixes", ())]
    keys = [entry["Key"] for entry in found.get("Contents", ())]
    return [name for name in (*keys, *folders) if not name.endswith(f"manifest.json{FOLDER}")]


def list_below(client: S3Client, bucket: str, prefix: str) -> dict[str, int]:
    """Keys that begin so, and the sizes of their objects; raises what boto3 raises."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", ())}
