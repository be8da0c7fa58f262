"""No cache, a valid entry, another one's, and each kind of damage, on entries really built."""

import json

import pytest

from ups.config import Parsed
from ups.latents import store
from ups.latents.build import ensure
from ups.validate.cache import validate_cache
from ups.validate.data import validate_data
from ups.validate.entry import finds_entries


@pytest.fixture
def check(tiny_config, stage_all):
    """`check(**overrides)`: the cache's checks by name, and whether the entry is there."""

    def run(parsed=None, **overrides):
        parsed = parsed or Parsed("tiny.yaml", tiny_config(**overrides))
        _, sources = validate_data(parsed, num_sampled=1)
        checks, found = validate_cache(parsed, sources)
        (is_there,), (early,) = found.values(), finds_entries(parsed, sources).values()
        return {check.name: check for check in checks}, is_there, early

    return run


@pytest.fixture
def entry(tiny_config, stage_all):
    """The directory of a generation built for `tiny_config()`."""
    config = tiny_config()
    built = ensure(config, stage_all(config))
    home = store.entry_dir(config.training.latent_cache_dir, built.config_hash)
    return home / built.generation


def test_without_a_cache_the_first_run_builds_it(check):
    checks, is_there, early = check()
    assert checks["entry"].status == "ok"
    assert checks["entry"].text.startswith("no cache in ")
    assert (is_there, early) == (False, False)


def test_a_valid_entry_is_shown_with_hash_and_age(check, entry):
    checks, is_there, early = check()
    found = checks["entry"]
    assert found.status == "ok"
    assert found.text.startswith(
        f"valid, hash={entry.parent.name}, burgers1d ν 0.02, 8 tokens × 16"
    )
    assert found.text.endswith("s ago")
    assert 0 <= found.figures["age_s"] < 60
    assert (is_there, early) == (True, True)


def test_a_mismatch_names_the_field_that_differs(check, entry):
    checks, is_there, early = check(latent__dim=8)
    assert checks["entry"].status == "warn"
    assert checks["entry"].figures["nearest"] == entry.parent.name
    assert checks["entry"].figures["differs"] == ["latent.dim 8, the cached entry has 16"]
    assert "latent.dim 8, the cached entry has 16" in checks["entry"].text
    assert (is_there, early) == (False, False)


def corrupt(entry):
    (entry / store.MANIFEST_NAME).write_text("{ not JSON")


def without_metadata(entry):
    (entry / store.MANIFEST_NAME).unlink()


def truncated(entry):
    with (entry / "train_000.safetensors").open("r+b") as file:
        file.truncate(5000)


def gone(entry):
    (entry / "val_000.safetensors").unlink()


DAMAGE = [
    (corrupt, "corrupt metadata"),
    (without_metadata, "no metadata"),
    (truncated, "has 5000 bytes, expected"),
    (gone, "is gone"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_of_the_configs_entry_is_a_fault_with_a_remedy(check, entry, damage, message):
    damage(entry)
    checks, is_there, _ = check()
    assert checks["entry"].status == "fault"
    assert message in checks["entry"].text
    assert f"`ups cache rm {entry.parent.name}`" in checks["entry"].text
    assert is_there is False


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_damage_of_another_entry_is_a_warning(check, entry, damage, message):
    damage(entry)
    checks, is_there, _ = check(latent__dim=8)
    assert checks["other entry"].status == "warn"
    assert message in checks["other entry"].text
    assert is_there is False


def test_damage_is_a_fault_where_the_entry_may_be_the_configs(check, entry, tiny_config):
    corrupt(entry)
    parsed = Parsed("x", tiny_config(), faults=("latent.dim: found 'x'",), replaced=("latent.dim",))
    checks, is_there, early = check(parsed)
    assert checks["entry"].status == "skip"
    assert "depends on latent.dim, which is faulty" in checks["entry"].text
    assert checks["other entry"].status == "fault"
    assert (is_there, early) == (None, None)


def test_a_partial_build_is_gone_on_from(check, entry):
    config_hash = entry.parent.name
    (entry.parent / store.POINTER_NAME).unlink()
    entry.rename(entry.parent / f"{store.BUILDING}{entry.name}")
    checks, is_there, _ = check()
    assert checks["entry"].status == "ok"
    assert f"{config_hash}: partial build" in checks["entry"].text
    assert is_there is False


def test_an_unknown_digest_leaves_the_key_unknown_and_says_what_is_near(
    entry, in_store, s3_client, bucket, tiny_data
):
    s3_client.upload_file(str(tiny_data / "burgers1d_val.h5"), bucket, "bare/val.h5")
    sources = {s: [{"key": "bare/val.h5", "bucket": bucket}] for s in ("train", "val", "test")}
    parsed = in_store(data__sources=sources)
    _, known = validate_data(parsed)
    checks, is_there = validate_cache(parsed, known)
    assert checks[0].status == "skip"
    assert "depends on the SHA-256 of s3://checked/bare/val.h5" in checks[0].text
    assert f"{entry.parent.name} has these settings" in checks[0].text
    assert is_there == {"burgers1d": None}


def test_features_that_use_no_cache_skip_it(check, entry):
    checks, is_there, early = check(features__preload="off")
    assert checks["entry"].text.startswith("not checked: features.preload is off")
    assert (is_there, early) == (None, None)
    checks, is_there, early = check(features__reuse_cache=False)
    assert checks["entry"].status == "warn"
    assert "features.reuse_cache is off: it is built again" in checks["entry"].text
    assert (is_there, early) == (False, False)


def test_a_budget_below_the_entry_is_a_warning(check):
    # 25 trajectories of 41 frames, 8 tokens, 16 channels, 2 bytes
    checks, _, _ = check(training__latent_cache_max_gb=0.0001)
    assert checks["budget"].status == "warn"
    assert checks["budget"].figures["num_bytes"] == 25 * 41 * 8 * 16 * 2
    checks, _, _ = check(training__latent_cache_max_gb=1.0)
    assert checks["budget"].status == "ok"


def test_looking_at_a_cache_changes_nothing(check, entry):
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in entry.parent.rglob("*")}
    check()
    check(latent__dim=8)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in entry.parent.rglob("*")} == before
    assert json.loads((entry / store.MANIFEST_NAME).read_text())
