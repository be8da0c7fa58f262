"""One step, against one written out; batches in the epoch's order, from any place on."""

import copy

import pytest
import torch

from ups.latents.datasets import PreloadedCacheDataset
from ups.latents.order import first_epoch_windows
from ups.models.conditioning import conditioning
from ups.training.step import Feed, TrainStep, epoch_order

PAIRS = {"training__pairs_per_step": 7, "operator__history": 2, "training__rollout_horizon": 3}


def numbered(num):
    """A data set whose trajectory i holds i, with ν = (i + 1) / 100."""
    z_NTKD = torch.arange(num).view(num, 1, 1, 1).expand(num, 3, 2, 4).half()
    return PreloadedCacheDataset(z_NTKD, condition((torch.arange(num) + 1) / 100), "cpu")


def condition(nu_N):
    return conditioning(["burgers1d"], "burgers1d", nu_N, 0.1)


def drawn(batch):
    return batch[0][:, 0, 0, 0].int().tolist()


def test_an_epoch_goes_through_the_order_from_any_place_with_each_parameter_beside(tiny_config):
    feed, order = Feed(numbered(5), tiny_config(), "cpu"), torch.tensor([3, 0, 4, 1, 2])
    feed.begin_epoch(order, 0)
    batches = [feed.draw(2), feed.draw(2), feed.draw(1)]
    assert [drawn(batch) for batch in batches] == [[3, 0], [4, 1], [2]]
    conditions = torch.cat([batch[1] for batch in batches])
    assert torch.equal(conditions, condition((order + 1) / 100))
    feed.begin_epoch(order, 3)  # in its middle
    assert drawn(feed.draw(2)) == [1, 2]


def test_a_new_epoch_reuses_the_memory_that_a_graph_would_hold(tiny_config):
    feed = Feed(numbered(4), tiny_config(), "cpu")
    places = feed._order_M.data_ptr(), feed._next.data_ptr()
    feed.begin_epoch(torch.tensor([1, 0, 3, 2]), 0)
    feed.draw(3)
    feed.begin_epoch(torch.tensor([2, 3, 0, 1]), 0)
    assert drawn(feed.draw(2)) == [2, 3]
    assert (feed._order_M.data_ptr(), feed._next.data_ptr()) == places


def of_pairs(num, num_frames):
    """A data set whose frame t of trajectory i holds 100 i + t, with ν = (i + 1) / 100."""
    values = 100 * torch.arange(num)[:, None] + torch.arange(num_frames)
    z_NTKD = values[..., None, None].expand(num, num_frames, 2, 4).float()
    return PreloadedCacheDataset(z_NTKD, condition((torch.arange(num) + 1) / 100), "cpu")


def test_an_epoch_of_pairs_takes_each_trajectory_as_often_and_early_starts_more_often(tiny_config):
    config = tiny_config(**PAIRS)
    data = of_pairs(300, 12)
    feed, order = Feed(data, config, "cpu"), epoch_order(data, config, 1)
    assert len(feed) == len(order) == 300 * 8  # 12 frames less the 5 of a pair, and one
    feed.begin_epoch(order, 0)
    pairs, conditions = feed.draw(len(order))
    pairs = pairs[..., 0, 0].int()
    assert torch.equal(pairs - pairs[:, :1], torch.arange(5).expand(2400, 5))
    trajectories, starts = pairs[:, 0] // 100, pairs[:, 0] % 100
    for lap in trajectories.split(300):
        assert torch.equal(lap.sort().values, torch.arange(300))
    assert not torch.equal(trajectories[:300], trajectories[300:600])
    assert torch.equal(conditions, condition((trajectories + 1) / 100))
    weights = 1 / torch.arange(1, 9)
    expected = 2400 * weights / weights.sum()
    assert ((starts.bincount(minlength=8) - expected).abs() < 4 * expected.sqrt()).all()
    uniform = tiny_config(**PAIRS, training__early_pairs=0.0)
    counts = (epoch_order(data, uniform, 1) % 8).bincount(minlength=8)
    assert ((counts - 300).abs() < 4 * 300**0.5).all()


@pytest.mark.parametrize("pairs", [None, 7])
def test_the_first_epoch_takes_one_window_of_trajectories_after_the_other(tiny_config, pairs):
    config, data = tiny_config(training__pairs_per_step=pairs), of_pairs(300, 12)
    laps = 1 if pairs is None else 12 - 2 + 1  # the starts of a pair of two frames
    trajectories = epoch_order(data, config, 0) // laps
    assert len(trajectories) == laps * 300
    for window in first_epoch_windows(300, config.training.seed):
        for lap in trajectories[: laps * len(window)].split(len(window)):
            assert lap.tolist() != window.tolist()  # shuffled
            assert sorted(lap.tolist()) == sorted(window.tolist())
        trajectories = trajectories[laps * len(window) :]


