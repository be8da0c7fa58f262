"""Scores: of the averaged model, on the test split, told what it was trained with; and finite."""

import math
import re
import shutil

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from ups.data.sources import open_file
from ups.errors import DataError, TrainingDiverged
from ups.latents.encode import PatchEncoder, fit_encoder
from ups.runs.metrics import read_metrics, write_rows
from ups.tracking.protocol import curves
from ups.training import checkpoint
from ups.training.evaluate import evaluate
from ups.training.step import TrainStep

NU, DT, STRIDE = 0.02, 0.01, 4  # of the tiny data


@pytest.fixture
def random_state(tiny_config):
    return random_step(tiny_config())


def random_step(config):
    """A step whose model and average have weights of their own, none of which is zero."""
    step = TrainStep(config)
    generator = torch.Generator().manual_seed(0)
    for weight in [*step.model.parameters(), *step.ema.parameters()]:
        weight.data += 0.02 * torch.randn(weight.shape, generator=generator)
    return step


@pytest.fixture
def score(tiny_config, stage_all, tmp_path):
    """`score(step, change, rows)`: scores by its weights on (rows of) a test file, once changed."""
    config, run_dir = tiny_config(), tmp_path / "run"
    sources = stage_all(config)
    run_dir.mkdir()
    with open_file(config, sources["train"][0].path, None) as file:
        encoder = fit_encoder(config, [file])

    def run(step, change=lambda tensor: None, rows=(None,), given=encoder, num_examples=0, **more):
        config = tiny_config(evaluation__num_examples=num_examples)
        path, saved = tmp_path / "test.h5", run_dir / "best.pt"
        shutil.copy(sources["test"][0].path, path)
        with h5py.File(path, "r+") as file:
            change(file["tensor"])
        checkpoint.save(saved, config, {**step.state_dict(), **more})
        (staged,) = sources["test"]
        test = [staged.model_copy(update={"path": path, "rows": of_file}) for of_file in rows]
        return evaluate(config, saved, {"burgers1d": test}, {"burgers1d": given}, run_dir)

    run.encoder, run.run_dir = encoder, run_dir
    return run


def test_scores_are_those_of_the_average_told_the_parameter_and_the_time_of_its_step(
    random_state, score, tiny_data
):
    with h5py.File(tiny_data / "burgers1d_test.h5") as file:
        u = torch.from_numpy(file["tensor"][:, ::STRIDE])
    told = torch.tensor([[math.log10(NU) / 2 + 1, math.log10(DT * STRIDE) + 1]])
    states = [score.encoder.encode(u[:, 0])]
    with torch.no_grad():
        for _ in range(u.shape[1] - 1):
            states.append(random_state.ema(states[-1][:, None], told.expand(len(u), 2)))
    predicted = score.encoder.decode(torch.stack(states[1:], 1))
    expected = ((predicted - u[:, 1:]).norm(dim=-1) / u[:, 1:].norm(dim=-1)).mean().item()
    scores = score(random_state)
    assert scores.rollout["nRMSE"] == pytest.approx(expected, rel=1e-4)
    error_NT = ((predicted - u[:, 1:]).norm(dim=-1) / u[:, 1:].norm(dim=-1)).numpy()
    spread = {"median": 50, "p90": 90}
    assert scores.rollout_spread == pytest.approx(
        {name: np.percentile(error_NT.mean(1), share) for name, share in spread.items()}, rel=1e-4
    )
    p10, over_time = np.percentile(error_NT, 10, 0), scores.rollout_over_time
    assert over_time["p10"] == pytest.approx(p10, rel=1e-4)
    assert over_time["mean"] == pytest.approx(error_NT.mean(0), rel=1e-4)
    assert scores.step_dt == pytest.approx(DT * STRIDE)


def test_the_picture_shows_as_many_trajectories_as_are_asked_for(random_state, score):
    score(random_state, num_examples=5)  # of 6, in batches of 4
    with Image.open(score.run_dir / "prediction.png") as picture:
        assert picture.height == pytest.approx(130 * (5 * 1.8 + 2.7), abs=1)


def test_no_picture_is_drawn_of_no_trajectories(random_state, score):
    assert score(random_state).picture is None
    assert not list(score.run_dir.glob("*.png"))


