"""Several tasks trained as one, each scored by itself."""

import json
import threading

import h5py
import pytest
import torch

from ups.errors import CheckpointError, Interrupted
from ups.files import read_json
from ups.pipeline.phases import build_cache, load_latents
from ups.runs.metrics import read_metrics
from ups.training import checkpoint
from ups.training.evaluate import Scores, evaluate
from ups.training.loop import train
from ups.training.step import Feed, TrainStep, epoch_order, rollout

TASKS = ["burgers1d", "burgers1d_nu0.1", "advection1d"]


@pytest.fixture
def prepared(mixed_config, stage_tasks, tmp_path):
    """`prepared(folder, **overrides)`: a config, its latents, its sources and a new run folder."""

    def make(folder="run", **overrides):
        config = mixed_config(**{"features__preload": "ram", **overrides})
        sources = stage_tasks(config)
        entries = {n: build_cache(own, sources[n]) for n, own in config.by_problem().items()}
        run_dir = tmp_path / folder
        run_dir.mkdir(exist_ok=True)
        return config, load_latents(config, sources, entries), sources, run_dir

    return make


@pytest.fixture
def scored(prepared):
    """`scored(**overrides)`: the scores of a run that was trained and evaluated, and its folder."""

    def make(**overrides):
        config, latents, sources, run_dir = prepared(**overrides)
        test = {name: splits["test"] for name, splits in sources.items()}
        trained = train(config, latents, run_dir).checkpoint
        return evaluate(config, trained, test, latents.encoders, run_dir), run_dir

    return make


def test_batches_mix_the_problems_and_carry_each_trajectorys_condition(prepared):
    config, latents, _, _ = prepared()
    feed, order = Feed(latents.train, config, "cpu"), epoch_order(latents.train, config, 0)
    feed.begin_epoch(order, 0)
    num_mixed = 0
    for index_B in order.split(6):
        z_BTKD, condition_BC = feed.draw(len(index_B))
        assert torch.equal(z_BTKD, latents.train.z_NTKD[index_B])
        assert torch.equal(condition_BC, latents.train.condition_NC[index_B])
        is_advection = index_B >= 27
        assert torch.equal(condition_BC[:, 2] == 1, is_advection)
        num_mixed += bool(is_advection.any() and not is_advection.all())
    assert num_mixed >= 3


def test_val_is_the_mean_over_problems_of_what_each_has_alone(prepared):
    config, latents, _, run_dir = prepared(stages__operator__epochs=2)
    result = train(config, latents, run_dir)
    rows = read_metrics(run_dir).epochs
    for row in rows:
        own = [row[f"val/{name}/nrmse_rollout"] for name in TASKS]
        assert row["val/nrmse_rollout"] == pytest.approx(sum(own) / 3)
    step = TrainStep(config)
    step.load_state_dict(checkpoint.load(result.checkpoint))
    best = rows[result.best_epoch - 1]
    for name, places in latents.val_ranges.items():
        rows_of_problem = torch.tensor(list(places))
        z = latents.val.batch(rows_of_problem).float()
        with torch.no_grad():
            predicted = rollout(
                step.ema, z[:, :1], latents.val.condition_NC[rows_of_problem], z.shape[1] - 1
            )
        error = (predicted - z[:, 1:]).flatten(2).norm(dim=-1) / z[:, 1:].flatten(2).norm(dim=-1)
        assert best[f"val/{name}/nrmse_rollout"] == pytest.approx(error.mean().item(), rel=1e-5)


def test_a_single_problem_has_no_figures_of_its_own_beside_those_of_the_whole(scored):
    _, run_dir = scored(data__task=["burgers1d"], evaluation__num_examples=1)
    for row in [*read_metrics(run_dir).epochs, read_metrics(run_dir).summary]:
        assert not any("burgers1d" in name for name in row)
    saved = json.loads((run_dir / "scores.json").read_text())
    assert "tasks" not in saved
    assert saved["picture"].endswith("prediction.png")


