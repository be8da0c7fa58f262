"""A benchmark's record says what its times depend on, and beforehand how long it will take."""

from datetime import UTC, datetime

import pytest

from ups.config import Latent, RunConfig, Training, load_config
from ups.machine import page_cache
from ups.startup.measure.records import config_digest, estimate_duration, new_record


class LaterTraining(Training):
    added: int = 3


class LaterConfig(RunConfig):
    """As after a change of the code that adds a field, and a section, with defaults."""

    training: LaterTraining = LaterTraining()
    section: Latent = Latent()


def later(**training):
    tree = load_config("benchmark").model_dump()
    return LaterConfig.model_validate({**tree, "training": {**tree["training"], **training}})


def test_a_field_that_is_added_with_its_default_leaves_the_history_alone():
    assert config_digest(later()) == config_digest(load_config("benchmark"))
    assert config_digest(later(added=4)) != config_digest(later())


WITHOUT_EFFECT = (
    {"name": "other"},
    {"runs_dir": "elsewhere"},
    {"logging.wandb.enabled": True},
    {"logging.tensorboard.enabled": True},
    {"startup.price_per_hour": 3.5},
    {"checkpoint.every_epochs": 7},
    {"data.root": "elsewhere"},
    {"training.latent_cache_dir": "elsewhere"},
    {"training.pairs_per_step": 160},  # as it is
    {"operator.token_kernel": 3},  # a default that is written out
)
WITH_EFFECT = (
    {"training.pairs_per_step": 9},
    {"latent.dim": 16},
    {"operator.hidden_dim": 128},
    {"features.warm_up": False},
    {"encoder.fit_trajectories": 8},
    {"stages.operator.max_steps": 4},
    {"data.generate.nu": 0.1},
)


@pytest.mark.parametrize("override", [*WITHOUT_EFFECT, *WITH_EFFECT])
def test_only_what_times_depend_on_starts_another_history(override):
    is_another = config_digest(load_config("benchmark", override)) != config_digest(
        load_config("benchmark")
    )
    assert is_another == (override in WITH_EFFECT)


def test_the_settings_tell_benchmarks_apart_that_cannot_be_compared(tmp_path):
    few, many = (new_record("benchmark", num, "kept", tmp_path, None) for num in (64, 128))
    assert few.machine_id == many.machine_id
    assert few.settings != many.settings
    assert few.id != many.id
    assert {"torch", "prefect", "Python"} <= few.versions.keys()
    assert f"{datetime.fromtimestamp(few.started_at, UTC):%Y%m%d-%H%M}" in few.id
    assert few.machine["cores"] >= 1


def test_ways_of_dropping_the_page_cache_share_no_history(tmp_path, monkeypatch):
    monkeypatch.setattr(page_cache, "DROP_CACHES", tmp_path / "drop_caches")
    ours = new_record("benchmark", 64, "dropped", tmp_path, None).settings
    monkeypatch.setattr(page_cache, "DROP_CACHES", tmp_path / "not" / "ours")
    theirs = new_record("benchmark", 64, "dropped", tmp_path, None).settings
    assert ours["page cache"] == f"dropped by {tmp_path}/drop_caches"
    assert theirs["page cache"] == "dropped by posix_fadvise(DONTNEED) on the files"
    assert new_record("benchmark", 64, "kept", tmp_path, None).settings["page cache"] == "kept"


def test_an_estimate_goes_by_earlier_benchmarks_like_this_one(benchmark):
    earlier = benchmark({"cold": (2.25, 2.25)})  # TTFS 5 s, 5 s beside it
    known = estimate_duration(benchmark(id="b2"), ["cold"], 60, [earlier])
    assert known == "60 runs: cold, 60 each; about 10 min, by earlier benchmarks"
    slower = [benchmark({"cold": (50.0,)})] * 30  # not among the latest 20
    assert estimate_duration(benchmark(id="b2"), ["cold"], 60, [earlier] * 20 + slower) == known
    partly = estimate_duration(benchmark(id="b2"), ["cold", "warm"], 30, [earlier])
    assert partly == "60 runs: cold, warm, 30 each; about 10 min, by earlier benchmarks"


@pytest.mark.parametrize(
    "other", [{"machine_id": "m2"}, {"settings": {"num_trajectories": 2048}}, {"runs": ()}]
)
def test_without_one_an_estimate_goes_by_the_number_of_runs(benchmark, other):
    text = estimate_duration(benchmark(id="b2"), ["cold", "warm"], 15, [benchmark(**other)])
    assert text == (
        "30 runs: cold, warm, 15 each; about 4 min, at 7 s a run; more than 512 trajectories take "
        "longer, and there is no earlier benchmark of this machine and these settings to tell by"
    )