def test_the_scores_of_pdebench_are_of_all_frames_and_averaged_batch_by_batch(
    tiny_config, tiny_data, stage_all, tmp_path
):
    given, batches = 3, [slice(4), slice(4, 6)]
    config = tiny_config(
        evaluation__given_frames=given, evaluation__batch_size=4, operator__conserve_mean=False
    )
    step = random_step(config)
    with open_file(config, tiny_data / "burgers1d_train.h5", None) as file:
        encoder = fit_encoder(config, [file])
    checkpoint.save(tmp_path / "best.pt", config, step.state_dict())
    test = {"burgers1d": stage_all(config)["test"]}
    scores = evaluate(config, tmp_path / "best.pt", test, {"burgers1d": encoder}, tmp_path)

    with h5py.File(tiny_data / "burgers1d_test.h5") as file:
        u = file["tensor"][:, ::STRIDE]
    told = torch.tensor([[math.log10(NU) / 2 + 1, math.log10(DT * STRIDE) + 1]])
    z, predicted = encoder.encode(torch.from_numpy(u[:, given - 1])), u.copy()
    with torch.no_grad():
        for frame in range(given, u.shape[1]):
            z = step.ema(z[:, None], told.expand(len(u), 2))
            predicted[:, frame] = encoder.decode(z).numpy()
    found = []
    for rows in batches:
        error, size = predicted[rows] - u[rows], np.sqrt((u[rows] ** 2).mean(2))
        rmse = np.sqrt((error**2).mean(2))
        conserved = np.sqrt((error.mean(2) ** 2).mean(0)).mean()
        largest = np.abs(error).max((0, 2)).mean()
        found.append([rmse.mean(), (rmse / size).mean(), conserved, largest])
    names = ("RMSE", "nRMSE", "cRMSE", "max")
    expected = dict(zip(names, np.mean(found, 0), strict=True))
    assert {name: scores.pdebench[name] for name in names} == pytest.approx(expected, rel=1e-4)
    stays = np.linalg.norm(u[:, given:] - u[:, given - 1, None], axis=2)
    persistence = (stays / np.linalg.norm(u[:, given:], axis=2)).mean()
    assert scores.persistence_rollout["nRMSE"] == pytest.approx(persistence, rel=1e-4)
    predicted_only = scores.rollout["RMSE"] * (u.shape[1] - given) / u.shape[1]
    assert predicted_only == pytest.approx(expected["RMSE"], rel=0.3)
    assert predicted_only != pytest.approx(expected["RMSE"], rel=1e-3)  # of unequal batches


def test_a_checkpoint_is_scored_with_the_encoder_that_it_was_trained_with(random_state, score):
    own = score.encoder
    turned = PatchEncoder(own.weight_PD.flip(1), own.mean, own.std)
    alone, changed = score(random_state), score(random_state, given=turned)
    trained_on = {"burgers1d": {"encoder": own.to_manifest()}}
    held = score(random_state, given=turned, trained_on=trained_on)
    assert held.rollout == alone.rollout != changed.rollout


def test_a_trajectory_that_is_zero_is_named_and_left_out_of_the_mean(random_state, score, caplog):
    def zero(tensor):
        tensor[2] = 0

    found = score(random_state, zero, num_examples=3)
    others = score(random_state, rows=[(0, 2), (3, 6)])
    (warned,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert re.search(
        r"left out of its mean: trajectory 2 of \S*test.h5 \(10 of 10 frames\)$", warned
    )
    assert found.num_trajectories == 6
    for kind in ("rollout", "one_step", "persistence_rollout"):
        nrmse = getattr(found, kind)["nRMSE"]
        assert nrmse == pytest.approx(getattr(others, kind)["nRMSE"], rel=1e-5)


def test_a_batch_that_is_zero_leaves_the_scores_of_pdebench_finite(random_state, score):
    def zero(tensor):
        tensor[4:] = 0

    scores = score(random_state, zero)  # in batches of 4
    assert all(map(math.isfinite, scores.pdebench.values())), scores.pdebench
    assert scores.pdebench["nRMSE"] == score(random_state, rows=[(0, 4)]).pdebench["nRMSE"]


def test_a_test_split_of_zeros_has_no_score(random_state, score):
    with pytest.raises(
        DataError, match=r"test of burgers1d: all trajectories are zero, from .* 4 "
    ):
        score(random_state, lambda tensor: tensor.write_direct(0 * tensor[()]), rows=[(4, 6)])


def test_a_score_that_is_not_finite_is_no_success(random_state, score):
    for weight in random_state.ema.parameters():
        weight.data *= 1e9
    with pytest.raises(
        TrainingDiverged, match=r"RMSE of rollout is (inf|nan), from trajectory 1 of"
    ):
        score(random_state, rows=[(1, 6)], num_examples=1)
    assert [path.name for path in score.run_dir.iterdir()] == ["best.pt"]


def test_a_row_that_is_not_finite_is_no_json(tmp_path):
    write_rows(tmp_path, [{"epoch": 1, "val/nrmse_rollout": math.inf, "train/loss": math.nan}])
    assert not re.search("Infinity|NaN", (tmp_path / "metrics.jsonl").read_text())
    (row,) = read_metrics(tmp_path).epochs
    assert row == {"epoch": 1, "val/nrmse_rollout": None, "train/loss": None}
    assert curves(row) == {}
