"""Twelve files as other people write them: each trains after `ups data inspect --config`.

All configs are written, and every split of them is read; three are trained on.
"""

from __future__ import annotations

import json
import math

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from deployments.cli.app import app
from ups.config import SPLITS, load_config
from ups.data.sources import open_file, wanted

N, T, X = 12, 21, 128
ROWS = {"train": 10, "val": 1, "test": 1}


def waves(num=N, frames=T, points=X):
    """(N, T, X) of waves that decay."""
    x, t = np.arange(points) / points, np.linspace(0, 1, frames)
    phases = np.linspace(0, math.pi, num)[:, None, None]
    return np.sin(2 * math.pi * x + phases) * np.exp(-t)[None, :, None]


def write(path, values, name="tensor", attrs=None, dtype="<f4", **options):
    """A file as PDEBench lays it out, but for what the options say."""
    frames, points = values.shape[1:3]
    with h5py.File(path, "w") as file:
        file.attrs.update({"Nu": 0.01} if attrs is None else attrs)
        file["t-coordinate"] = np.linspace(0, 1, frames)
        file["x-coordinate"] = np.arange(points) / points
        file.create_dataset(name, data=values, dtype=dtype, **options)
    return str(path)


def the_well(path):
    """The Well's layout: fields in groups by their rank, and a scalar ν."""
    with h5py.File(path, "w") as file:
        file.attrs.update({"n_spatial_dims": 1, "n_trajectories": N})
        file["t0_fields/u"] = waves().astype("<f4")
        file["dimensions/time"], file["dimensions/x"] = np.linspace(0, 1, T), np.arange(X) / X
        file["scalars/Nu"] = 0.01
    return str(path)


def pdebench(path):
    """PDEBench's file of advection: no attribute, and one time more than there are frames."""
    with h5py.File(path, "w") as file:
        file["tensor"] = waves().astype("<f4")
        file["t-coordinate"], file["x-coordinate"] = np.arange(T + 1) * 0.05, np.arange(X) / X
    return str(path)


def shards(folder):
    for number in range(3):
        write(folder / f"part_{number}.h5", waves(4))
    return str(folder)


def by_splits(folder):
    for split, num in ROWS.items():
        write(folder / f"burgers_{split}_000.hdf5", waves(num))
    return str(folder)


FILES = {
    "float64": lambda folder: write(folder / "a.h5", waves(), dtype="<f8"),
    "big-endian": lambda folder: write(folder / "a.h5", waves(), dtype=">f4"),
    "gzip": lambda folder: write(folder / "a.h5", waves(), compression="gzip"),
    "a channel": lambda folder: write(folder / "a.h5", waves()[..., None], "data"),
    "512 points, 101 frames": lambda folder: write(folder / "a.h5", waves(N, 101, 512)),
    "500 points, 101 frames": lambda folder: write(folder / "a.h5", waves(N, 101, 500)),
    "101 points": lambda folder: write(folder / "a.h5", waves(N, T, 101)),
    "The Well": lambda folder: the_well(folder / "a.h5"),
    "no ν": lambda folder: write(folder / "a.h5", waves(), attrs={}),
    "shards": shards,
    "a file for each split": by_splits,
    "PDEBench": lambda folder: pdebench(folder / "1D_Advection_Sols_beta0.4.hdf5"),
}
TRAINED = ("big-endian", "101 points", "no ν")
SHORT = ("--set", "stages.operator.epochs=1", "--set", "stages.operator.max_steps=2")


@pytest.fixture
def drafted(tmp_path, monkeypatch):
    """`drafted(name)`: the config that is written for such a file, loaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PDEBENCH_ROOT", raising=False)
    (tmp_path / "given").mkdir()

    def make(name):
        place = FILES[name](tmp_path / "given")
        given = ["--nu", "0.01"] if name == "no ν" else []
        done = CliRunner().invoke(app, ["data", "inspect", place, *given, "--config", "mine.yaml"])
        assert done.exit_code == 0, done.output
        return load_config("mine.yaml")

    return make


@pytest.mark.parametrize("name", FILES)
def test_a_config_is_written_whose_splits_can_be_read(drafted, name):
    config = drafted(name).only_problem()
    num = dict.fromkeys(SPLITS, 0)
    for split in SPLITS:
        for source in wanted(config, split):
            with open_file(config, source.path, source.rows) as file:
                assert np.isfinite(file.read(0, file.num_trajectories)).all()
                num[split] += file.num_trajectories
    assert num == ROWS


@pytest.mark.parametrize("name", TRAINED)
def test_it_trains(drafted, name):
    drafted(name)
    valid = CliRunner().invoke(app, ["validate", "mine.yaml", "--json"])
    assert (valid.exit_code, json.loads(valid.stdout)["valid"]) == (0, True), valid.stdout
    trained = CliRunner().invoke(app, ["train", "mine.yaml", *SHORT])
    assert (trained.exit_code, "test rollout nRMSE" in trained.stdout) == (0, True), trained.output
