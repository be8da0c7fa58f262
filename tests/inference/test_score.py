"""A checkpoint is scored on the test split of any config, with its own model."""

import h5py
import numpy as np
import pytest
import torch

import ups
from ups.errors import InputError, InvalidConfig
from ups.files import read_json
from ups.inference.score import config_to_score, score
from ups.latents.encode import PatchEncoder
from ups.training import checkpoint
from ups.training.evaluate import Scores, evaluate


@pytest.fixture
def scored(stage_tasks):
    """`scored(operator, config)`: scores, and what the progress was told."""

    def run(operator, config, folder=None):
        seen = []
        config = config_to_score(operator, config)
        test = {name: splits["test"] for name, splits in stage_tasks(config).items()}
        show = lambda what, unit, scale=1: lambda *at: seen.append((what, *at))  # noqa: E731
        return score(operator, config, test, folder, show), seen

    return run


def test_the_score_is_that_of_evaluation_whatever_the_config_says_of_the_model(
    tiny_config, saved, stage_tasks, scored, tmp_path
):
    config = tiny_config(evaluation__num_examples=1)
    path = saved(config)
    encoder = checkpoint.load(path)["trained_on"]["burgers1d"]["encoder"]
    encoders = {"burgers1d": PatchEncoder.from_manifest(encoder)}
    test = {"burgers1d": stage_tasks(config)["burgers1d"]["test"]}
    expected = evaluate(config, path, test, encoders, tmp_path)
    other = tiny_config(
        latent__dim=8, operator__hidden_dim=64, training__time_stride=3, encoder__t_stride=2
    )
    found, seen = scored(ups.load(path, "cpu"), other)
    assert found.rollout == expected.rollout
    assert seen == [("scored", 4, 6), ("scored", 6, 6)]
    again, _ = scored(ups.load(path, "cpu"), config, tmp_path / "scores")
    assert Scores.model_validate(read_json(tmp_path / "scores" / "scores.json")) == again
    assert again.rollout == found.rollout
    assert (tmp_path / "scores" / "prediction.png").exists()
    assert again.picture == tmp_path / "scores" / "prediction.png"


def test_a_small_model_is_scored_by_one_thread_and_all_are_there_afterwards(
    tiny_config, saved, stage_tasks
):
    config, before, taken = tiny_config(), torch.get_num_threads(), []
    operator, test = ups.load(saved(config), "cpu"), stage_tasks(config)["burgers1d"]["test"]
    torch.set_num_threads(2)
    try:
        note = lambda *_: lambda *_: taken.append(torch.get_num_threads())  # noqa: E731
        score(operator, config, {"burgers1d": test}, None, note)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(taken) == {1}


def test_data_saved_less_often_are_scored_with_the_same_step(
    tiny_config, saved, scored, tiny_data, tmp_path
):
    operator = ups.load(saved(tiny_config()), "cpu")
    expected, _ = scored(operator, tiny_config())
    for split in ("train", "val", "test"):
        name = f"burgers1d_{split}.h5"
        with h5py.File(tiny_data / name) as file, h5py.File(tmp_path / name, "w") as coarse:
            coarse["tensor"] = file["tensor"][:, ::2]
            coarse["t-coordinate"] = file["t-coordinate"][::2]
            coarse.attrs["Nu"] = file.attrs["Nu"]
    found, _ = scored(operator, tiny_config(data__root=str(tmp_path)))
    assert found.rollout == pytest.approx(expected.rollout)
    assert found.step_dt == pytest.approx(0.04)
    with h5py.File(tmp_path / "burgers1d_test.h5", "r+") as file:
        del file["t-coordinate"]
        file["t-coordinate"] = 0.03 * np.arange(21)
    with pytest.raises(InputError, match="found frames 0.03 apart, expected a whole part of the o"):
        scored(operator, tiny_config(data__root=str(tmp_path)))


def test_several_problems_are_scored_each_with_its_encoder(mixed_config, saved, scored):
    operator = ups.load(saved(mixed_config()), "cpu")
    found, _ = scored(operator, mixed_config())
    assert found.problems.keys() == operator.problems.keys()
    alone, _ = scored(operator, mixed_config(data__task=["advection1d"]))
    assert alone.rollout == pytest.approx(found.problems["advection1d"].rollout)


def test_what_an_operator_cannot_be_scored_on_is_refused(tiny_config, mixed_config, saved):
    operator = ups.load(saved(tiny_config(operator__history=2)), "cpu")
    with pytest.raises(InputError, match="has data of advection1d, and the operator was trained"):
        config_to_score(operator, mixed_config())
    with pytest.raises(InputError, match="data.grid_points 512, and the operator .* grid of 256"):
        config_to_score(operator, tiny_config(data__grid_points=512))
    with pytest.raises(InvalidConfig, match="with this operator: evaluation.given_frames: found 1"):
        config_to_score(operator, tiny_config(evaluation__given_frames=1))
