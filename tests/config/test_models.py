"""Values, names and overrides: what is accepted, what is refused and in which words."""

import os
import re
import subprocess
import sys

import pytest

from ups.config import CONFIG_DIR, Features, dump_config, load_config
from ups.errors import ConfigError


@pytest.mark.parametrize("name", sorted(p.stem for p in CONFIG_DIR.glob("*.yaml")))
def test_every_config_that_ships_loads_and_is_named_after_its_file(name):
    assert load_config(name).name == name


def test_names_are_those_of_the_folder_that_the_environment_says(tmp_path):
    (tmp_path / "own.yaml").write_text("name: own")
    script = (
        "from ups.config import load_config\nprint(load_config('own').name)\nload_config('smoke')"
    )
    env = {**os.environ, "UPS_CONFIG_DIR": str(tmp_path)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.stdout == "own\n"
    assert f"no config 'smoke': expected a path, or a name in {tmp_path}: own" in done.stderr


@pytest.mark.parametrize("name", ["smoke", "smoke_mixed"])  # one problem, and several
def test_a_dumped_config_loads_to_the_same_config_and_a_broken_file_is_refused(tmp_path, name):
    config = load_config(name, {"features": Features.legacy().model_dump()})
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config))
    assert load_config(path) == config
    assert config.features.is_legacy
    path.write_text("name: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(path)


def test_the_root_can_be_set_from_outside(monkeypatch, tmp_path):
    monkeypatch.setenv("PDEBENCH_ROOT", str(tmp_path))
    assert load_config("smoke").data_root == tmp_path


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"encode.address": "tcp://a:1"}, "encode.address: found tcp://a:1, expected none with"),
        ({"encode.engine": "dask", "features.preload": "off"}, "encode.engine: found dask, exp"),
        ({"encode.engine": "dask", "features.stream": "on"}, "features.stream: found on, expected"),
        ({"latent.tokens": 15}, "tokens: found 15, expected a divisor of the 1024 points"),
        ({"data.grid_points": 500}, "points of an encoded frame, such as 20, 25 or 10"),
        ({"data.grid_points": 500, "latent.tokens": 300}, "frame, such as 250, 500 or 125"),
        ({"data.grid_points": 500, "operator": {}}, "such as 20, 10 or 50"),
        ({"data.grid_points": 101}, "such as 101"),  # 1 is too few for operator.token_kernel
        (
            {"data.grid_points": 125, "operator": {}},
            "none goes with this operator, operator.kind latent_cnn takes 25, 5 or 125",
        ),
        (
            {"encoder.kind": "identity", "latent.tokens": 1000, "operator": {"kind": "fno"}},
            "such as 1024, 512 or 256, with latent.dim 1, 2 or 4",
        ),
        ({"latent.tokens": 2, "operator": {"depths": [1] * 5}}, "expected a multiple of 4"),
        ({"operator": {"depths": [1, 1]}}, "operator.depths: found [1, 1], expected an odd number"),
        ({"data.sources.test": [{"key": "a.h5", "rows": [5, 5]}]}, "0.rows: found [5, 5]"),
        ({"name.first": 1}, "name is a value, not a section"),
        (
            {"data.sources.train": [{"kee": "a.h5"}]},
            "kee: unknown key; did you mean data.sources.train.0.key",
        ),
        ({"data.generate.nuu": 1.0}, "nuu: unknown key; did you mean data.generate.nu"),
        ({"training.batch_size": True}, "training.batch_size: found True"),
        ({"stages.operator.optimizer.betas": [1.5, 2]}, "betas.0: found 1.5"),
        ({"data.sources.val": [{"key": "a/../../x.h5"}]}, "without .."),
        (
            {"data.sources.val": [{"rows": [0, 1]}]},
            "val.0: found neither key, url nor path, expected",
        ),
        ({"data.sources.val": [{"path": "a", "key": "b"}]}, "val.0: found key and path, expected"),
        ({"data.sources.val": [{"url": "https://a/b.h5"}]}, "val.0.url: found beside generate"),
        ({"data.sources.val": [{"url": "https://a/"}]}, "val.0.url: found 'https://a/', expected"),
        ({"data.sources.val": [{"url": "ftp://a/b"}]}, "expected https://host/path/of/a/file"),
        ({"data.sources.val": [{"url": "hf://me/a.h5"}]}, "expected hf://datasets/OWNER/NAME/"),
        ({"data.sources.val": [{"url": "https://a/../b"}]}, "expected an address without .."),
        ({"data.sources.val": [{"url": "https://me:me@a/b"}]}, "val.0.url: holds credentials"),
        ({"data.sources.val": [{"url": "https://a/b?X-Amz-Signature=1"}]}, "holds credentials"),
        ({"data.sources.val": [{"path": "a", "bucket": "b"}]}, "val.0: found path and bucket"),
        ({"data.sources.val": [{"path": "a.h5"}]}, "val.0.path: found beside generate, which puts"),
        (
            {"training.compile": "graph", "training.accumulation_steps": 4},
            "training.accumulation_steps: found 4, expected 1",
        ),
    ],
)
def test_each_wrong_value_is_refused_with_its_key(overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config("smoke", overrides)


@pytest.mark.parametrize("name", ["smoke_fno", "smoke_unet"])
def test_the_other_operators_are_trained_on_the_data_of_smoke(name):
    assert load_config(name).data == load_config("smoke").data


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"encoder.kind": "patch_subspace"}, "encoder.kind: found patch_subspace, expected iden"),
        ({"operator.modes": 130}, "operator.modes: found 130, expected at most 129"),
        ({"operator.hidden_dim": 8}, "operator.hidden_dim: unknown key; known keys: kind, history"),
        (
            {"operator.kind": "fnoo"},
            "operator.kind: found 'fnoo'; expected latent_transformer, latent_cnn",
        ),
        ({"latent.dim": 2}, "latent.dim: found 2, expected 1: with encoder.kind identity"),
        ({"evaluation.given_frames": 9}, "given_frames: found 9, expected at least operator.hist"),
    ],
)
def test_each_value_that_does_not_go_with_the_kind_of_operator_is_refused(overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config("pdebench_protocol_nu0.001_fno", overrides)


def test_credentials_in_an_endpoint_are_refused_and_not_repeated():
    with pytest.raises(ConfigError, match="holds credentials") as error:
        load_config("smoke", {"data.endpoint_url": "http://KEYID:hunter2@127.0.0.1:9000"})
    assert "hunter2" not in str(error.value)
    assert error.value.__cause__ is None  # nor by the traceback of a run that fails
    assert error.value.__suppress_context__


def test_an_override_without_effect_is_refused():
    with pytest.raises(ConfigError, match=r"no effect, as training.pairs_per_step is 20: set that"):
        load_config("smoke", {"training.batch_size": 16})
    whole = {"training.batch_size": 16, "training.pairs_per_step": None}
    assert load_config("smoke", whole).training.batch_size == 16


def test_overrides_are_the_callers_own_and_stay_as_they_are():
    section = {"dim": 16}
    config = load_config("smoke", {"latent": section, "latent.tokens": 32})
    assert (config.latent.dim, config.latent.tokens) == (16, 32)
    assert section == {"dim": 16}
