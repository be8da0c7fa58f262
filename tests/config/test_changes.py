"""What of a config was changed, and the name that a run has of it."""

import pytest
import yaml

from ups.config import dump_config, load_changed, load_config, run_title
from ups.errors import ConfigError


def test_what_is_changed_is_what_is_not_as_in_the_file():
    asked = {"latent.dim": 48, "training.seed": 0, "stages.operator.epochs": 7}
    config, changed = load_changed("smoke", asked)
    assert (config.latent.dim, config.stages.operator.epochs) == (48, 7)
    assert load_config("smoke").training.seed == 0  # so that it is no change
    assert changed == {"latent.dim": 48, "stages.operator.epochs": 7}
    assert load_changed("smoke") == (load_config("smoke"), {})


def test_of_a_file_that_is_no_config_by_itself_all_that_is_given_is_changed(tmp_path):
    tree = yaml.safe_load(dump_config(load_config("smoke")))
    tree["latent"]["dim"] = -1
    path = tmp_path / "half.yaml"
    path.write_text(yaml.safe_dump(tree))
    assert load_changed(path, {"latent.dim": 16})[1] == {"latent.dim": 16}
    with pytest.raises(ConfigError, match=r"latent\.dim"):
        load_changed(path, {"training.seed": 1})


@pytest.mark.parametrize(
    ("changed", "title"),
    [
        ({}, "smoke"),
        ({"latent.dim": 48, "training.seed": 1}, "smoke latent.dim=48 seed=1"),
        ({"stages.operator.optimizer.lr": 1e-3}, "smoke optimizer.lr=0.001"),
        ({"data.sources": None, "data.root": "/d", "data.rows": None}, "smoke data.rows=null"),
        ({"data.task.burgers1d_nu0.1.sources.train": [], "latent.dim": 8}, "smoke latent.dim=8"),
        (
            {"data.generate.num_trajectories.val": 8, "data.generate.nu": 1},
            "smoke data.generate.nu=1",
        ),
        ({"name": "warm", "runs_dir": "/r", "training.latent_cache_dir": "/c"}, "smoke"),
        ({"data.rows": "x" * 30}, f"smoke data.rows={'x' * 23}…"),
        (dict.fromkeys("abcdef", 1), "smoke a=1 b=1 c=1 d=1 and 2 more"),
    ],
)
def test_a_run_is_called_by_what_was_changed(changed, title):
    assert run_title("smoke", changed) == title
