import pytest

from ups.config import load_config
from ups.data.sources import Staged
from ups.latents.key import compute_cache_hash, explain_difference, key_fields


def staged(split, sha256="0" * 64, rows=None, path="/a/b.h5"):
    return Staged(
        split=split,
        uri="s3://b/k",
        path=path,
        rows=rows,
        sha256=sha256,
        num_bytes=1,
        fetched_bytes=0,
        seconds=0.0,
    )


def sources(**kwargs):
    return {split: [staged(split, **kwargs)] for split in ("train", "val", "test")}


def key(overrides=None, given=None):
    return compute_cache_hash(load_config("smoke", overrides), given or sources())


def test_the_key_is_twelve_hex_digits_and_deterministic():
    assert key() == key()
    assert len(key()) == 12
    assert int(key(), 16) >= 0


@pytest.mark.parametrize(
    "overrides",
    [
        {"latent.dim": 64},
        {"latent.tokens": 32},
        {"encoder.fit_seed": 1},
        {"encoder.fit_trajectories": 8},
        {"encoder.normalise": False},
        {"training.latent_cache_dtype": "float32"},
    ],
)
def test_the_key_changes_with_what_determines_the_latents(overrides):
    assert key(overrides) != key()


@pytest.mark.parametrize(
    "overrides",
    [
        {"stages.operator.optimizer.lr": 0.5},
        {"stages.operator.epochs": 3},
        {"training.num_workers": 7},
        {"training.encode_batch_size": 3},
        {"training.device": "cpu"},
        {"training.time_stride": 3},
        {"training.latent_cache_dir": "/elsewhere"},
        {"training.latent_cache_max_gb": 50},
        {"data.root": "/elsewhere"},
        {"data.bucket": "other"},
        {"features.gpu_encode": False},
        {"name": "other"},
    ],
)
def test_the_key_ignores_what_does_not(overrides):
    assert key(overrides) == key()


def test_the_key_changes_with_content_and_rows_and_not_with_path():
    assert key(given=sources(sha256="1" * 64)) != key()
    assert key(given=sources(rows=(0, 10))) != key()
    assert key(given=sources(path="/c/d.h5")) == key()


def test_the_test_split_is_not_part_of_the_key():
    given = sources()
    given["test"] = [staged("test", sha256="f" * 64)]
    assert key(given=given) == key()


def test_a_difference_names_the_field_and_both_values():
    wanted = key_fields(load_config("smoke", {"latent.dim": 64}), sources())
    cached = key_fields(load_config("smoke"), sources())
    assert explain_difference(wanted, cached) == ["latent.dim 64, the cached entry has 32"]


MIXED = {"data.task": ["burgers1d", "advection1d"], "data.sources": None, "data.generate": None}


def key_in_list(name, tasks, given=None):
    config = load_config("smoke", {**MIXED, "data.task": tasks})
    return compute_cache_hash(config.by_task()[name], given or sources())


def test_the_key_of_a_task_does_not_depend_on_the_others_nor_on_its_name():
    assert key_in_list("burgers1d", ["burgers1d"]) == key()
    assert key_in_list("burgers1d", ["advection1d", "burgers1d", "burgers1d_b"]) == key()
    assert key_in_list("burgers1d_b", ["burgers1d_b", "burgers1d"]) == key()


def test_the_key_of_a_task_changes_with_its_equation_and_its_own_sources():
    tasks = ["burgers1d", "advection1d"]
    assert key_in_list("advection1d", tasks) != key_in_list("burgers1d", tasks)
    other = sources(sha256="1" * 64)
    assert key_in_list("burgers1d", tasks, other) != key_in_list("burgers1d", tasks)
