"""Addresses of files that lie on web servers, as the config and the commands take them."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

WEB_SCHEMES = ("https://", "http://", "hf:")
SECRETS = ("signature", "token", "credential", "password", "key=", "sig=")  # in a URL's query
HUGGING_FACE = re.compile(r"hf://datasets/([^/@]+/[^/@]+)(?:@([^/]+))?/([^/].*)")


def web_place(url: str) -> tuple[str, str]:
    """`https://host` and the rest; of a data set on Hugging Face, those of its web server.

    Raises:
        ValueError: it is no public address of a file.
    """
    if url.startswith("hf:") and not HUGGING_FACE.fullmatch(url):
        raise ValueError(f"found {url!r}, expected hf://datasets/OWNER/NAME/path/of/a/file")
    address = _on_the_web(url)
    parts = urlsplit(address)
    if parts.username is not None or any(word in parts.query.lower() for word in SECRETS):
        raise ValueError("holds credentials, which would be logged: expected a public address")
    is_file = parts.path.strip("/") and not parts.path.endswith("/")
    if parts.scheme not in ("https", "http") or not parts.netloc or not is_file:
        raise ValueError(f"found {url!r}, expected https://host/path/of/a/file, or hf://…")
    if ".." in parts.path.split("/") or parts.fragment:
        raise ValueError(f"found {url!r}, expected an address without .. and without #")
    scheme, _, rest = address.partition("://")
    host, _, key = rest.partition("/")
    return f"{scheme}://{host}", key


def _on_the_web(url: str) -> str:
    """Where a file of a data set on Hugging Face lies; any other address as it is."""
    if not (found := HUGGING_FACE.fullmatch(url)):
        return url
    host = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    return f"{host.rstrip('/')}/datasets/{found[1]}/resolve/{found[2] or 'main'}/{found[3]}"
