"""No cache, a valid entry, another one's, and each kind of damage, on entries really built."""

import os

import pytest

from ups.config import SPLITS
from ups.latents import store
from ups.latents.build import ensure
from ups.validate.cache import finds_entries, validate_cache
from ups.validate.data import validate_data


@pytest.fixture
def check(tiny_config, stage_all):
    """`check(**overrides)`: the cache's checks by name, and whether the entry is there."""

    def run(**overrides):
        config = tiny_config(**overrides)
        _, sources = validate_data(config, num_sampled=1)
        checks, found = validate_cache(config, sources)
        (is_cached,), (early,) = found.values(), finds_entries(config, sources).values()
        return {check.name: check for check in checks}, is_cached, early

    return run


@pytest.fixture
def entry(tiny_config, stage_all):
    """The directory of a generation built for `tiny_config()`."""
    config = tiny_config()
    built = ensure(config, stage_all(config))
    return store.entry_dir(config.training.latent_cache_dir, built.config_hash) / built.generation


def test_without_a_cache_the_first_run_builds_it(check):
    checks, is_cached, early = check()
    assert checks["entry"].status == "ok"
    assert checks["entry"].text.startswith("no cache in ")
    assert (is_cached, early) == (False, False)


def test_a_valid_entry_is_shown_with_hash_and_age(check, entry):
    checks, is_cached, early = check()
    found = checks["entry"]
    assert found.status == "ok"
    shown = f"valid, hash={entry.parent.name}, burgers1d ν 0.02, 8 tokens × 16"
    assert (found.text.startswith(shown), found.text.endswith("s ago")) == (True, True), found.text
    assert 0 <= found.figures["age_s"] < 60
    assert (is_cached, early) == (True, True)


def test_a_mismatch_names_the_field_that_differs(check, entry):
    checks, is_cached, early = check(latent__dim=8)
    found, difference = checks["entry"], "latent.dim 8, the cached entry has 16"
    assert (found.status, found.figures["nearest"]) == ("warn", entry.parent.name)
    assert found.figures["differs"] == [difference]
    assert difference in found.text
    assert (is_cached, early) == (False, False)


def corrupt(entry):
    (entry / store.MANIFEST_NAME).write_text("{ not JSON")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (corrupt, "corrupt metadata"),
        (lambda entry: (entry / store.MANIFEST_NAME).unlink(), "no metadata"),
        (lambda e: os.truncate(e / "train_000.safetensors", 5000), "has 5000 bytes, expected"),
        (lambda entry: (entry / "val_000.safetensors").unlink(), "is gone"),
    ],
)
def test_damage_of_the_configs_entry_is_a_fault_and_of_another_a_warning_with_a_remedy(
    check, entry, damage, message
):
    damage(entry)
    of_own, of_another = check(), check(latent__dim=8)
    for (checks, is_cached, _), name, status in (
        (of_own, "entry", "fault"),
        (of_another, "other entry", "warn"),
    ):
        assert checks[name].status == status
        assert message in checks[name].text
        assert f"`ups cache rm {entry.parent.name}`" in checks[name].text
        assert is_cached is False


def test_a_partial_build_is_gone_on_from(check, entry):
    config_hash = entry.parent.name
    (entry.parent / store.POINTER_NAME).unlink()
    entry.rename(entry.parent / f"{store.BUILDING}{entry.name}")
    checks, is_cached, _ = check()
    assert checks["entry"].status == "ok"
    assert f"{config_hash}: partial build" in checks["entry"].text
    assert is_cached is False


def test_an_unknown_digest_leaves_the_key_unknown_and_says_what_is_near(
    entry, in_store, s3_client, bucket, tiny_data
):
    s3_client.upload_file(str(tiny_data / "burgers1d_val.h5"), bucket, "bare/val.h5")
    sources = {s: [{"key": "bare/val.h5", "bucket": bucket}] for s in SPLITS}
    config = in_store(data__sources=sources)
    _, known = validate_data(config)
    checks, is_cached = validate_cache(config, known)
    assert checks[0].status == "skip"
    assert "depends on the SHA-256 of s3://tiny/bare/val.h5" in checks[0].text
    assert f"{entry.parent.name} has these settings" in checks[0].text
    assert is_cached == finds_entries(config, known) == {"burgers1d": None}
    corrupt(entry)  # which may be the config's
    checks, is_cached = validate_cache(config, known)
    assert {c.name: c.status for c in checks} == {"entry": "skip", "other entry": "fault"}
    assert is_cached == {"burgers1d": None}


def test_features_that_use_no_cache_skip_it(check, entry):
    checks, is_cached, early = check(features__preload="off")
    assert checks["entry"].text.startswith("not checked: features.preload is off")
    assert (is_cached, early) == (None, None)
    checks, is_cached, early = check(features__reuse_cache=False)
    assert checks["entry"].status == "warn"
    assert "features.reuse_cache is off: it is built again" in checks["entry"].text
    assert (is_cached, early) == (False, False)


def test_a_budget_below_the_entry_is_a_warning(check):
    # 25 trajectories of 41 frames, 8 tokens, 16 channels, 2 bytes
    found = check(training__latent_cache_max_gb=0.0001)[0]["budget"]
    assert (found.status, found.figures["num_bytes"]) == ("warn", 25 * 41 * 8 * 16 * 2)
    assert check(training__latent_cache_max_gb=1.0)[0]["budget"].status == "ok"


def test_looking_at_a_cache_changes_nothing(check, entry):
    def stats():
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in entry.parent.rglob("*")}

    before = stats()
    check()
    check(latent__dim=8)
    assert stats() == before
