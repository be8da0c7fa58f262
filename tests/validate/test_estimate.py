"""The startup's estimate from a history whose times can be scaled on paper."""

import pytest

from ups.config import SPLITS, Parsed, load_config
from ups.startup.history import History
from ups.startup.records import BenchmarkRecord, RunRecord
from ups.telemetry import machine
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
    return RunRecord(
        scenario=scenario,
        repeat=repeat,
        flow_run_id="f",
        triggered_at=1.0,
        ttfs_s=sum(phases.values()),
        phases=phases,
    )


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    return tmp_path / "benchmarks"


@pytest.fixture
def history(folder):
    """`history(id, **fields)`: a benchmark of this machine, cold three times and warm once."""

    def add(id="b1", runs=None, **fields):
        values = {
            "started_at": 100.0,
            "machine_id": machine.identity(folder),
            "machine": {},
            "versions": {},
            "commit": "c",
            "settings": {"config": "benchmark", "num_trajectories": NUM},
        }
        record = BenchmarkRecord(id=id, **{**values, **fields})
        file = History(folder / "history.sqlite")
        file.begin(record)
        cold = [run_of("cold", {**COLD_S, "boot": boot}, i) for i, boot in enumerate((0.5, 9, 0))]
        for run in [*cold, run_of("warm", WARM_S)] if runs is None else runs:
            file.add_run(record.id, run)

    return add


@pytest.fixture
def smoke():
    """`smoke(num)`: the benchmark's config with `num` training trajectories, nothing staged."""

    def make(num, **overrides):
        counts = {"train": num, "val": 8, "test": 8}
        given = {"data.generate.num_trajectories": counts, "startup.price_per_hour": 3600.0}
        config = load_config("benchmark", {**given, **overrides})
        return Parsed("x.yaml", config), {split: planned(config, split) for split in SPLITS}

    return make


def estimate(parsed, sources, folder, is_there=False):
    checks = validate_estimate(parsed, sources, entries={"burgers1d": is_there}, folder=folder)
    return {check.name: check for check in checks}


def test_a_run_like_the_benchmarks_takes_as_long(history, smoke, folder):
    history()
    found = estimate(*smoke(NUM), folder)
    assert found["to fetch"].figures["num_bytes"] == (NUM + 16) * 201 * 1024 * 4
    assert found["seconds"].figures == COLD_S  # the median boot
    assert found["startup"].figures["ttfs_s"] == pytest.approx(5.0)  # the warm-up is beside
    assert "by 3 `cold` runs of benchmark b1" in found["startup"].text
    assert "×" not in found["seconds"].text
    assert found["cost"].figures["cost_usd"] == pytest.approx(5.0)
    assert found["cost"].text == "$5.0000 for the startup, at $3600 an hour"


def test_what_grows_with_the_data_is_scaled_and_the_rest_is_not(history, smoke, folder):
    history()
    num = 3 * (NUM + 16) - 16  # three times as many bytes
    found = estimate(*smoke(num), folder)["seconds"]
    seconds = found.figures
    assert found.text.endswith("(download for × 3, cache for × 3.1, load for × 3.1)")
    assert seconds["download"] == pytest.approx(0.5 + 1.5 * 3)
    ratio = (num + 8) / (NUM + 8)  # test is not encoded
    assert seconds["cache"] == pytest.approx(0.5 + 1.0 * ratio)
    assert seconds["load"] == pytest.approx(0.5 * ratio)
    fixed = ("queue", "boot", "warm-up", "first step")
    assert {p: seconds[p] for p in fixed} == {p: COLD_S[p] for p in fixed}


def test_the_load_is_scaled_by_bytes_of_latents(history, smoke, folder):
    history()
    seconds = estimate(*smoke(NUM, **{"latent.dim": 64}), folder)["seconds"].figures
    assert seconds["load"] == pytest.approx(1.0)  # the benchmark's dim is 32
    assert seconds["cache"] == COLD_S["cache"]


def test_a_warm_up_longer_than_all_beside_it_is_waited_for(history, smoke, folder):
    history(runs=[run_of("cold", {**COLD_S, "warm-up": 10.0})])
    found = estimate(*smoke(NUM), folder)
    assert found["startup"].figures["ttfs_s"] == pytest.approx(0.25 + 0.5 + 10.0 + 0.25)


def test_a_run_that_finds_all_is_like_a_warm_one(history, smoke, folder, on_disk):
    history()
    parsed, sources = smoke(NUM)
    local = {"sources": None}
    data = parsed.config.data.model_copy(update=local)
    staged = Parsed("x", parsed.config.model_copy(update={"data": data}))
    found = estimate(staged, sources, folder, is_there=True)
    assert found["to fetch"].figures["num_bytes"] == 0
    assert found["startup"].figures["scenario"] == "warm"
    assert found["seconds"].figures["download"] == 0.5
    missing = estimate(staged, sources, folder, is_there=False)
    assert "no benchmark of this machine has `changed-config` runs" in missing["startup"].text


def test_the_newest_benchmark_of_this_machine_counts(history, smoke, folder):
    history("old", [run_of("cold", {**COLD_S, "queue": 50.0})], started_at=1.0)
    history("new", started_at=2.0)
    history("elsewhere", started_at=3.0, machine_id="another")
    history("empty", [], started_at=4.0)
    assert estimate(*smoke(NUM), folder)["startup"].figures["benchmark"] == "new"


def test_without_a_benchmark_of_this_machine_it_says_how_to_get_one(history, smoke, folder):
    assert estimate(*smoke(NUM), folder)["startup"].status == "skip"
    assert list(folder.iterdir()) == []  # no history is made to look into it
    history("elsewhere", machine_id="another")
    found = estimate(*smoke(NUM), folder)["startup"]
    assert found.text == "not checked: no benchmark of this machine yet: run `make benchmark`"


def test_an_unknown_size_is_not_estimated(history, smoke, folder):
    history()
    parsed, sources = smoke(NUM, **{"data.generate": None})
    found = estimate(parsed, sources, folder)
    assert found["to fetch"].status == found["startup"].status == "skip"


def test_a_benchmark_whose_config_is_gone_is_no_measure(history, smoke, folder):
    history(settings={"config": "removed", "num_trajectories": 8})
    found = estimate(*smoke(NUM), folder)["startup"]
    assert found.status == "skip"
    assert "no config 'removed'" in found.text
