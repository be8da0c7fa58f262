"""Sizes, ages and times as people write them: `50GB`, `1.5TB`, `30d`, `45m`.

Pydantic's ByteSize reads `50` and `50GB!` without complaint, and `1.GB` as one byte; humanize has
no way to read either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

from ups.errors import ConfigError

DECIMAL = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
BINARY = {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}
AGES = {"S": 1, "M": 60, "H": 3600, "D": 86400, "W": 7 * 86400}
SHOWN_AGES = ((86400, "d"), (3600, "h"), (60, "min"))


def parse_size(text: str) -> int:
    """Bytes: `50GB` is 50e9, `50GiB` is 50 · 2³⁰.

    Raises:
        ConfigError: not a number with a unit.
    """
    return int(_parse(text, DECIMAL | BINARY, "a size with a unit, such as 500MB, 50GB or 1.5TB"))


def parse_age(text: str) -> float:
    """Seconds.

    Raises:
        ConfigError: not a number with a unit.
    """
    return _parse(text, AGES, "an age with a unit, such as 45m, 12h or 30d")


def _parse(text: str, units: Mapping[str, int], expected: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", text)
    if match is None or match[2].upper() not in units:
        raise ConfigError(f"found {text!r}, expected {expected}")
    return float(match[1]) * units[match[2].upper()]


def format_size(num_bytes: int) -> str:
    """`3.2 GB`: three digits, decimal units."""
    unit = next((u for u in reversed(DECIMAL) if DECIMAL[u] <= num_bytes), "B")
    return f"{float(f'{num_bytes / DECIMAL[unit]:.3g}'):g} {unit}"


def format_age(seconds: float) -> str:
    """`3 d`, `5 h`, `12 min` or `40 s`, rounded down."""
    for length, unit in SHOWN_AGES:
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"


def format_time(at: float) -> str:
    """A Unix time, as `2026-11-23 22:57 UTC`: the same on every machine that shows it."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
