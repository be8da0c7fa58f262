"""Checks of a config with several tasks: each group looks at all of them."""

import shutil

import h5py
import numpy as np
import pytest

from ups.config import SPLITS, load_config
from ups.data.generate import generate
from ups.data.sources import stage
from ups.latents.build import ensure
from ups.validate.cache import to_build, validate_cache
from ups.validate.data import validate_data
from ups.validate.disk import validate_disk
from ups.validate.estimate import validate_estimate
from ups.validate.memory import Memory, validate_ram_for_cache
from ups.validate.run import validate

PROBLEMS = ("burgers1d", "burgers1d_nu0.1", "advection1d")


@pytest.fixture
def config(mixed_config):
    return mixed_config()


def by_name(checks):
    return {check.name: check for check in checks}


def stage_encoded(config, name):
    own = config.by_problem()[name]
    return own, {split: stage(own, split, None) for split in ("train", "val")}


def build(config, name):
    return ensure(*stage_encoded(config, name))


def test_a_mixed_config_is_valid_and_every_group_names_its_problems(config, tmp_path):
    report = validate(config, "mixed.yaml", benchmarks=tmp_path, offline=True)
    assert report.is_valid, report.faults
    names = {check.name for check in report.checks if check.group == "data"}
    assert names == {f"{problem} {split} file" for problem in PROBLEMS for split in SPLITS}


def test_files_are_shown_with_the_parameter_of_their_equation(config):
    found = by_name(validate_data(config)[0])
    assert "(20, 41, 256), ν 0.02, dt 0.01" in found["burgers1d train file"].text
    assert "(12, 41, 256), β 0.5, dt 0.01" in found["advection1d train file"].text
    assert found["advection1d train file"].figures["beta"] == 0.5


def test_the_entry_of_each_problem_is_looked_for_by_itself(mixed_config, mixed_data, tmp_path):
    own = shutil.copytree(mixed_data, tmp_path / "own")  # whose SHA-256 nobody knows yet
    config = mixed_config(data__root=str(own))
    built = build(config, "advection1d")
    _, found = validate_cache(config, validate_data(config)[1])
    assert found == {"burgers1d": None, "burgers1d_nu0.1": None, "advection1d": True}
    for name in ("burgers1d", "burgers1d_nu0.1"):
        stage_encoded(config, name)
    checks, found = validate_cache(config, validate_data(config)[1])
    assert found == {"burgers1d": False, "burgers1d_nu0.1": False, "advection1d": True}
    entries = by_name(checks)
    assert f"valid, hash={built.config_hash}" in entries["advection1d entry"].text
    assert "none of burgers1d" in entries["burgers1d entry"].text
    assert to_build(found) == ["burgers1d", "burgers1d_nu0.1"]


def test_memory_sums_over_problems_and_disk_over_those_that_are_built(config):
    built = [build(config, name) for name in PROBLEMS]
    _, sources = validate_data(config)
    latents = validate_ram_for_cache(config, sources, "cpu", Memory(ram_mb=1000))[-1]
    total = sum(entry.num_bytes for entry in built)
    stride = config.training.time_stride
    assert latents.figures["num_bytes"] == pytest.approx(total / stride, rel=1e-3)
    (room,) = validate_disk(config, sources, to_build=PROBLEMS)
    assert room.figures["needed_bytes"] == total
    (room,) = validate_disk(config, sources, to_build=["advection1d"])
    assert room.figures["needed_bytes"] == built[2].num_bytes


def test_the_estimate_fetches_the_objects_of_all_problems(tmp_path):
    config = load_config("smoke_mixed", {"data.root": str(tmp_path / "staged")})
    _, sources = validate_data(config, offline=True)
    found = by_name(validate_estimate(config, sources, entries={}, folder=tmp_path))
    num_bytes = 3 * (256 + 32 + 128) * 201 * 1024 * 4
    assert found["to fetch"].figures["num_bytes"] == num_bytes


def test_problems_that_do_not_go_together_are_a_fault_that_names_them(
    mixed_config, mixed_data, tmp_path
):
    for path in mixed_data.glob("*.h5"):
        if "advection1d_train" not in path.name:
            (tmp_path / path.name).hardlink_to(path)
    path = tmp_path / "advection1d_train.h5"
    size = {"grid_points": 256, "num_frames": 61, "t_end": 0.6}
    generate(path, 4, "advection1d", 0.5, seed=0, **size)
    config = mixed_config(data__root=str(tmp_path))
    (fault,) = (c for c in validate_data(config)[0] if c.status == "fault")
    assert fault.name == "train frames"
    assert "advection1d_train.h5 61: with training.time_stride 4 that is 11 and 16" in fault.text


def test_a_problem_of_another_equation_than_its_files_is_a_fault(mixed_config):
    tasks = ["burgers1d", {"name": "burgers1d_nu0.1", "equation": "advection1d"}]
    checks, _ = validate_data(mixed_config(data__task=tasks))
    found = by_name(checks)["burgers1d_nu0.1 train file"]
    assert found.status == "fault"
    assert "correct the equation of its task" in found.text


def test_nan_in_one_problem_is_found_in_its_file(mixed_config, mixed_data, tmp_path):
    shutil.copytree(mixed_data, tmp_path / "own")
    with h5py.File(tmp_path / "own" / "advection1d_val.h5", "r+") as file:
        file["tensor"][1, 2, 3] = np.nan
    checks, _ = validate_data(mixed_config(data__root=str(tmp_path / "own")))
    assert [c.name for c in checks if c.status == "fault"] == ["advection1d val file"]


def test_a_missing_object_of_a_problem_is_told_with_its_split_and_generated_where_it_can_be(
    in_store, bucket
):
    sources = {s: [{"key": f"nowhere/{s}.h5", "bucket": bucket}] for s in SPLITS}
    generate_it = {"beta": 0.4, "num_trajectories": {"train": 4, "val": 2, "test": 2}}
    tasks = [
        {"name": "burgers1d", "sources": sources},
        {"name": "advection1d", "sources": sources, "generate": generate_it},
    ]
    checks, _ = validate_data(in_store(data__task=tasks, data__sources=None))
    found = by_name(checks)
    assert found["burgers1d train object"].status == "fault"
    assert "`ups run` generates it, 4 trajectories" in found["advection1d train object"].text
