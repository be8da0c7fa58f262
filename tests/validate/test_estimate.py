"""The startup's estimate from a history whose times can be scaled on paper."""

import pytest

from ups.config import load_config
from ups.machine import host
from ups.startup.judge.history import History
from ups.startup.measure.records import BenchmarkRecord, RunRecord
from ups.validate.estimate import validate_estimate
from ups.validate.sources import planned

COLD_S = {
    "queue": 0.25,
    "boot": 0.5,
    "download": 2.0,
    "warm-up": 1.0,
    "cache": 1.5,
    "load": 0.5,
    "first step": 0.25,
    "unaccounted": 0.0,
}
WARM_S = {**COLD_S, "download": 0.5, "cache": 0.5}
NUM = 256  # trajectories of the benchmark's training data, beside 16 that are scored


def run_of(scenario, phases, repeat=0):
    given = {"flow_run_id": "f", "triggered_at": 1.0, "ttfs_s": sum(phases.values())}
    return RunRecord(scenario=scenario, repeat=repeat, phases=phases, **given)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    return tmp_path / "benchmarks"


@pytest.fixture
def history(folder):
    """`history(id, **fields)`: a benchmark of this machine, cold three times and warm once."""

    def add(id="b1", **fields):
        cold = [run_of("cold", {**COLD_S, "boot": boot}, i) for i, boot in enumerate((0.5, 9, 0))]
        values = {
            "started_at": 100.0,
            "machine_id": host.identity(folder),
            "machine": {},
            "versions": {},
            "commit": "c",
            "settings": {"config": "benchmark", "num_trajectories": NUM},
            "runs": [*cold, run_of("warm", WARM_S)],
        }
        History(folder).save(BenchmarkRecord(id=id, **{**values, **fields}))

    return add


@pytest.fixture
def estimate(folder):
    """`estimate(num)`: the checks of a run with `num` training trajectories, nothing staged."""

    def check(num=NUM, *, is_local=False, is_cached=False, **overrides):
        counts = {"train": num, "val": 8, "test": 8}
        given = {"data.generate.num_trajectories": counts, "startup.price_per_hour": 3600.0}
        config = load_config("benchmark", {**given, **overrides})
        sources = planned(config)
        if is_local:
            data = config.data.model_copy(update={"sources": None})
            config = config.model_copy(update={"data": data})
        entries = {"burgers1d": is_cached}
        checks = validate_estimate(config, sources, entries=entries, folder=folder)
        return {check.name: check for check in checks}

    return check


def test_a_run_like_the_benchmarks_takes_as_long(history, estimate):
    history()
    found = estimate()
    assert found["to fetch"].figures["num_bytes"] == (NUM + 16) * 201 * 1024 * 4
    assert found["seconds"].figures == COLD_S  # the median boot
    assert found["startup"].figures["ttfs_s"] == pytest.approx(5.0)  # the warm-up is beside
    assert "by 3 `cold` runs of benchmark b1" in found["startup"].text
    assert "×" not in found["seconds"].text
    assert found["cost"].figures["cost_usd"] == pytest.approx(5.0)
    assert found["cost"].text == "$5.0000 for the startup, at $3600 an hour"


def test_what_grows_with_the_data_is_scaled_and_the_rest_is_not(history, estimate):
    history()
    num = 3 * (NUM + 16) - 16  # three times as many bytes
    found = estimate(num)["seconds"]
    assert found.text.endswith("(download for × 3, cache for × 3.1, load for × 3.1)")
    ratio = (num + 8) / (NUM + 8)  # test is not encoded
    scaled = {"download": 0.5 + 1.5 * 3, "cache": 0.5 + 1.0 * ratio, "load": 0.5 * ratio}
    assert found.figures == pytest.approx({**COLD_S, **scaled})
    # The load by bytes of latents: the benchmark's dim is 32.
    assert estimate(**{"latent.dim": 64})["seconds"].figures == {**COLD_S, "load": 1.0}


def test_a_run_that_finds_all_is_like_a_warm_one(history, estimate):
    history()
    found = estimate(is_local=True, is_cached=True)
    assert found["to fetch"].figures["num_bytes"] == 0
    assert found["startup"].figures["scenario"] == "warm"
    assert found["seconds"].figures["download"] == 0.5
    missing = estimate(is_local=True)["startup"].text
    assert "no benchmark of this machine has `changed-config` runs" in missing


def test_the_newest_benchmark_of_this_machine_counts_and_a_longer_warm_up_is_waited_for(
    history, estimate
):
    history("old", runs=[run_of("cold", {**COLD_S, "queue": 50.0})], started_at=1.0)
    history("new", runs=[run_of("cold", {**COLD_S, "warm-up": 10.0})], started_at=2.0)
    history("elsewhere", started_at=3.0, machine_id="another")
    history("empty", runs=[], started_at=4.0)
    found = estimate()["startup"].figures
    assert found["benchmark"] == "new"
    assert found["ttfs_s"] == pytest.approx(0.25 + 0.5 + 10.0 + 0.25)


def test_without_a_benchmark_of_this_machine_it_says_how_to_get_one(history, estimate, folder):
    assert estimate()["startup"].status == "skip"
    assert list(folder.iterdir()) == []  # no history is made to look into it
    history("elsewhere", machine_id="another")
    found = estimate()["startup"]
    assert found.text == "not checked: no benchmark of this machine yet: run `make benchmark`"


def test_neither_an_unknown_size_nor_a_benchmark_whose_config_is_gone_is_a_measure(
    history, estimate
):
    history()
    found = estimate(**{"data.generate": None})
    assert found["to fetch"].status == found["startup"].status == "skip"
    history("newer", started_at=200.0, settings={"config": "removed", "num_trajectories": 8})
    found = estimate()["startup"]
    assert found.status == "skip"
    assert "no config 'removed'" in found.text
