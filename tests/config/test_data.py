"""`data.task`: one equation, or a list of tasks; faults of a list, several at once."""

import pytest
import yaml

from ups.config import dump_config, load_config, parse_config
from ups.errors import ConfigError

COUNTS = {"train": 4, "val": 2, "test": 2}


def with_tasks(*tasks, **data):
    return {"name": "x", "data": {"task": list(tasks), **data}}


def faults(tree):
    with pytest.raises(ConfigError) as error:
        parse_config(tree, "x")
    return [line.removeprefix("x: ") for line in str(error.value).splitlines()]


def test_a_single_equation_is_one_problem_with_the_sections_sources():
    config = load_config("smoke")
    (task,) = config.data.problems
    assert (task.name, task.equation) == ("burgers1d", "burgers1d")
    assert (task.sources, task.generate) == (config.data.sources, config.data.generate)
    assert config.data.equations == ("burgers1d",)
    assert yaml.safe_load(dump_config(config))["data"]["task"] == "burgers1d"


@pytest.mark.parametrize("step", [1, -1])
def test_a_name_alone_is_local_files_of_the_equation_it_begins_with_in_whatever_order(step):
    expected = [
        ("advection1d_beta0.4", "advection1d", None),
        ("burgers1d", "burgers1d", None),
        ("burgers1d_b", "burgers1d", None),
    ][::step]
    data = parse_config(with_tasks(*(name for name, _, _ in expected))).data
    assert [(p.name, p.equation, p.sources) for p in data.problems] == expected
    assert data.equations == ("burgers1d", "advection1d")


def test_each_problem_has_a_config_of_its_own():
    config = load_config("smoke_mixed")
    alone = config.by_problem()["advection1d_beta0.4"]
    assert alone.problem == config.data.problems[2]
    assert alone.data.equations == ("advection1d",)
    assert alone.training == config.training


def test_sources_and_generate_beside_a_list_are_refused_and_told_where_to_go():
    sources = {split: [{"key": "a.h5"}] for split in COUNTS}
    found = faults(
        with_tasks("burgers1d", sources=sources, generate={"nu": 1, "num_trajectories": COUNTS})
    )
    assert [line.partition(": found beside a list")[0] for line in found] == [
        "data.sources",
        "data.generate",
    ]
    assert "move it to data.task.0.generate" in found[1]


def test_faults_of_several_problems_are_reported_at_once_with_their_keys():
    found = faults(
        with_tasks(
            "heat1d",
            {"name": "burgers1d", "sorces": {}},
            {"name": "a/b", "equation": "burgers1d"},
            {"name": "c", "equation": "waves", "sources": {"train": [{"key": "/x"}]}},
        )
    )
    assert sorted(line.partition(": ")[0] for line in found) == [
        "data.task.0.equation",
        "data.task.1.sorces",
        "data.task.2.name",
        "data.task.3.equation",
        "data.task.3.sources.train.0.key",
    ]
    assert any("did you mean data.task.1.sources?" in line for line in found)
    assert any("'burgers1d' or 'advection1d'" in line for line in found)


@pytest.mark.parametrize(
    ("generate", "messages"),
    [
        ({"beta": 0.4}, ["nu: missing, the parameter of burgers1d", "beta: found with"]),
        ({}, ["nu: missing"]),
    ],
)
def test_the_parameter_of_another_equation_is_no_substitute(generate, messages):
    generate = {**generate, "num_trajectories": COUNTS}
    in_list = faults(with_tasks({"name": "burgers1d", "generate": generate}))
    alone = faults({"name": "x", "data": {"generate": generate}})
    for found, key in ((in_list, "data.task.0.generate."), (alone, "data.generate.")):
        assert len(found) == len(messages)
        for line, message in zip(found, messages, strict=True):
            assert line.startswith(key + message)


def test_the_parameter_of_the_data_is_that_of_their_equation_and_of_what_is_generated():
    alone = parse_config({"name": "x", "data": {"parameter": {"nu": 0.01}}})
    (in_list,) = parse_config(
        with_tasks({"name": "advection1d", "parameter": {"beta": 0.4}})
    ).data.problems
    assert (alone.data.problems[0].parameter_value, in_list.parameter_value) == (0.01, 0.4)
    own = alone.by_problem()["burgers1d"]
    assert own.problem.parameter_value == 0.01
    assert parse_config(yaml.safe_load(dump_config(own)), "x").data.problems == own.data.problems
    assert faults({"name": "x", "data": {"parameter": {"beta": 0.4}}}) == [
        "data.parameter.nu: missing, the parameter of burgers1d",
        "data.parameter.beta: found with burgers1d, whose parameter is nu",
    ]
    generate = {"nu": 0.02, "num_trajectories": COUNTS}
    both = {"name": "burgers1d", "parameter": {"nu": 0.01}, "generate": generate}
    assert faults(with_tasks(both)) == [
        "data.task.0.parameter.nu: found 0.01, and 0.02 as generate.nu: leave parameter out"
    ]
    (line,) = faults(with_tasks("burgers1d", parameter={"nu": 0.01}))
    assert line.startswith("data.parameter: found beside a list of tasks")


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ([], "data.task: found an empty list, expected tasks"),
        (["burgers1d", "burgers1d"], "data.task.1.name: found 'burgers1d' again"),
        ("heat1d", "data.task: found 'heat1d'; input should be 'burgers1d' or 'advection1d'"),
        ([7], "data.task.0: found 7"),
        (
            [{"name": "burgers1d", "sources": {"train": [{"key": "a.h5"}]}}],
            "data.task.0.sources: found no val, test, expected all of train, val, test",
        ),
    ],
)
def test_what_is_no_list_of_problems_is_refused_with_its_key(task, message):
    (line,) = faults({"name": "x", "data": {"task": task}})
    assert line.startswith(message)
