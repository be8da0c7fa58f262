"""`data.task`: one equation, or a list of tasks; faults of a list, several at once."""

import pytest
import yaml

from ups.config import CONFIG_DIR, dump_config, load_config, parse_config, read_config
from ups.errors import ConfigError

COUNTS = {"train": 4, "val": 2, "test": 2}


def with_tasks(*tasks, **data):
    return {"name": "x", "data": {"task": list(tasks), **data}}


def faults(tree):
    with pytest.raises(ConfigError) as error:
        parse_config(tree, "x")
    return [line.removeprefix("x: ") for line in str(error.value).splitlines()]


def test_a_single_equation_is_one_task_with_the_sections_sources():
    config = load_config("smoke")
    (task,) = config.data.tasks
    assert (task.name, task.equation) == ("burgers1d", "burgers1d")
    assert (task.sources, task.generate) == (config.data.sources, config.data.generate)
    assert config.data.equations == ("burgers1d",)
    assert yaml.safe_load(dump_config(config))["data"]["task"] == "burgers1d"


def test_a_name_alone_is_a_task_of_local_files_and_its_equation_is_that_it_begins_with():
    tasks = parse_config(with_tasks("advection1d_beta0.4", "burgers1d")).data.tasks
    assert [(t.name, t.equation, t.sources) for t in tasks] == [
        ("advection1d_beta0.4", "advection1d", None),
        ("burgers1d", "burgers1d", None),
    ]


def test_the_order_of_the_list_does_not_change_the_equations():
    for names in (("advection1d", "burgers1d"), ("burgers1d", "advection1d", "burgers1d_b")):
        equations = parse_config(with_tasks(*names)).data.equations
        assert equations == ("burgers1d", "advection1d")


def test_each_task_has_a_config_of_its_own():
    config = load_config("smoke_mixed")
    alone = config.by_task()["advection1d_beta0.4"]
    assert alone.data.only_task == config.data.tasks[2]
    assert alone.data.equations == ("advection1d",)
    assert alone.training == config.training


def test_a_config_with_several_tasks_survives_being_saved(tmp_path):
    config = load_config("smoke_mixed")
    path = tmp_path / "saved.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config


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


def test_faults_of_several_tasks_are_reported_at_once_with_their_keys():
    found = faults(
        with_tasks(
            "heat1d",
            {"name": "burgers1d", "sorces": {}},
            {"name": "a/b", "equation": "burgers1d"},
            {"name": "c", "equation": "waves", "sources": {"train": [{"key": "/x"}]}},
            generate={"num_trajectories": COUNTS},
        )
    )
    assert sorted(line.partition(": ")[0] for line in found) == [
        "data.generate",
        "data.task.0.equation",
        "data.task.1.sorces",
        "data.task.2.name",
        "data.task.3.equation",
        "data.task.3.sources.train.0",
    ]
    assert any("did you mean sources?" in line for line in found)
    assert any("'burgers1d' or 'advection1d'" in line for line in found)


def test_the_tasks_that_are_valid_stay_where_others_are_not():
    tree = yaml.safe_load((CONFIG_DIR / "smoke_mixed.yaml").read_text())
    tree["data"]["task"][1]["generate"]["nu"] = -1
    from ups.config import _parse

    parsed = _parse(tree, "x")
    names = [task.name for task in parsed.config.data.tasks]
    assert names == ["burgers1d_nu0.01", "advection1d_beta0.4"]
    assert parsed.replaced == ("data.task",)


@pytest.mark.parametrize(
    ("generate", "messages"),
    [
        ({"beta": 0.4}, ["nu: missing, burgers1d is generated with it", "beta: found with"]),
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


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ([], "data.task: found an empty list, expected tasks"),
        (["burgers1d", "burgers1d"], "data.task.1.name: found 'burgers1d' again"),
        ("heat1d", "data.task: found 'heat1d'; input should be 'burgers1d' or 'advection1d'"),
        ([7], "data.task.0: found 7"),
        (
            [{"name": "burgers1d", "sources": {"train": [{"key": "a.h5"}]}}],
            "data.task.0: sources lack val, test",
        ),
    ],
)
def test_what_is_no_list_of_tasks_is_refused_with_its_key(task, message):
    found = read_config("smoke", {"data.task": task, "data.sources": None, "data.generate": None})
    assert [line for line in found.faults if line.startswith(message)]
