"""YAML as it was meant: what would be dropped, multiplied or misread is refused with its line."""

import itertools
import re

import pytest

from ups.cli.options import parse_settings
from ups.config import load_config, read_yaml
from ups.errors import ConfigError

TINY = "name: tiny\ndata: {grid_points: 64}\nlatent: {dim: 8, tokens: 8}\n"
LEVELS = [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise("abcdefghi")]
BOMB = "\n".join(["a: &a [x]", *LEVELS])
MERGED = re.sub(r"\[(\*.*)\]", r"{<<: [\1]}", BOMB.replace("[x]", "{x: 1}"))


@pytest.fixture
def load(tmp_path):
    """`load(text)`: the config of a file with that text, which begins as `TINY` does."""

    def write(text):
        path = tmp_path / "tiny.yaml"
        path.write_bytes(text if isinstance(text, bytes) else (TINY + text).encode())
        return load_config(path)

    return write


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("training: {seed: 1}\nencoder: {}\ntraining: {}", 6, "'training' again, first in line 4"),
        ("training:\n  seed: 1\n  seed: 2", 6, "found the key 'seed' again, first in line 5"),
        ((TINY + "# f\xfcr").encode("latin-1"), 4, "not UTF-8 (byte 0xfc); save it as UTF-8"),
        (TINY.encode("utf-16"), 1, "not UTF-8 (byte 0xff)"),
        (TINY.encode("utf-16-le"), 1, r"found the character '\x00'"),
        (BOMB, 8, "its aliases come to more than 10000 values"),
        (MERGED, 8, "its aliases come to more than 10000 values"),
        ("x: &x [*x]", 4, "an alias in it stands for itself"),
        (f"training: {{seed: {'9' * 5000}}}", 4, "found '9999999999"),
        ("x: 2024-13-45", 4, "found '2024-13-45', which cannot be read as timestamp"),
        ("x: !!int ''", 4, "found '', which cannot be read as int"),
        ("x: [1,\n\nencoder: {}", 6, "expected ',' or ']'"),
    ],
    ids=lambda value: None if isinstance(value, int) else "",
)
def test_what_would_be_read_otherwise_than_written_is_one_line_with_its_number(
    load, text, line, message
):
    with pytest.raises(ConfigError) as error:
        load(text)
    said = str(error.value)
    assert f"tiny.yaml: line {line}: " in said
    assert message in said
    assert "\n" not in said
    assert len(said) < 300


def test_what_is_nested_thousands_deep_is_refused(load):
    with pytest.raises(ConfigError, match="not valid YAML: nested too deeply"):
        load("x: " + "[" * 1000)


def test_aliases_merged_keys_and_a_byte_order_mark_are_read(load):
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a"
    assert read_yaml(text) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}
    assert load(TINY.encode("utf-8-sig")) == load("")


@pytest.mark.parametrize("off", ["off", "Off", "'off'"])
def test_off_is_a_word_where_a_word_is_wanted_and_a_no_where_a_yes_or_no_is(load, off):
    config = load(f"training: {{compile: {off}}}\nfeatures: {{preload: {off}, warm_up: {off}}}")
    features, training = config.features, config.training
    assert (training.compile, features.preload, features.warm_up) == ("off", "off", False)
    settings = parse_settings([f"features.preload={off}", f"features.warm_up={off}"])
    assert load_config("smoke", settings).features == features


@pytest.mark.parametrize(("section", "key"), [("features", "preload"), ("data", "bucket")])
def test_another_word_that_yaml_takes_for_a_bool_is_said_to_be_quoted(section, key):
    with pytest.raises(ConfigError, match=f"{section}.{key}: found True; .*quote the word$"):
        load_config("smoke", parse_settings([f"{section}.{key}=yes"]))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("latent={dim: 4, dim: 8}", "the key 'dim' again"),
        (f"training.seed={'9' * 5000}", "training.seed: found '999"),
        (f"stages.operator.epochs={'9' * 4000}", "less than or equal to 1000000000000"),
        (f"training.seed={10**30}", "training.seed: found 1000"),
        ("encoder.fit_seed=-1", "encoder.fit_seed: found -1"),
        ("stages.operator.optimizer.lr=.inf", "optimizer.lr: found inf; input should be a finite"),
        ("training.latent_cache_max_gb=.inf", "input should be a finite number"),
        ("training.ema_decay=.nan", "training.ema_decay: found nan"),
        ("training.grad_clip=.nan", "training.grad_clip: found nan"),
        ("data.generate.nu=.inf", "data.generate.nu: found inf"),
    ],
    ids=lambda text: text[:30],
)
def test_a_setting_that_is_no_value_is_one_short_line(setting, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        load_config("smoke", parse_settings([setting]))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_no_clipping_is_an_infinite_norm():
    assert load_config("smoke", parse_settings(["training.grad_clip=.inf"])).training.grad_clip > 9


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_name_that_no_file_can_have_is_no_config(name):
    with pytest.raises(ConfigError, match=r"^no config .{,90}: expected a path"):
        load_config(name)
