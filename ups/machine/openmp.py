"""How long torch's threads on the CPU spin for their next piece of work before they sleep."""

from __future__ import annotations

from collections.abc import MutableMapping

SPIN_COUNT = "1000"


def bound_spinning(env: MutableMapping[str, str]) -> None:
    """Have idle threads of OpenMP sleep soon, where the environment says nothing about it.

    By default they spin for milliseconds, and take the cores from those they wait for where other
    processes want these, too: a step of `smoke`, 9 ms on 2 idle cores with any of these, took 97 ms
    beside 8 busy processes with this count, 148 with 10,000, 602 with 100,000, 143 by default.
    OpenMP reads the environment once, when torch is imported.
    """
    if "OMP_WAIT_POLICY" not in env:
        env.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
