"""Manifests: the file beside the objects of a prefix that carries what no ETag does, SHA-256.

For `a/b/x.h5` it is `a/b/manifest.json`: `{"x.h5": {"sha256": "…", "bytes": 123, "blocks": …}}`.
Digests of blocks (`blocks`) came with version 2; an entry may lack them.
"""

from __future__ import annotations

import functools
import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ups.data.answers import version_of
from ups.data.blocks import read_blocks
from ups.data.manifest_notes import ManifestNotes
from ups.data.s3errors import StoreRefuses, answer
from ups.data.web import is_web, uri_of
from ups.errors import DataError, ObjectUnavailable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

logger = logging.getLogger(__name__)

Manifest = dict[str, dict[str, Any]]

_ONE_WRITER = threading.Lock()


class Manifests:
    """The manifests of a store; each is read once, whichever thread asks first.

    Args:
        client_of: takes a bucket.
        call: takes a URI and a call to make; tries again what can pass, explains what cannot.
        endpoint_of: a bucket, for messages.
    """

    def __init__(
        self,
        client_of: Callable[[str], S3Client],
        call: Callable[[str, Callable[[], Any]], Any],
        endpoint_of: Callable[[str], str],
    ) -> None:
        self._client_of, self._call, self._endpoint_of = client_of, call, endpoint_of
        self._read: dict[tuple[str, str], Manifest] = {}
        self._lock = threading.Lock()

    def entry(self, bucket: str, key: str, fresh: bool = False) -> dict[str, Any] | None:
        """What the manifest says about an object; None where it, or the manifest, is missing.

        Args:
            fresh: read it again.
        Returns: its `sha256` and `bytes`, and its `Blocks` or None.
        Raises:
            DataError: it is no manifest.
        """
        manifest_key, name = _locate(key)
        with self._lock:
            if fresh or (bucket, manifest_key) not in self._read:
                self._read[bucket, manifest_key] = self._fetch(bucket, manifest_key)
            entry = self._read[bucket, manifest_key].get(name)
        if entry is None or "blocks" not in entry:
            return entry and {**entry, "blocks": None}
        uri = uri_of(bucket, manifest_key)
        try:
            blocks = read_blocks(entry)
        except (ValueError, KeyError, TypeError) as error:
            raise _no_manifest(uri, error) from error
        if blocks is None:
            logger.warning(
                "%s: the blocks of %s are not of its SHA-256, which alone is compared", uri, name
            )
        return {**entry, "blocks": blocks}

    def record(self, bucket: str, entries: Mapping[str, dict[str, Any]]) -> None:
        """Set what the manifests say about objects, by their keys; see `manifest_notes`."""
        by_manifest: dict[str, Manifest] = {}
        for key, entry in entries.items():
            manifest_key, name = _locate(key)
            by_manifest.setdefault(manifest_key, {})[name] = _checked(entry)
        for manifest_key, own in by_manifest.items():
            with _ONE_WRITER:
                self._merge(bucket, manifest_key, own)

    def _merge(self, bucket: str, manifest_key: str, own: Manifest) -> None:
        notes = ManifestNotes(self._client_of(bucket), self._call, bucket, manifest_key)
        notes.leave(own)
        seen, found = set[str](), notes.listed()
        while not seen or found - seen:  # somebody came while this one was written
            manifest = self._fetch(bucket, manifest_key)
            manifest |= {name: _checked(entry) for name, entry in notes.entries(manifest).items()}
            # A line each, as blocks come last. json's own indentation takes ten times as long.
            in_order = {name: manifest[name] for name in sorted(manifest)}
            body = json.dumps(in_order).replace('}, "', '},\n "').encode()
            put = functools.partial(
                self._client_of(bucket).put_object, Bucket=bucket, Key=manifest_key, Body=body
            )
            self._call(uri_of(bucket, manifest_key), put)
            seen |= {notes.own, *found}
            found = notes.listed()
        notes.remove_old()
        with self._lock:
            self._read[bucket, manifest_key] = manifest

    def _fetch(self, bucket: str, manifest_key: str) -> Manifest:
        uri = uri_of(bucket, manifest_key)

        def get() -> bytes:
            found = self._client_of(bucket).get_object(Bucket=bucket, Key=manifest_key)
            body = found["Body"]
            try:
                version_of(found, uri, self._endpoint_of(bucket))
                return body.read()
            finally:
                body.close()

        try:
            manifest = json.loads(self._call(uri, get))
            return {name: _checked(entry) for name, entry in manifest.items()}
        except StoreRefuses:
            if is_web(bucket):  # a page in its place, as web servers send it
                return {}
            raise
        except ObjectUnavailable as error:
            if is_web(bucket):
                return {}
            # Without the right to list, AWS answers 403 for a key that is not there.
            if answer(error.__cause__)[1] == 403:
                logger.warning("%s may not be read; going on without SHA-256 to compare with", uri)
            elif answer(error.__cause__)[1] != 404:
                raise
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if is_web(bucket):  # another's file of that name
                return {}
            raise _no_manifest(uri, error) from error


def _no_manifest(uri: str, error: Exception) -> DataError:
    return DataError(
        f"{uri} is no manifest ({type(error).__name__}: {error}); expected "
        '{"name": {"sha256": "…", "bytes": …, "blocks": {…}}}, where blocks may be missing. '
        "Upload the objects anew, or delete it"
    )


def _checked(entry: dict[str, Any]) -> dict[str, Any]:
    """What is read of an entry; its blocks only once somebody asks for it."""
    checked: dict[str, Any] = {"sha256": str(entry["sha256"]).lower(), "bytes": int(entry["bytes"])}
    if "blocks" in entry:
        checked["blocks"] = entry["blocks"]
    return checked


def _locate(key: str) -> tuple[str, str]:
    """(key of the manifest, name in it)."""
    prefix, slash, name = key.rpartition("/")
    return f"{prefix}{slash}manifest.json", name
