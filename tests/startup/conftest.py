"""Benchmarks of hand-made runs, whose medians, ratios and shares can be worked out on paper."""

from collections.abc import Callable

import pytest

from ups.runs.breakdown import Span, tabulate
from ups.startup.judge.history import JudgedBenchmark
from ups.startup.measure.records import RunRecord

STARTED_AT = 1_795_475_000.0
GAP_S = 0.25
WORDS = {"boot": "a process | starts", "download": "network: 420 MB"}
DOWNLOADS_S = {
    "legacy": (6.0, 9.0, 7.0),
    "cold": (2.0, 2.5, 2.25),
    "no-parallel_downloads": (4.0, 3.5, 3.75),
}


def with_idle(record: JudgedBenchmark, waited_s: float = 0.5) -> JudgedBenchmark:
    """The benchmark with runs that know their idle seconds: TTFS and `waited_s`."""
    runs = (
        run.model_copy(update={"idle_s": run.ttfs_s + waited_s, "waited_s": waited_s})
        for run in record.runs
    )
    return record.model_copy(update={"runs": tuple(runs)})


def _run(scenario: str, repeat: int, download_s: float) -> RunRecord:
    """2.75 s + downloads: boot, downloads beside a warm-up, cache, a gap, first step."""
    start = STARTED_AT + 100 * repeat
    stages = [("boot", 1.0), ("download", download_s), ("cache", 1.0), ("", GAP_S)]
    spans, at = [], start
    for phase, seconds in [*stages, ("first step", 0.5), ("train", 9.0)]:
        if phase:
            spans.append(Span(phase=phase, name=f"{phase} [x]", start=at, end=at + seconds))
        at += seconds
    if scenario != "legacy":
        spans.append(Span(phase="warm-up", name="warm-up", start=start + 1, end=start + 2.5))
    ttfs_s = 2.75 + download_s
    return RunRecord(
        scenario=scenario,
        repeat=repeat,
        flow_run_id=f"{scenario}/{repeat}",
        triggered_at=start,
        ttfs_s=ttfs_s,
        phases={p.phase: p.seconds for p in tabulate(spans, WORDS, start, start + ttfs_s)},
        bounds=WORDS,
        bounds_s={"download": 1.5},
        spans=tuple(spans),
    )


@pytest.fixture
def benchmark() -> Callable[..., JudgedBenchmark]:
    """`benchmark(downloads_s, id=…, settings=…)`: scenario → what its runs' downloads took."""

    def make(
        downloads_s: dict[str, tuple[float, ...]] | None = None, **changes: object
    ) -> JudgedBenchmark:
        chosen = DOWNLOADS_S if downloads_s is None else downloads_s
        fields = {
            "id": "b1",
            "started_at": STARTED_AT,
            "flow_run_id": "benchmark-run",
            "machine_id": "m1",
            "machine": {"processor": "AMD EPYC", "cores": 2, "GPU": None},
            "versions": {"torch": "2.13.0+cpu"},
            "commit": "2cf4672a1b2c-dirty",
            "settings": {"num_trajectories": 256},
            "runs": tuple(
                _run(name, repeat, seconds)
                for name, found in chosen.items()
                for repeat, seconds in enumerate(found)
            ),
        }
        return JudgedBenchmark.model_validate({**fields, **changes})

    return make