def test_each_problem_is_learnt_and_scored_as_it_is_alone(scored, mixed_data):
    scores, run_dir = scored(stages__operator__epochs=12, evaluation__num_examples=1)
    assert list(scores.problems) == TASKS
    for kind in ("rollout", "one_step", "persistence_rollout"):
        own = [getattr(of_problem, kind)["nRMSE"] for of_problem in scores.problems.values()]
        assert getattr(scores, kind)["nRMSE"] == pytest.approx(sum(own) / 3)
    assert scores.num_trajectories == 6 + 4 + 3
    assert {n: s.num_trajectories for n, s in scores.problems.items()}["advection1d"] == 3
    assert (scores.picture, scores.step_dt) == (None, None)
    names = sorted(path.name for path in run_dir.glob("*.png"))
    assert names == sorted(f"prediction-{name}.png" for name in TASKS)

    with h5py.File(mixed_data / "advection1d_test.h5") as file:
        u = torch.from_numpy(file["tensor"][:, ::4]).double()
    error = (u[:, :1] - u[:, 1:]).norm(dim=-1) / u[:, 1:].norm(dim=-1)
    found = scores.problems["advection1d"].persistence_rollout["nRMSE"]
    assert found == pytest.approx(error.mean().item(), rel=1e-5)

    saved = Scores.model_validate(read_json(run_dir / "scores.json"))
    assert saved == scores
    summary = read_metrics(run_dir).summary
    assert summary["test/nrmse_rollout"] == scores.rollout["nRMSE"]
    for name, of_problem in scores.problems.items():
        assert summary[f"test/{name}/nrmse_rollout"] == of_problem.rollout["nRMSE"]
        persistence = of_problem.persistence_rollout["nRMSE"]
        assert summary[f"test/{name}/nrmse_persistence_rollout"] == persistence
        assert of_problem.rollout["nRMSE"] < persistence, name


def test_a_stopped_mixed_run_resumes_to_the_same_weights(prepared, assert_same_weights):
    config, latents, _, whole = prepared("whole")
    train(config, latents, whole)
    config, latents, _, halves = prepared("halves")
    stop = threading.Event()
    with pytest.raises(Interrupted):
        train(config, latents, halves, stop=stop, on_first_step=lambda _: stop.set())
    config, latents, _, halves = prepared("halves")
    result = train(config, latents, halves)
    assert result.resumed_from_step == 1
    assert_same_weights(whole, halves)
    last, name = "checkpoints/last.pt", "val/advection1d/nrmse_rollout"
    first, second = (checkpoint.load(d / last)["position"]["history"][-1] for d in (whole, halves))
    assert first[name] == pytest.approx(second[name])


def test_a_checkpoint_of_other_equations_is_refused_and_of_the_same_ones_taken(prepared):
    config, latents, _, first = prepared("first", data__task=["burgers1d"])
    last = train(config, latents, first).checkpoint.with_name("last.pt")
    config, latents, _, second = prepared("second", data__task=["burgers1d", "advection1d"])
    message = "was trained on burgers1d, and this run has burgers1d, advection1d"
    with pytest.raises(CheckpointError, match=message):
        train(config, latents, second, resume=last)
    names = ["burgers1d", "burgers1d_nu0.1"]  # two tasks of the one equation
    config, latents, _, third = prepared("third", data__task=names, stages__operator__epochs=9)
    assert train(config, latents, third, resume=last).resumed_from_step > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("preload", ["gpu", "ram"])
def test_a_cuda_graph_draws_mixed_batches_as_eager_does(prepared, preload):
    losses = {}
    for mode in ("off", "graph"):
        config, latents, _, run_dir = prepared(
            mode,
            training__device="cuda",
            training__precision="fp32",
            training__compile=mode,
            features__preload=preload,
        )
        train(config, latents, run_dir)
        losses[mode] = [row["train/loss"] for row in read_metrics(run_dir).epochs]
    assert losses["graph"] == pytest.approx(losses["off"], rel=1e-3)


def test_a_list_of_one_trains_what_the_equation_alone_trains(
    prepared, tiny_config, stage_all, tmp_path, assert_same_weights
):
    config, latents, _, run_dir = prepared("list", data__task=["burgers1d"])
    train(config, latents, run_dir)
    alone = tiny_config()
    sources = stage_all(alone)
    entries = {"burgers1d": build_cache(alone, sources)}
    assert entries["burgers1d"].reused
    (tmp_path / "alone").mkdir()
    train(alone, load_latents(alone, {"burgers1d": sources}, entries), tmp_path / "alone")
    assert_same_weights(run_dir, tmp_path / "alone")
