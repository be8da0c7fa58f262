"""A training step on the CPU beside processes that want its cores, by how long OpenMP spins."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from functools import partial

from speed.harness import Comparison, Sample, alternate, ours_first
from speed.measure import run_checked
from speed.settings import Settings
from speed.worker import PROJECT_DIR
from ups.machine.openmp import SPIN_COUNT

CONFIG, STEPS = "smoke", 40
NUM_BUSY = 2
TIMEOUT_S = 300
WAYS = {
    "bounded spin": {"GOMP_SPINCOUNT": SPIN_COUNT},
    "OpenMP's default": {},
    "no spin": {"OMP_WAIT_POLICY": "passive"},
}
VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
NOTES = [
    f"Beside busy processes: median of {STEPS} steps of `{CONFIG}` beside {NUM_BUSY} processes "
    "that count; idle ms: of as many before, in the same process. Asked for: at most 3.2 times the "
    "idle step, and nothing lost on an idle machine."
]


def run(settings: Settings) -> Iterator[Comparison]:
    runs = {name: partial(_sample, settings, env) for name, env in WAYS.items()}
    yield Comparison(
        phase=f"step of {CONFIG} beside {NUM_BUSY} busy processes",
        unit="ms",
        results=alternate(ours_first(runs), settings.repeats, warm_ups=0),
        notes=NOTES,
    )


def _sample(settings: Settings, env: dict[str, str]) -> Sample:
    spec = {
        "config": CONFIG,
        "compile": "off",
        "frames": settings.num_frames,
        "device": "cpu",
        "steps": STEPS,
        "beside": NUM_BUSY,
    }
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-m", "speed.first_step", json.dumps(spec)]
    said = run_checked(command, TIMEOUT_S, cwd=PROJECT_DIR, env={**inherited, **env})
    found = json.loads(said.splitlines()[-1])
    idle_ms, busy_ms = 1e3 * found["step_s"], 1e3 * found["beside_s"]
    return Sample(busy_ms, {"idle ms": idle_ms, "times": busy_ms / idle_ms})
