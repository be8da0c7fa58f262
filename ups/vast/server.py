"""The address of the Prefect server: checked before anything is paid for, and how to reach it."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

PORTS = {"http": 80, "https": 443}


def check_url(url: str) -> None:
    """
    Raises:
        ValueError: it holds a login, or is no address that a worker could ask.
    """
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ValueError("holds a login: send PREFECT_API_AUTH_STRING with `setup-env`")
    if parts.scheme not in PORTS or not parts.hostname:
        raise ValueError("expected an address such as https://prefect.example.org/api")
    if parts.port == 0:  # a larger one than there are, urlsplit refuses itself
        raise ValueError("Port out of range 1-65535")


def tunnel(url: str) -> str | None:
    """The ssh options that bring a server of this machine to another; None if it is elsewhere.

    Args:
        url: as `check_url` lets it pass.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or PORTS[parts.scheme]
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return None
    if not address.is_loopback:
        return None
    # sshd listens on the loopback of both families; quoted, since brackets are a shell's pattern.
    bracketed = f"'{port}:[{address}]:{port}'"
    return f"-N -R {f'{port}:{address}:{port}' if address.version == 4 else bracketed}"
