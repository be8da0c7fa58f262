"""How long torch's threads on the CPU spin for their next piece of work before they sleep."""

from __future__ import annotations

from collections.abc import MutableMapping

SPIN_COUNT = "10000"


def bound_spinning(env: MutableMapping[str, str]) -> None:
    """Have idle threads of OpenMP sleep soon, where the environment says nothing about it.

    By default they spin for milliseconds, and take the cores from those they wait for where other
    processes want these, too. OpenMP reads the environment once, when torch is imported.
    """
    if "OMP_WAIT_POLICY" not in env:
        env.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
