"""The config itself: its schema, and the rules that its fields have to fulfil together."""

from __future__ import annotations

from ups.config import Parsed
from ups.validate.check import Check, Checks


def validate_config(parsed: Parsed) -> list[Check]:
    """A fault for each line of what is wrong with it."""
    checks = Checks("config")
    for fault in parsed.faults:
        key, _, text = fault.partition(": ")
        checks.fault(key, text)
    if not parsed.faults:
        checks.ok("schema", f"{parsed.where}: keys, types and limits")
        checks.ok("rules", "the fields agree with each other")
    if parsed.replaced:
        checks.skip(
            "faulty values",
            f"{', '.join(parsed.replaced)}; what follows takes the defaults in their place",
        )
    return checks
