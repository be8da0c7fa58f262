"""Notes beside a manifest, so that writers who upload at once do not lose each other's entries.

A manifest is read, changed and written back, and many stores have no way to refuse the second of
two who do that at once. So a writer first leaves its entries in a note of its own, below
`manifest.json.d/`; then it lists the notes, reads the manifest, and writes it with what all of them
say; then it lists them again, and begins anew where one has come. Whoever is the last to write has
seen the notes of all others: a note that he did not list was left later, and its writer is yet to
write. It holds in any store whose listing shows what was put before.

A note stays for an hour, far longer than anybody takes between reading and writing.
"""

from __future__ import annotations

import functools
import json
import logging
import time
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import xxhash

from ups.background import at_once
from ups.data.s3errors import StoreRefuses, answer, transport_errors
from ups.errors import ObjectUnavailable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

logger = logging.getLogger(__name__)

FOLDER = ".d/"  # after the manifest's key
LASTS = timedelta(hours=1)
MOST_REMOVED = 100  # by one writer
MOST_ASKED = 8
SEVERAL, SUFFIX = "several", ".json"

Entries = dict[str, dict[str, Any]]


class ManifestNotes:
    """The notes of one manifest, as one writer leaves and reads them."""

    def __init__(
        self,
        client: S3Client,
        call: Callable[[str, Callable[[], Any]], Any],
        bucket: str,
        manifest_key: str,
    ) -> None:
        self._client, self._call, self._bucket = client, call, bucket
        self._folder = f"{manifest_key}{FOLDER}"
        self._left_at: dict[str, datetime] = {}  # by key, as last listed
        self._read: dict[str, Entries] = {}
        self.own = ""

    def leave(self, own: Entries) -> None:
        """Put a note with these entries."""
        tag = SEVERAL
        if len(own) == 1:
            ((name, entry),) = own.items()
            tag = _tag(name, entry)
        self.own = f"{self._folder}{time.time_ns()}-{uuid.uuid4().hex}-{tag}{SUFFIX}"
        self._read[self.own] = own
        body = json.dumps(own).encode()
        put = functools.partial(
            self._client.put_object, Bucket=self._bucket, Key=self.own, Body=body
        )
        self._call(f"s3://{self._bucket}/{self.own}", put)

    def listed(self) -> set[str]:
        """The keys of the notes that are there now; none where they may not be listed."""

        def ask() -> dict[str, datetime]:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._folder
            )
            entries = (entry for page in pages for entry in page.get("Contents", ()))
            return {entry["Key"]: entry["LastModified"] for entry in entries}

        try:
            self._left_at = self._call(f"s3://{self._bucket}/{self._folder}", ask)
        except StoreRefuses:
            raise
        except ObjectUnavailable as error:
            logger.warning("%s; the manifest is right if nobody else uploads there now", error)
            self._left_at = {}
        return set(self._left_at)

    def entries(self, manifest: Entries) -> Entries:
        """What the listed notes say, the later ones over the earlier ones.

        Those of one entry that the manifest has are not read: a loop of uploads stays cheap.
        """
        known = {_tag(name, entry): {name: entry} for name, entry in manifest.items()}
        in_order = sorted(self._left_at, key=lambda key: (self._left_at[key], key))
        unread = []
        for key in in_order:
            if (told := known.get(key.rpartition("-")[2].removesuffix(SUFFIX))) is not None:
                self._read.setdefault(key, told)
            elif key not in self._read:
                unread.append(key)
        read = at_once(self._fetch, unread, MOST_ASKED, None, "the object store")
        self._read |= dict(zip(unread, read, strict=True))
        found: Entries = {}
        for key in in_order:
            found |= self._read[key]
        return found if self.own in self._left_at else found | self._read[self.own]

    def remove_old(self) -> None:
        """Remove notes that every manifest written since has taken up."""
        newest = max(self._left_at.values(), default=None)
        if newest is None:
            return
        old = [key for key, at in self._left_at.items() if newest - at > LASTS]
        for key in old[:MOST_REMOVED]:
            try:
                self._client.delete_object(Bucket=self._bucket, Key=key)
            except transport_errors() as error:  # no right to: they do no harm
                logger.info("s3://%s/%s stays: %s", self._bucket, key, type(error).__name__)
                return

    def _fetch(self, key: str) -> Entries:
        """What a note says; nothing where it was removed, or is none."""

        def get() -> bytes:
            body = self._client.get_object(Bucket=self._bucket, Key=key)["Body"]
            try:
                return body.read()
            finally:
                body.close()

        try:
            found = json.loads(self._call(f"s3://{self._bucket}/{key}", get))
            return {name: entry for name, entry in found.items() if {"sha256", "bytes"} <= {*entry}}
        except ObjectUnavailable as error:
            if answer(error.__cause__)[1] != 404:
                raise
        except (ValueError, AttributeError, TypeError):
            logger.warning("s3://%s/%s is no note of a manifest: left alone", self._bucket, key)
        return {}


def _tag(name: str, entry: dict[str, Any]) -> str:
    """Names an entry: a note that has it alone need not be read to know what it says."""
    return xxhash.xxh3_64_hexdigest(f"{name} {entry['sha256']} {entry['bytes']}".encode())
