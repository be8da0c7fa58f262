from types import SimpleNamespace

import pytest

from ups.config import load_config
from ups.latents.key import compute_cache_hash


def sources(sha256="0" * 64, rows=None, path="/a/b.h5", parameter=None):
    source = SimpleNamespace(sha256=sha256, rows=rows, path=path, parameter=parameter)
    return {split: [source] for split in ("train", "val", "test")}


def key(overrides=None, given=None):
    return compute_cache_hash(load_config("smoke", overrides).only_problem(), given or sources())


def test_the_key_is_twelve_hex_digits_and_deterministic():
    assert key() == key()
    assert len(key()) == 12
    assert int(key(), 16) >= 0


def test_the_key_of_what_was_built_before_is_still_the_same():
    assert key() == "9a0c9f269aac"


@pytest.mark.parametrize(
    ("name", "value", "changes"),
    [
        ("latent.dim", 64, True),
        ("latent.tokens", 32, True),
        ("encoder.fit_seed", 1, True),
        ("encoder.fit_trajectories", 8, True),
        ("encoder.normalise", False, True),
        ("encoder.x_stride", 2, True),
        ("encoder.t_stride", 2, True),
        ("training.latent_cache_dtype", "float32", True),
        ("stages.operator.optimizer.lr", 0.5, False),
        ("stages.operator.epochs", 3, False),
        ("training.num_workers", 7, False),
        ("training.encode_batch_size", 3, False),
        ("training.device", "cpu", False),
        ("training.time_stride", 3, False),
        ("training.latent_cache_dir", "/elsewhere", False),
        ("training.latent_cache_max_gb", 50, False),
        ("data.root", "/elsewhere", False),
        ("data.bucket", "other", False),
        ("features.gpu_encode", False, False),
        ("name", "other", False),
    ],
)
def test_the_key_changes_with_what_determines_the_latents_and_nothing_else(name, value, changes):
    assert (key({name: value}) != key()) == changes


def test_the_key_changes_with_content_and_rows_and_not_with_path_nor_with_the_test_split():
    assert key(given=sources(sha256="1" * 64)) != key()
    assert key(given=sources(rows=(0, 10))) != key()
    assert key(given=sources(path="/c/d.h5")) == key()
    for split in ("train", "val", "test"):
        other = sources() | {split: sources(sha256="f" * 64)[split]}
        assert (key(given=other) == key()) == (split == "test")


def test_a_parameter_that_a_files_name_alone_tells_is_part_of_the_key_and_no_other_is():
    named = {parameter: key(given=sources(parameter=parameter)) for parameter in (None, 0.1, 0.01)}
    assert len(set(named.values())) == 3
    assert named[None] == key()


MIXED = {"data.task": ["burgers1d", "advection1d"], "data.sources": None, "data.generate": None}


def key_in_list(name, tasks, given=None):
    config = load_config("smoke", {**MIXED, "data.task": tasks})
    return compute_cache_hash(config.by_problem()[name], given or sources())


def test_the_key_of_a_problem_does_not_depend_on_the_others_nor_on_its_name():
    assert key_in_list("burgers1d", ["burgers1d"]) == key()
    assert key_in_list("burgers1d", ["advection1d", "burgers1d", "burgers1d_b"]) == key()
    assert key_in_list("burgers1d_b", ["burgers1d_b", "burgers1d"]) == key()


def test_the_key_of_a_problem_changes_with_its_equation_and_its_own_sources():
    tasks = ["burgers1d", "advection1d"]
    assert key_in_list("advection1d", tasks) != key_in_list("burgers1d", tasks)
    other = sources(sha256="1" * 64)
    assert key_in_list("burgers1d", tasks, other) != key_in_list("burgers1d", tasks)
