"""`ups cache list | show | verify | prune | rm`, as typed."""

import json
import os
import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from deployments.cli.app import app
from ups.errors import ConfigError
from ups.latents import store
from ups.latents.build import ensure
from ups.latents.entries import entries
from ups.units import format_age, format_size, parse_age, parse_size

DAY = 86400


@pytest.fixture
def cache_dir(tiny_config, stage_all):
    """Two entries: of dim 4, not used for 40 days, and of dim 16, for 2."""
    for dim, days in ((4, 40), (16, 2)):
        config = tiny_config(latent__dim=dim)
        built = ensure(config, stage_all(config))
        entry_dir = store.entry_dir(config.training.latent_cache_dir, built.config_hash)
        at = time.time() - days * DAY
        os.utime(entry_dir / built.generation / store.IN_USE_NAME, (at, at))
    return config.training.latent_cache_dir


@pytest.fixture
def old(cache_dir):
    return entries(cache_dir)[1]


@pytest.fixture
def ups(cache_dir):
    """`ups("list", …)`: exit code, standard output and standard error, on this cache directory."""

    def call(*arguments):
        result = CliRunner().invoke(app, ["cache", *arguments, "--dir", str(cache_dir)])
        return result.exit_code, result.stdout, result.stderr

    return call


@pytest.fixture
def damage(flip_bit):
    """`damage(entry)`: flip a bit of row 9 of train."""

    def flip(entry):
        train = store.read_manifest(entry.directory).files[0]
        flip_bit(entry.directory / train.name, train.data_offset + 9 * train.row_bytes)

    return flip


def test_list_shows_a_line_for_each_entry_and_the_sum_or_all_fields_as_json(ups, cache_dir, old):
    hold = store.InUse(old.directory)
    code, output, _ = ups("list")
    hold.close()
    assert code == 0
    newer, older = (line for line in output.splitlines() if "burgers1d" in line)
    assert older.split()[:4] == [old.config_hash, "complete,", "in", "use"]
    assert "8 tokens × 4, float16, 25 trajectories of 2 sources" in older
    assert older.split()[-3:] == ["40", "d", "ago"]
    assert newer.split()[-3:] == ["2", "d", "ago"]
    total = sum(entry.num_bytes for entry in entries(cache_dir))
    assert output.splitlines()[-1] == f"2 entries, {format_size(total)} in {cache_dir}"
    assert json.loads(ups("list", "--json")[1]) == [
        entry.model_dump(mode="json") for entry in entries(cache_dir)
    ]


def test_the_directory_is_given_by_place_option_or_config_and_only_once(
    cache_dir, tiny_config, tmp_path, monkeypatch
):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_config().model_dump(mode="json")))

    def listed(*arguments):
        result = CliRunner().invoke(app, ["cache", "list", *arguments])
        return result.exit_code, result.output.splitlines()[-1]

    expected = listed("--dir", str(cache_dir))
    assert expected[0] == 0
    assert listed(str(cache_dir)) == listed("--config", str(path)) == expected
    assert listed(str(cache_dir), "--config", str(path))[0] == 2
    monkeypatch.chdir(tmp_path)
    assert listed() == (0, f"0 entries, 0 B in {tmp_path}/data/latent_cache")


@pytest.mark.parametrize("command", [["list"], ["verify"], ["prune"], ["show", "a"], ["rm", "a"]])
def test_a_directory_that_is_named_has_to_be_one(cache_dir, tmp_path, command):
    (tmp_path / "file").touch()
    for name, what in (("file", "is a file"), ("mistyped", "is not there")):
        result = CliRunner().invoke(app, ["cache", *command, "--dir", str(tmp_path / name)])
        assert result.exit_code == 1
        assert f"error: {tmp_path / name} {what}, expected the directory" in result.stderr


def test_show_tells_key_fields_and_files_and_works_without_a_readable_manifest(ups, old):
    code, output, _ = ups("show", old.config_hash[:6])
    assert code == 0
    lines = dict(line.split(maxsplit=1) for line in output.partition("\n\n")[0].splitlines())
    assert json.loads(lines["latent"]) == {"dim": 4, "tokens": 8}
    assert lines["state"].strip() == "complete"
    assert "train_000.safetensors" in output
    _, output, _ = ups("show", old.config_hash, "--json")
    (record,) = json.loads(output)
    assert record["key_fields"]["latent"] == {"dim": 4, "tokens": 8}
    assert [f["num_chunks"] for f in record["files"]] == [5, 2]
    (old.directory / store.MANIFEST_NAME).write_text("{")
    code, output, _ = ups("show", old.config_hash)
    assert (code, "damaged" in output) == (0, True)


