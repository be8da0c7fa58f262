"""What a prediction costs: each operator, and the solver at the resolution that errs as much."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from speed.harness import Contender, Result, alternate
from speed.measure import timed
from speed.operator_training import (
    X_STRIDE,
    Choice,
    config_of,
    fields,
    mean_error,
    predict,
    staged_of,
)
from speed.settings import Settings
from ups.data.sources import open_files
from ups.equations.burgers import solve
from ups.latents.encode import fit_encoder
from ups.models.build import build_operator

POINTS = (16, 24, 32, 48, 64, 96, 128, 192, 256)  # then multiples of the grid that is scored
MOST_REPEATS = 3


def measure(
    settings: Settings, nu: float, choices: Mapping[str, Choice], errors: Mapping[str, float]
) -> tuple[list[Result], list[Result]]:
    """Milliseconds a trajectory, on one thread: of the operators, and of the solver.

    All predict the whole test set at once, from a field to fields. An operator's weights are new,
    which its time does not depend on. The solver is given and gives every fourth point; its number
    of internal points rises until it errs less than half as much as the best operator.

    Args:
        errors: nRMSE of each operator.
    Returns:
        The operators, and the solver at each number of points; extras tell the nRMSE.
    """
    torch.set_num_threads(1)
    runs, found = [], dict(errors)
    for name in choices:
        config = config_of(settings, name, nu, choices[name])
        encoder = fit_encoder(config, open_files(config, staged_of(settings, nu)["train"]))
        encoder = encoder.to(settings.device)
        model = build_operator(config).to(settings.device).eval()
        u_NTX, condition_NC = fields(settings, config, nu, "test")
        u0_N1X = u_NTX[:, :1, :: config.encoder.x_stride].contiguous()
        num_steps = u_NTX.shape[1] - 1
        work = partial(predict, model, encoder, u0_N1X, condition_NC, num_steps)
        runs.append((name, work))
    scored_NTX = u_NTX[..., ::X_STRIDE].contiguous()
    t_T = torch.linspace(0, 2, scored_NTX.shape[1], dtype=torch.float64)
    grid = scored_NTX.shape[-1]
    for points in [p for p in POINTS if p < grid] + [grid << i for i in range(4)]:
        options = {"internal_points": points, "device": settings.device}
        work = partial(solve, scored_NTX[:, 0], nu, t_T, **options)
        name = f"{points} points"
        found[name] = mean_error(work()[:, 1:], scored_NTX)
        runs.append((name, work))
        if found[name] < min(errors.values()) / 2:
            break
    per_trajectory = 1e3 / len(scored_NTX)
    contenders = [
        Contender(name, "peer", lambda work=work: timed(work, settings.device) * per_trajectory)
        for name, work in runs
    ]
    results = alternate(contenders, min(MOST_REPEATS, settings.repeats))
    for result in results:
        result.extras = {"nRMSE": [found[result.name]]}
    results[0].role = "ours"
    return results[: len(choices)], results[len(choices) :]


def as_good(solver: list[Result], name: str, error: float) -> Result:
    """The solver with the fewest points that errs no more than this operator."""
    least = next((r for r in solver if r.extras["nRMSE"][0] <= error), None)
    label = f"solver as good as {name}"
    if least is None:
        return Result(label, "peer", failed="at none of the resolutions")
    points = float(least.name.split()[0])
    return Result(label, "peer", least.values, {**least.extras, "points": [points]})
