"""`ups cache build` and `ups train`: the whole path from a shell, without Prefect."""

import re

import pytest
import yaml
from typer.testing import CliRunner

from ups.cli import app, parse_settings
from ups.errors import ConfigError


@pytest.fixture
def ups(tiny_config, tmp_path):
    """`ups(*arguments)`: exit code and output, with CONFIG standing for a tiny config's path."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_config().model_dump(mode="json")))

    def call(*arguments):
        given = [str(path) if argument == "CONFIG" else argument for argument in arguments]
        result = CliRunner().invoke(app, given)
        return result.exit_code, result.output

    return call


def test_the_cache_is_built_once_and_again_when_told(ups):
    code, first = ups("cache", "build", "CONFIG", "--num-workers", "2", "--batch-size", "4")
    assert (code, first.startswith("built ")) == (0, True), first
    _, second = ups("cache", "build", "CONFIG")
    assert second.startswith("reused ")
    _, third = ups("cache", "build", "CONFIG", "--overwrite")
    assert third.startswith("built ")
    _, other = ups("cache", "build", "CONFIG", "--cache-dtype", "float32")
    assert other.startswith("built ")
    assert other.split()[1] != first.split()[1]


def test_train_ends_with_the_score_and_resumes_by_its_name(ups, tmp_path):
    code, output = ups("train", "CONFIG", "--run-id", "mine", "--set", "stages.operator.epochs=2")
    assert code == 0, output
    assert re.search(r"test rollout nRMSE \d\.\d{4}, persistence \d\.\d{4}", output)
    assert "first optimizer step" in output
    assert len(list((tmp_path / "runs").glob("*-mine"))) == 1
    code, output = ups("train", "CONFIG", "--run-id", "mine", "--set", "stages.operator.epochs=2")
    assert code == 0
    assert "first optimizer step" not in output  # every step was taken before
    assert len(list((tmp_path / "runs").glob("*-mine"))) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "CONFIG", "--set", "latent.tokens=7"], "latent.tokens: found 7"),
        (["train", "CONFIG", "--run-id", "a/b"], "expected letters, digits"),
        (["train", "nowhere"], "no config 'nowhere'"),
        (["cache", "build", "CONFIG", "--device", "tpu"], "training.device: found 'tpu'"),
    ],
)
def test_what_is_wrong_is_one_message_and_exit_code_1(ups, arguments, message):
    code, output = ups(*arguments)
    assert code == 1
    assert message in output
    assert "Traceback" not in output


def test_settings_are_yaml_and_need_a_key():
    assert parse_settings(["a.b=[1, 2]", "c=true"]) == {"a.b": [1, 2], "c": True}
    with pytest.raises(ConfigError, match="expected KEY=VALUE"):
        parse_settings(["latent.dim"])
