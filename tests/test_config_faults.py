"""A config with faults: all of them at once, and the rest as it was written."""

import copy

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ups.config import CONFIG_DIR, RunConfig, load_config, parse_config, read_config
from ups.errors import ConfigError

SMOKE = yaml.safe_load((CONFIG_DIR / "smoke.yaml").read_text())


@pytest.fixture
def parsed(tmp_path):
    """`parsed({"latent.tokens": 7})`: the smoke config with these values, as far as it goes."""

    def read(overrides):
        return read_config("smoke", overrides)

    return read


def test_faults_of_values_and_of_their_agreement_are_reported_together(parsed):
    found = parsed(
        {
            "latnt": {},
            "training.batch_size": "many",
            "latent.tokens": 24,
            "operator.depths": [1, 1],
            "data.sources.val": [{"key": "/etc/x.h5"}],
        }
    )
    keys = [fault.partition(":")[0] for fault in found.faults]
    assert sorted(keys) == [
        "data.sources.val.0",
        "latent.tokens",
        "latnt",
        "operator.depths",
        "training.batch_size",
    ]
    assert found.disagreements == tuple(
        f for f in found.faults if f[:9] in ("latent.to", "operator.")
    )
    with pytest.raises(ConfigError) as error:
        found.valid()
    assert len(str(error.value).splitlines()) == 5


def test_what_is_not_faulty_stays_as_it_was_written(parsed):
    found = parsed({"latent.dim": 64, "latent.tokens": "x", "stages.operator.epochs": 0})
    assert found.config.latent.dim == 64
    assert found.config.latent.tokens == 16  # the default
    assert found.config.operator == load_config("smoke").operator
    assert found.replaced == ("stages.operator.epochs", "latent.tokens")[::-1]


def test_a_rule_about_a_value_that_is_faulty_itself_is_not_reported(parsed):
    found = parsed({"data.grid_points": "a lot", "latent.tokens": 24})
    assert [fault.partition(":")[0] for fault in found.faults] == ["data.grid_points"]
    assert found.config.latent.tokens == 24


def test_sources_that_are_valid_stay_where_others_are_not(parsed):
    sources = {"train": [{"key": "a.h5"}, {"kee": "b.h5"}], "val": [{"key": "c.h5"}]}
    found = parsed({"data.sources": sources})
    left = {s: [x.key for x in of] for s, of in found.config.data.sources.items()}
    assert left == {"train": ["a.h5"], "val": ["c.h5"]}
    assert "data.sources.test: missing, and it has no default" in found.faults


def test_a_split_that_is_not_named_is_found_beside_other_faults(parsed):
    found = parsed({"data.sources": {"train": [{"key": "a.h5"}]}, "data.bukket": 1})
    assert "data: sources lack val, test: name all of train, val, test" in found.faults
    assert "data.bukket: unknown key; did you mean bucket?" in found.faults
    assert found.config.data.bucket == "pdebench"


def test_a_config_of_nothing_has_one_fault():
    with pytest.raises(ConfigError, match="^x: name: missing, and it has no default$"):
        parse_config({}, "x")


def paths(tree, prefix=()):
    for key, value in tree.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from paths(value, (*prefix, key))


JUNK = st.sampled_from([None, -1, 0, 7.5, "junk", [], [1, "x"], {}, {"a": 1}, True, {1: {2: 3}}])


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(list(paths(SMOKE))), JUNK, min_size=1, max_size=5))
def test_junk_anywhere_ends_in_faults_or_in_the_config_that_was_written(changes):
    tree = copy.deepcopy(SMOKE)
    for path, value in changes.items():
        at = tree
        for part in path[:-1]:
            at = at.get(part) if isinstance(at, dict) else None
        if isinstance(at, dict):
            at[path[-1]] = value
    found = _parsed(tree)
    assert isinstance(found.config, RunConfig)
    try:
        expected = RunConfig.model_validate(tree)
    except ValueError:
        assert found.faults
    else:
        assert (found.config, found.faults, found.replaced) == (expected, (), ())


def _parsed(tree):
    from ups.config import _parse

    return _parse(tree, "x")
