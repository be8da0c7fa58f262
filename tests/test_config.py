import re

import pytest

from ups.config import CONFIG_DIR, Features, dump_config, load_config, parse_config
from ups.errors import ConfigError


@pytest.mark.parametrize("name", sorted(p.stem for p in CONFIG_DIR.glob("*.yaml")))
def test_every_config_that_ships_loads_and_is_named_after_its_file(name):
    assert load_config(name).name == name


def test_every_fault_is_reported_at_once_with_its_key():
    tree = {"name": "x", "latnt": {}, "latent": {"dimm": 3}, "training": {"batch_size": "many"}}
    with pytest.raises(ConfigError) as error:
        parse_config(tree, "x.yaml")
    lines = str(error.value).splitlines()
    assert len(lines) == 3
    assert "x.yaml: latnt: unknown key; did you mean latent?" in lines
    assert "x.yaml: latent.dimm: unknown key; did you mean dim?" in lines
    assert any("training.batch_size: found 'many'" in line for line in lines)


def test_tokens_that_do_not_divide_the_grid_are_refused():
    with pytest.raises(ConfigError, match=r"latent.tokens: found 15, expected a divisor of .*1024"):
        load_config("smoke", {"latent.tokens": 15})


def test_tokens_that_the_u_cannot_halve_are_refused():
    with pytest.raises(ConfigError, match="expected a multiple of 4"):
        load_config("smoke", {"latent.tokens": 2, "operator.depths": [1, 1, 1, 1, 1]})


def test_an_even_number_of_stages_is_refused():
    with pytest.raises(ConfigError, match="operator.depths: found .* odd number"):
        load_config("smoke", {"operator.depths": [1, 1]})


def test_empty_row_ranges_are_refused():
    with pytest.raises(ConfigError, match=r"rows \[5, 5\] are empty"):
        load_config("smoke", {"data.sources.test": [{"key": "a.h5", "rows": [5, 5]}]})


def test_sources_must_name_all_splits():
    with pytest.raises(ConfigError, match="sources lack val, test"):
        load_config("smoke", {"data.sources": {"train": [{"key": "a.h5"}]}})


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"no config 'smok'.*smoke"):
        load_config("smok")


def test_an_override_below_a_value_is_refused():
    with pytest.raises(ConfigError, match="name is a value, not a section"):
        load_config("smoke", {"name.first": 1})


def test_a_dumped_config_loads_to_the_same_config(tmp_path):
    config = load_config("smoke", {"features": Features.legacy().model_dump()})
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert config.features.is_legacy


def test_a_file_that_is_not_yaml_is_refused(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("name: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(path)


def test_the_root_can_be_set_from_outside(monkeypatch, tmp_path):
    monkeypatch.setenv("PDEBENCH_ROOT", str(tmp_path))
    assert load_config("smoke").data_root == tmp_path


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"data.sources.train": [{"kee": "a.h5"}]}, "kee: unknown key; did you mean key"),
        ({"data.generate.nuu": 1.0}, "nuu: unknown key; did you mean nu"),
        ({"training.batch_size": True}, "training.batch_size: found True"),
        ({"stages.operator.optimizer.betas": [1.5, 2]}, "betas.0: found 1.5"),
        ({"data.sources.val": [{"key": "/etc/x.h5"}]}, "without a leading /"),
        ({"data.sources.val": [{"key": "a/../../x.h5"}]}, "without .."),
        (
            {"training.compile": "graph", "training.accumulation_steps": 4},
            "training.accumulation_steps: found 4, expected 1",
        ),
    ],
)
def test_each_wrong_value_is_refused_with_its_key(overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config("smoke", overrides)


def test_credentials_in_an_endpoint_are_refused_and_not_repeated():
    with pytest.raises(ConfigError, match="holds credentials") as error:
        load_config("smoke", {"data.endpoint_url": "http://KEYID:hunter2@127.0.0.1:9000"})
    assert "hunter2" not in str(error.value)
