"""Checks of a config with several tasks: each group looks at all of them."""

import shutil

import h5py
import numpy as np
import pytest
import yaml

from ups.config import CONFIG_DIR, Parsed, _parse
from ups.data.advection import generate
from ups.data.sources import stage
from ups.latents.build import ensure
from ups.validate.cache import validate_cache
from ups.validate.data import validate_data
from ups.validate.disk import validate_disk
from ups.validate.entry import to_build
from ups.validate.estimate import validate_estimate
from ups.validate.memory import Memory, validate_ram_for_cache
from ups.validate.run import validate

TASKS = ("burgers1d", "burgers1d_nu0.1", "advection1d")


@pytest.fixture
def parsed(mixed_config):
    return Parsed("mixed.yaml", mixed_config())


def by_name(checks):
    return {check.name: check for check in checks}


def build(config, name):
    own = config.by_task()[name]
    return ensure(own, {split: stage(own, split, None) for split in ("train", "val")})


def test_a_mixed_config_is_valid_and_every_group_names_its_tasks(parsed, tmp_path):
    report = validate(parsed, benchmarks=tmp_path, offline=True)
    assert report.is_valid, report.faults
    names = {(check.group, check.name) for check in report.checks}
    for task in TASKS:
        for split in ("train", "val", "test"):
            assert ("data", f"{task} {split} file") in names


def test_files_are_shown_with_the_parameter_of_their_equation(parsed):
    found = by_name(validate_data(parsed)[0])
    assert "(20, 41, 256), ν 0.02, dt 0.01" in found["burgers1d train file"].text
    assert "(12, 41, 256), β 0.5, dt 0.01" in found["advection1d train file"].text
    assert found["advection1d train file"].figures["beta"] == 0.5


def test_the_entry_of_each_task_is_looked_for_by_itself(mixed_config, mixed_data, tmp_path):
    own = shutil.copytree(mixed_data, tmp_path / "own")  # whose SHA-256 nobody knows yet
    parsed = Parsed("x", mixed_config(data__root=str(own)))
    built = build(parsed.config, "advection1d")
    _, sources = validate_data(parsed)
    checks, found = validate_cache(parsed, sources)
    assert found == {"burgers1d": None, "burgers1d_nu0.1": None, "advection1d": True}
    for name in ("burgers1d", "burgers1d_nu0.1"):
        stage_all(parsed.config, name)
    _, sources = validate_data(parsed)
    checks, found = validate_cache(parsed, sources)
    assert found == {"burgers1d": False, "burgers1d_nu0.1": False, "advection1d": True}
    entries = by_name(checks)
    assert f"valid, hash={built.config_hash}" in entries["advection1d entry"].text
    assert "none of burgers1d" in entries["burgers1d entry"].text
    assert to_build(found) == ["burgers1d", "burgers1d_nu0.1"]


def stage_all(config, name):
    own = config.by_task()[name]
    for split in ("train", "val"):
        stage(own, split, None)


def test_memory_sums_over_tasks_and_disk_over_those_that_are_built(parsed):
    built = [build(parsed.config, name) for name in TASKS]
    _, sources = validate_data(parsed)
    memory = Memory(ram_mb=1000)
    latents = by_name(validate_ram_for_cache(parsed, sources, "cpu", memory))["latents"]
    total = sum(entry.num_bytes for entry in built)
    stride = parsed.config.training.time_stride
    assert latents.figures["num_bytes"] == pytest.approx(total / stride, rel=1e-3)
    (room,) = validate_disk(parsed, sources, to_build=TASKS)
    assert room.figures["needed_bytes"] == total
    (room,) = validate_disk(parsed, sources, to_build=["advection1d"])
    assert room.figures["needed_bytes"] == built[2].num_bytes


def test_the_estimate_fetches_the_objects_of_all_tasks(tmp_path):
    config = _parse(yaml.safe_load((CONFIG_DIR / "smoke_mixed.yaml").read_text()), "x").valid()
    parsed = Parsed("x", config.model_copy(update={"data": in_folder(config, tmp_path)}))
    _, sources = validate_data(parsed, offline=True)
    found = by_name(validate_estimate(parsed, sources, entries={}, folder=tmp_path))
    num = 3 * (256 + 32 + 32)
    assert found["to fetch"].figures["num_bytes"] == num * 201 * 1024 * 4


def in_folder(config, folder):
    return config.data.model_copy(update={"root": folder / "staged"})


def test_tasks_that_do_not_go_together_are_a_fault_that_names_them(
    mixed_config, mixed_data, tmp_path
):
    for path in mixed_data.glob("*.h5"):
        if "advection1d_train" not in path.name:
            (tmp_path / path.name).hardlink_to(path)
    path = tmp_path / "advection1d_train.h5"
    generate(path, 4, beta=0.5, seed=0, grid_points=256, num_frames=61, t_end=0.6)
    config = mixed_config(data__root=str(tmp_path))
    faults = [c for c in validate_data(Parsed("x", config))[0] if c.status == "fault"]
    (fault,) = faults
    assert fault.name == "train tasks"
    assert "burgers1d 11, burgers1d_nu0.1 11, advection1d 16" in fault.text


def test_a_task_of_another_equation_than_its_files_is_a_fault(mixed_config):
    tasks = ["burgers1d", {"name": "burgers1d_nu0.1", "equation": "advection1d"}]
    checks, _ = validate_data(Parsed("x", mixed_config(data__task=tasks)))
    found = by_name(checks)["burgers1d_nu0.1 train file"]
    assert found.status == "fault"
    assert "correct the equation of its task" in found.text


def test_faults_of_one_task_leave_the_others_to_be_checked(tmp_path):
    tree = yaml.safe_load((CONFIG_DIR / "smoke_mixed.yaml").read_text())
    tree["data"]["root"] = str(tmp_path / "staged")
    tree["data"]["task"][2]["generate"]["beta"] = "fast"
    report = validate(_parse(tree, "x"), offline=True, benchmarks=tmp_path)
    (fault,) = report.faults
    assert fault.name == "data.task.2.generate.beta"
    found = by_name([check for check in report.checks if check.group == "data"])
    assert "burgers1d_nu0.01 train file" in found
    assert "data.task is faulty" in found["other tasks"].text
    latents = next(c for c in report.checks if (c.group, c.name) == ("memory", "latents"))
    assert latents.status == "skip"  # the size of all is not known


def test_nan_in_one_task_is_found_in_its_file(mixed_config, mixed_data, tmp_path):

    shutil.copytree(mixed_data, tmp_path / "own")
    with h5py.File(tmp_path / "own" / "advection1d_val.h5", "r+") as file:
        file["tensor"][1, 2, 3] = np.nan
    checks, _ = validate_data(Parsed("x", mixed_config(data__root=str(tmp_path / "own"))))
    assert [c.name for c in checks if c.status == "fault"] == ["advection1d val file"]


def test_a_missing_object_of_a_task_is_told_with_its_split_and_generated_where_it_can_be(
    in_store, bucket
):
    sources = {s: [{"key": f"nowhere/{s}.h5", "bucket": bucket}] for s in ("train", "val", "test")}
    generate_it = {"beta": 0.4, "num_trajectories": {"train": 4, "val": 2, "test": 2}}
    tasks = [
        {"name": "burgers1d", "sources": sources},
        {"name": "advection1d", "sources": sources, "generate": generate_it},
    ]
    checks, _ = validate_data(in_store(data__task=tasks, data__sources=None))
    found = by_name(checks)
    assert found["burgers1d train object"].status == "fault"
    assert "`ups run` generates it, 4 trajectories" in found["advection1d train object"].text
