"""`ups predict` and `ups score` from a shell, and one line for each fault, of `ups export`, too."""

import json

import h5py
import pytest


@pytest.fixture
def ups(tiny_config, ups_on, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny_config()
    saved(config)
    return ups_on(config)


@pytest.fixture
def given(tiny_data):
    return str(tiny_data / "burgers1d_test.h5")


def test_predict_writes_a_file_and_a_picture_and_says_how_well_it_fits(ups, given, tmp_path):
    code, output, _ = ups("predict", "best.pt", given, "-o", "out.h5", "--plot", "p.png", "--json")
    done = json.loads(output)
    assert (code, done["num_steps"], done["parameter"]) == (0, 10, 0.02)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["tensor"].shape == (6, 11, 256)
    assert (tmp_path / "p.png").exists()
    code, output, errors = ups("predict", "best.pt", given, "-o", "other.h5", "--nu", "0.5")
    assert code == 0
    assert output.splitlines()[0] == "other.h5: 6 trajectories of burgers1d, 10 steps of 0.04"
    assert output.splitlines()[1].startswith("nRMSE against the file's own frames ")
    assert "nu = 0.5 lies outside what the operator was trained on, 0.02" in errors


def test_score_gives_the_figures_of_the_config_s_test_split(ups, tmp_path):
    code, output, _ = ups("score", "best.pt", "CONFIG", "--json")
    scores = json.loads(output)
    assert (code, scores["num_trajectories"]) == (0, 6)
    drawn = ("--set", "evaluation.num_examples=1")
    code, output, _ = ups("score", "best.pt", "CONFIG", "-o", "scores", *drawn)
    assert output.startswith(f"test rollout nRMSE {scores['rollout']['nRMSE']:.4f}, persistence ")
    assert (tmp_path / "scores" / "prediction.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "gone.pt", "GIVEN", "-o", "o.h5"], "no checkpoint gone.pt"),
        (["predict", "best.pt", "gone.h5", "-o", "o.h5"], "gone.h5: no such file"),
        (["predict", "best.pt", "best.pt", "-o", "o.h5"], "that are not HDF5"),
        (["predict", "best.pt", "GIVEN", "-o", "best.pt"], "best.pt is there already"),
        (["predict", "best.pt", "GIVEN", "-o", "o.h5", "--beta", "1"], "found beta, expected nu=…"),
        (["predict", "best.pt", "GIVEN", "-o", "o.h5", "--device", "tpu"], "device: found 'tpu'"),
        (["score", "best.pt", "CONFIG", "--set", "data.grid_points=512"], "data.grid_points 512"),
        (["score", "tiny.yaml", "CONFIG"], "not a checkpoint that can be read"),
        (["export", "tiny.yaml", "--to", "exported"], "not a checkpoint that can be read"),
    ],
)
def test_a_fault_is_one_line(ups, given, tmp_path, arguments, message):
    code, output, errors = ups(*(given if a == "GIVEN" else a for a in arguments))
    (line,) = errors.splitlines()
    assert (code, output) == (1, "")
    assert line.startswith("error: ")
    assert message in line
    assert not (tmp_path / "o.h5").exists()