def test_verify_is_quiet_about_whole_entries_and_names_damage(ups, old, damage):
    code, output, _ = ups("verify")
    assert code == 0
    assert [line.split()[0] for line in output.splitlines()] == ["whole", "whole"]
    damage(old)
    code, output, errors = ups("verify")
    assert code == 1
    assert "train_000.safetensors: chunk 2 has checksum" in output
    assert f"1 of 2 entries are damaged: `ups cache rm {old.config_hash}`" in errors
    code, output, _ = ups("verify", old.config_hash[:7], "--json")
    assert code == 1
    (record,) = json.loads(output)
    assert [(d["file"], d["chunk"]) for d in record["damage"]] == [("train_000.safetensors", 2)]


def test_what_was_set_aside_is_not_judged_by_verify_and_taken_along_by_rm(
    ups, cache_dir, old, damage
):
    damage(old)
    store.quarantine(cache_dir, old.config_hash)
    assert ups("verify")[0] == 0
    code, _, errors = ups("verify", old.config_hash)
    assert code == 1
    assert "has no complete build: there is nothing to verify" in errors
    assert ups("rm", old.config_hash)[0] == 0
    assert not (cache_dir / old.config_hash).exists()


def test_prune_removes_nothing_without_a_limit_and_a_dry_run_says_what_would_go(
    ups, cache_dir, old
):
    before = sorted(cache_dir.rglob("*"))
    ups("prune")
    code, output, _ = ups("prune", "--older-than", "30d", "--dry-run")
    assert code == 0
    assert old.config_hash in output
    assert "not used for 40 d" in output
    assert f"would be removed: 1 entry, {format_size(old.num_bytes)}" in output
    newer = entries(cache_dir)[0]
    left = f"would be left in {cache_dir}: 1 entry, {format_size(newer.num_bytes)}, 0 in use"
    assert output.splitlines()[-1] == left
    assert sorted(cache_dir.rglob("*")) == before


def test_prune_goes_by_age_and_by_size(ups, cache_dir, old):
    _, output, _ = ups("prune", "--max-size", "300KB", "--json")
    (removal,) = json.loads(output)
    assert removal["entry"]["config_hash"] == old.config_hash
    assert removal["reason"] == "least recently used, over 300 KB"
    assert removal["removed"] is True
    (left,) = entries(cache_dir)
    hold = store.InUse(left.directory)
    _, output, _ = ups("prune", "--max-size", "0MB", "--older-than", "1d")
    hold.close()
    assert "removed: 0 entries, 0 B" in output
    assert output.endswith("1 in use\n")
    ups("prune", "--older-than", "1d")
    assert entries(cache_dir) == []


def test_rm_removes_by_the_beginning_of_a_key_and_refuses_an_entry_in_use(ups, cache_dir, old):
    other = entries(cache_dir)[0]
    hold = store.InUse(old.directory)
    code, output, errors = ups("rm", old.config_hash[:8], other.config_hash[:8])
    in_json = ups("rm", old.config_hash, "--json")
    hold.close()
    assert code == in_json[0] == 1
    assert json.loads(in_json[1]) == {"removed": {}, "in_use": [old.config_hash]}
    assert f"error: {old.config_hash}: in use by a running job, not removed" in errors
    assert output == f"removed {other.config_hash}, {format_size(other.num_bytes)}\n"
    assert [e.config_hash for e in entries(cache_dir)] == [old.config_hash]


@pytest.mark.parametrize("arguments", [["rm", "KEY", "xyz"], ["show", "xyz"], ["verify", "xyz"]])
def test_an_unknown_key_is_one_message_and_removes_nothing(ups, cache_dir, old, arguments):
    code, _, errors = ups(*(old.config_hash if a == "KEY" else a for a in arguments))
    assert code == 1
    assert "error: no cache entry 'xyz': there are " in errors
    assert len(entries(cache_dir)) == 2


@pytest.mark.parametrize(
    ("parse", "given", "expected"),
    [
        (parse_size, "50GB 500·mb 1.5TB 2GiB 0B", [50e9, 500e6, 1.5e12, 2 << 30, 0]),
        (parse_age, "45m 12h 30d 1.5w 10s", [2700, 43200, 30 * DAY, 10.5 * DAY, 10]),
    ],
)
def test_sizes_and_ages_are_read_with_their_unit(parse, given, expected):
    assert [parse(text.replace("·", " ")) for text in given.split()] == expected


@pytest.mark.parametrize("text", ["", "GB", "50", "-1GB", "1e3GB", "5XB", "1.GB", "50GB!"])
def test_other_sizes_and_ages_are_refused(text):
    with pytest.raises(ConfigError, match="expected a size with a unit, such as 500MB"):
        parse_size(text)
    with pytest.raises(ConfigError, match=f"found {text!r}, expected an age with a unit"):
        parse_age(text)


@given(st.integers(0, 10**16))
def test_a_size_shown_is_read_back_within_its_digits(num_bytes):
    assert parse_size(format_size(num_bytes)) == pytest.approx(num_bytes, rel=0.0051)


def test_ages_are_shown_in_their_largest_whole_unit():
    shown = [format_age(s) for s in (-1, 59, 61, 3 * 3600 + 5, 40 * DAY)]
    assert shown == ["0 s", "59 s", "1 min", "3 h", "40 d"]
