"""What is said about memory is what the loader does and what a real step keeps."""

from dataclasses import replace

import pytest

from ups.config import load_config
from ups.latents.store import estimate_cache_size_mb
from ups.latents.tiers import GPU_RESERVE_BYTES, choose_tier
from ups.pipeline.phases import build_cache, load_latents
from ups.validate.data import validate_data
from ups.validate.memory import Memory, validate_ram_for_cache, validate_training_memory
from ups.validate.sources import latent_bytes, planned

ROOMY = Memory(ram_mb=100_000)
RESERVE_MB = GPU_RESERVE_BYTES / 1e6


@pytest.fixture
def latents(tiny_config):
    """`latents(memory, device, **overrides)`: the check of where they go."""

    def check(memory, device="cpu", **overrides):
        config = tiny_config(**overrides)
        checks = validate_ram_for_cache(config, sources_of(config), device, memory)
        return next(check for check in checks if check.name == "latents")

    return check


def sources_of(config):
    """With the trajectories that a look into the files finds."""
    return validate_data(config, num_sampled=1)[1]


@pytest.mark.parametrize("preload", ["auto", "ram", "gpu", "disk"])
def test_the_tier_and_its_size_are_those_of_the_run(latents, tiny_config, stage_all, preload):
    config = tiny_config(features__preload=preload, training__device="cpu")
    sources = stage_all(config)
    loaded = load_latents(
        config, {"burgers1d": sources}, {"burgers1d": build_cache(config, sources)}
    )
    loaded.close()
    found = latents(ROOMY, features__preload=preload)
    assert found.figures["tier"] == loaded.tier
    assert found.text.endswith("mapped instead") == (preload == "auto")
    if loaded.tier == "ram" and preload != "auto":  # that one is mapped, in full
        resident = loaded.train.z_NTKD.nbytes + loaded.val.z_NTKD.nbytes
        assert found.figures["num_bytes"] == pytest.approx(resident, rel=0.1)


@pytest.mark.parametrize(
    ("memory", "device", "expected", "text"),
    [
        (Memory(0.01), "cpu", ("warn", "disk"), "do not fit into the 0 MB of available RAM: read"),
        (replace(ROOMY, gpu_mb=RESERVE_MB + 1), "cuda", ("ok", "gpu"), ""),
        (replace(ROOMY, gpu_mb=RESERVE_MB), "cuda", ("warn", "ram"), "beside the model: trying"),
        (ROOMY, "cuda", ("skip", None), ""),  # a GPU that was not asked is not guessed at
    ],
)
def test_without_room_a_warning_says_where_latents_go_instead(
    latents, memory, device, expected, text
):
    found = latents(memory, device)
    assert (found.status, found.figures.get("tier")) == expected
    assert text in found.text
    assert latents(memory, device, features__preload="off").status == "skip"  # no size is made up


def test_a_container_limit_is_named(tiny_config):
    checks = validate_ram_for_cache(tiny_config(), [], "cpu", Memory(512.0, is_limited=True))
    assert checks[0].text == "512 MB free (the container's limit)"
    assert checks[1].text.startswith("not checked: their size is known when")


def test_a_generated_data_set_has_the_size_that_the_cache_gets():
    counts = {"train": 7, "val": 3, "test": 9}
    config = load_config("smoke", {"data.generate.num_trajectories": counts})
    expected = round(estimate_cache_size_mb(config, 10) * 1e6)
    assert latent_bytes(config, planned(config)) == expected


def training(config, memory, device="cpu"):
    return validate_training_memory(config, sources_of(config), device, memory)[0]


def test_a_batch_that_does_not_fit_beside_the_latents_is_a_fault(tiny_config):
    config = tiny_config()
    needed = training(config, ROOMY)
    assert needed.status == "ok"
    assert needed.text.endswith("beside 65.6 KB of latents")
    needed_mb = needed.figures["num_bytes"] / 1e6
    for ram_mb in (needed_mb * 0.9, needed_mb + 0.03):  # which the latents do not leave free
        found = training(config, Memory(ram_mb))
        assert found.status == "fault"
        assert "are free; lower training.batch_size" in found.text
    assert training(config, Memory(ram_mb=1, gpu_mb=50_000), "cuda").status == "ok"
    found = training(config, replace(ROOMY, gpu_mb=1), "cuda")
    assert (found.status, "of GPU that are free" in found.text) == ("fault", True)


def test_the_tier_needs_no_gpu_where_none_may_be_used(tiny_config):
    config = tiny_config(features__preload="disk")
    assert choose_tier(config, 10**15, "cuda", gpu_mb=0, ram_mb=0) == ("disk", (), 0)


@pytest.mark.parametrize(
    ("device", "gpu_mb", "ram_mb", "tier", "kept_mb"),
    [
        ("cpu", None, 1_000, "disk", 0),
        ("cuda", 5_000, 100_000, "ram", 5_000 - GPU_RESERVE_BYTES / 1e6),
        ("cuda", 5_000, 1_000, "disk", 5_000 - GPU_RESERVE_BYTES / 1e6),
        ("cuda", 1_000, 1_000, "disk", 0),
    ],
)
def test_of_latents_that_are_too_large_a_part_stays_where_training_runs_and_that_is_said(
    tiny_config, device, gpu_mb, ram_mb, tier, kept_mb
):
    num_bytes = 10**10 * tiny_config().training.time_stride
    found = choose_tier(tiny_config(), num_bytes, device, gpu_mb=gpu_mb, ram_mb=ram_mb)
    assert found.name == tier
    assert found.kept_mb == pytest.approx(kept_mb)
    assert (f"{kept_mb:.0f} MB stay there; for the rest" in " ".join(found.stepped_down)) == (
        kept_mb > 0
    )
    only = tiny_config(features__preload="ram")
    assert choose_tier(only, num_bytes, "cuda", ram_mb=1_000).kept_mb == 0, "it was not asked for"
