"""How long torch's threads on the CPU spin for their next piece of work before they sleep."""

from __future__ import annotations

from collections.abc import MutableMapping

SPIN_COUNT = "10000"


def bound_spinning(env: MutableMapping[str, str]) -> None:
    """Have idle threads of OpenMP sleep soon, where the environment says nothing about it.

    By default they spin for milliseconds, and take the cores from those they wait for where other
    processes want these, too. OpenMP reads the environment once, when torch is imported.

    A step of `smoke` on 2 cores, idle, beside 2 and beside 8 busy processes, in ms: with this count
    9.7, 31, 148; with 1,000 10.4, 24, 97, but in calm moments a quarter longer than by default;
    with 100,000 beside 8 602; by default 10.3, 24, 143. `--sections busy` measures it.
    """
    if "OMP_WAIT_POLICY" not in env:
        env.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
