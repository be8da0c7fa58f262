"""Addresses of objects, as people write them: `s3://bucket/key`, `s3://bucket/folder/`, a URL."""

from __future__ import annotations

from dataclasses import dataclass

from ups.config import WEB_SCHEMES, web_place
from ups.data.web import is_web, uri_of
from ups.errors import ConfigError

SCHEME = "s3://"


@dataclass(frozen=True, slots=True)
class Address:
    """An object, or a folder of them, where the key is empty or ends in a slash.

    The bucket of a file of a web server is `https://host`.
    """

    bucket: str
    key: str

    @property
    def is_folder(self) -> bool:
        return not self.key or self.key.endswith("/")

    @property
    def name(self) -> str:
        """What the object is called in its folder."""
        key = self.key.partition("?")[0] if is_web(self.bucket) else self.key
        return key.rpartition("/")[2]

    def __str__(self) -> str:
        return uri_of(self.bucket, self.key)


def is_address(text: str) -> bool:
    """Whether it names something elsewhere, and no local file."""
    return "://" in text


def parse_readable(text: str) -> Address:
    """An object, a folder of them, or a file of a web server.

    Raises:
        ConfigError: it is something else.
    """
    if not text.startswith(WEB_SCHEMES):
        return parse_address(text)
    try:
        return Address(*web_place(text))
    except ValueError as error:
        raise ConfigError(f"PLACE: {error}") from None


def parse_address(text: str) -> Address:
    """`s3://bucket/a/b.h5` → bucket and key.

    Raises:
        ConfigError: it is something else.
    """
    rest = text.removeprefix(SCHEME)
    bucket, _, key = rest.partition("/")
    if rest == text or not bucket or "@" in bucket:
        raise ConfigError(f"found {text}, expected s3://BUCKET/KEY, or s3://BUCKET/FOLDER/")
    if key.startswith("/") or ".." in key.split("/"):
        raise ConfigError(f"found {text}, expected a key without a leading / and without ..")
    return Address(bucket, key)
