"""Score a trained operator on the test split of any config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ups.config import ProblemConfig, RunConfig, parse_config
from ups.data.sources import Staged, open_file
from ups.errors import InputError
from ups.inference.inputs import frames_per_step
from ups.inference.operator import TrainedOperator
from ups.inference.problems import TrainedProblem
from ups.progress import Show
from ups.training.evaluate import Scores, picture_of, score_problem

OWN_SECTIONS = ("latent", "encoder", "operator")


def config_to_score(operator: TrainedOperator, config: RunConfig) -> RunConfig:
    """The data and the evaluation of a config, with the model of an operator.

    Raises:
        InputError: they are of other equations, or on another grid.
        InvalidConfig: the config gives fewer frames than the operator needs.
    """
    own = operator.config
    trained = own.data.equations
    if others := [name for name in config.data.equations if name not in trained]:
        raise InputError(
            f"{config.name} has data of {', '.join(others)}, and the operator was trained on "
            f"{', '.join(trained)}: score it on those"
        )
    if config.data.grid_points != own.data.grid_points:
        raise InputError(
            f"{config.name} has data.grid_points {config.data.grid_points}, and the operator was "
            f"trained on a grid of {own.data.grid_points}: score it on data of that grid"
        )
    tree, of_operator = config.model_dump(mode="json"), own.model_dump(mode="json")
    tree |= {section: of_operator[section] for section in OWN_SECTIONS}
    tree["training"] |= {"time_stride": own.training.time_stride}
    return parse_config(tree, f"{config.name}, with this operator")


def score(
    operator: TrainedOperator,
    config: RunConfig,
    test: Mapping[str, Sequence[Staged]],
    folder: Path | None,
    show: Show,
) -> Scores:
    """Errors of an operator's rollouts over a whole test split, problem by problem.

    Args:
        config: of `config_to_score`.
        test: problem → the staged files of its test split.
        folder: gets `scores.json` and a picture of each problem; None: nothing is written.
        show: makes the callbacks that take how far each problem has got.
    Raises:
        InputError: the frames of the files are not a whole part of the operator's step apart.
        DataError, TrainingDiverged: see `ups.training.evaluate.evaluate`.
    """
    of_problems, by_problem = {}, config.by_problem()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    for name, own_config in by_problem.items():
        trained, own_config = _trained_and_stride(operator, own_config, test[name])
        picture = None if folder is None else picture_of(folder, name, by_problem)
        of_problems[name] = score_problem(
            own_config,
            operator.config.data.equations,
            operator.model,
            test[name],
            trained.encoder,
            picture,
            show(config.data.label(own_config.problem, "scored"), "trajectories"),
        )
    scores = Scores.together(of_problems)
    if folder is not None:
        scores.save(folder)
    return scores


def _trained_and_stride(
    operator: TrainedOperator, config: ProblemConfig, test: Sequence[Staged]
) -> tuple[TrainedProblem, ProblemConfig]:
    """What the operator knows of a problem, and the problem's config with its time stride."""
    with open_file(config, test[0].path, test[0].rows) as file:
        value, dt = file.parameter, file.dt
    name, equation = config.problem.name, config.problem.equation
    known = operator.problems.get(name)
    is_known = known is not None and known.equation.name == equation
    trained = operator.problem_of(name if is_known else None, **{file.equation.parameter: value})
    if (stride := frames_per_step(trained.step_dt, dt)) is None:
        raise InputError(
            f"{test[0].path}: found frames {dt:g} apart, expected a whole part of the operator's "
            f"step, {trained.step_dt:g}: score it on data saved more often"
        )
    training = config.training.model_copy(update={"time_stride": stride})
    return trained, config.model_copy(update={"training": training})
