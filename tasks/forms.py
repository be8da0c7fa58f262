"""Types of a flow's parameters, for the run form and for the server, which refuses others."""

from __future__ import annotations

from typing import Any


def or_none(kind: str) -> dict[str, Any]:
    """Have the server's refusal of a parameter that may be null name the type that is allowed.

    "'abc' is not of type 'integer', 'null'", where `anyOf` alone is answered by "'abc' is not valid
    under any of the given schemas". As a `type` of its own, the form would not draw the field.

    Args:
        kind: a type of JSON schema.
    Returns:
        A field's `json_schema_extra`.
    """
    return {"if": {}, "then": {"type": [kind, "null"]}}
