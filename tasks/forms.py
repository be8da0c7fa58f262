"""Types of a flow's parameters, for the run form and for the server, which refuses others."""

from __future__ import annotations

from typing import Any


def or_none(kind: str, **limits: Any) -> dict[str, Any]:
    """Have a refusal of a parameter that may be null say which type and which limits are allowed.

    "'abc' is not of type 'integer', 'null'" and "0 is less than the minimum of 1", where of `anyOf`
    alone a server says "not valid under any of the given schemas". A plain `type` beside it would
    keep the form from drawing the field; this the form leaves to the server.

    Args:
        kind: a type of JSON schema.
        limits: its own words, such as `minimum`; null passes them.
    Returns:
        A field's `json_schema_extra`.
    """
    return {"if": {}, "then": {"type": [kind, "null"], **limits}}