def test_a_step_of_pairs_has_the_loss_of_these_pairs_alone(tiny_config):
    config = tiny_config(**PAIRS, training__device="cpu", training__accumulation_steps=2)
    step, data = TrainStep(config), of_pairs(4, 12)
    torch.nn.init.normal_(step.model.head.weight, std=0.1)
    other = copy.deepcopy(step.model)
    wide = PreloadedCacheDataset(torch.randn(4, 12, 8, 16), data.condition_NC, "cpu")
    step.begin(wide, 10)
    order = epoch_order(wide, config, 0)
    step.begin_epoch(order, first_batch=1)
    step()
    errors = []
    for item in order[14:28].tolist():
        z, told = wide.z_NTKD[item // 8], wide.condition_NC[item // 8][None]
        frames = list(z[item % 8 :][:2])
        for target in z[item % 8 + 2 :][:3]:
            frames.append(other(torch.stack(frames[-2:])[None], told)[0])
            errors.append((frames[-1] - target).norm() / target.norm())
    assert step.loss_sum.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-4)


@pytest.fixture
def step_on(tiny_config):
    """`step_on(**overrides)`: a step whose operator is no identity, and a batch (6, 5, 8, 16)."""

    def make(**overrides):
        step = TrainStep(tiny_config(training__device="cpu", **overrides))
        generator = torch.Generator().manual_seed(0)
        weight = step.model.head.weight
        weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
        z_BTKD = torch.randn(6, 5, 8, 16, generator=generator)
        step.begin(PreloadedCacheDataset(z_BTKD, condition(torch.full((6,), 0.02)), "cpu"), 10)
        step.begin_epoch(torch.arange(6))
        return step, z_BTKD

    return make


@pytest.mark.parametrize(("horizon", "history"), [(1, 1), (3, 1), (1, 3), (2, 2)])
def test_loss_and_gradient_are_those_of_every_pair_fed_back_through_the_whole_horizon(
    step_on, horizon, history
):
    step, z_BTKD = step_on(
        training__rollout_horizon=horizon, training__grad_clip=1e9, operator__history=history
    )
    other, told = copy.deepcopy(step.model), condition(torch.full((1,), 0.02))
    errors = []
    for trajectory in z_BTKD:
        for last in range(history - 1, 5 - horizon):
            frames = list(trajectory[: last + 1])
            for target in trajectory[last + 1 : last + 1 + horizon]:
                frames.append(other(torch.stack(frames[-history:])[None], told)[0])
                errors.append((frames[-1] - target).norm() / target.norm())
    assert len(errors) == 6 * (6 - history - horizon) * horizon
    expected = torch.stack(errors).mean()
    expected.backward()
    step()
    assert step.loss_sum.item() == pytest.approx(expected.item(), rel=1e-4)
    first_moments = step.optimizer.state_dict()  # a tenth or so of the only gradient yet
    beta = step.config.stages.operator.optimizer.betas[0]
    found = torch.cat([m.flatten() for g in ("0", "1") for m in first_moments[g]["mean"]])
    gradients = [p.grad for p in other.parameters()]
    of_groups = [g for g in gradients if g.ndim > 1] + [g for g in gradients if g.ndim <= 1]
    wanted = (1 - beta) * torch.cat([g.flatten() for g in of_groups])
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item())


def test_the_gradient_is_clipped_to_its_norm(step_on):
    step, _ = step_on(training__grad_clip=0.01)
    step()
    beta = step.config.stages.operator.optimizer.betas[0]
    moments = [m for group in step.optimizer.state_dict().values() for m in group["mean"]]
    norm = torch.cat([m.flatten() for m in moments]).norm().item()
    assert norm == pytest.approx((1 - beta) * 0.01, rel=1e-3)


def test_the_average_follows_the_weights_by_its_share_and_is_what_is_saved(step_on):
    step, _ = step_on()
    for share in (0.9, 9 / 11):  # it forgets its first steps
        before = copy.deepcopy(step.ema.state_dict())
        step()
        live, saved = step.model.state_dict(), step.state_dict()["ema"]
        for name, value in saved.items():
            expected = before[name] + share * (live[name] - before[name])
            assert torch.allclose(value, expected, atol=1e-7), name
    assert not torch.equal(saved["head.weight"], live["head.weight"])


def test_the_seed_determines_the_weights(tiny_config):
    weights = [TrainStep(tiny_config(training__seed=seed)).model.embed.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_size_of_a_step_counts_each_weight_for_each_token_of_each_pair(tiny_config):
    data = of_pairs(4, 12)
    of_pairs_alone, of_whole = (
        TrainStep(tiny_config(training__device="cpu", **settings))
        for settings in (PAIRS, {"training__batch_size": 3})
    )
    weights = sum(p.numel() for p in of_pairs_alone.model.parameters())
    assert of_pairs_alone.multiplications(data) == 7 * 8 * weights
    weights = sum(p.numel() for p in of_whole.model.parameters())
    assert of_whole.multiplications(data) == 3 * 11 * 8 * weights
