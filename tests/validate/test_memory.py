"""What is said about memory is what the loader does and what a real step keeps."""

import pytest
import torch

from ups.config import Parsed, parse_config
from ups.latents.tiers import GPU_RESERVE_BYTES, choose_tier
from ups.pipeline import build_cache, load_latents
from ups.training.step import TrainStep
from ups.validate.footprint import footprint
from ups.validate.memory import Memory, validate_ram_for_cache, validate_training_memory
from ups.validate.sources import SPLITS, on_this_machine, planned

ROOMY = Memory(ram_mb=100_000)


@pytest.fixture
def latents(on_disk):
    """`latents(memory, device, **overrides)`: the check of where they go."""

    def check(memory, device="cpu", **overrides):
        parsed = on_disk(**overrides)
        checks = validate_ram_for_cache(parsed, sources_of(parsed), device, memory)
        return next(check for check in checks if check.name == "latents")

    return check


def sources_of(parsed):
    """With the trajectories that a look into the files finds."""
    from ups.validate.data import validate_data

    return validate_data(parsed, num_sampled=1)[1]


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
    if loaded.tier == "ram":
        resident = loaded.train.z_NTKD.nbytes + loaded.val.z_NTKD.nbytes
        assert found.figures["num_bytes"] == pytest.approx(resident, rel=0.1)


def test_too_little_ram_is_a_warning_that_says_where_they_go_instead(latents):
    found = latents(Memory(ram_mb=0.01))
    assert (found.status, found.figures["tier"]) == ("warn", "disk")
    assert "do not fit into the 0 MB of available RAM: reading them from disk" in found.text


def test_a_gpu_has_room_beside_the_reserve_or_they_go_to_ram(latents):
    reserve_mb = GPU_RESERVE_BYTES / 1e6
    found = latents(Memory(ram_mb=100_000, gpu_mb=reserve_mb + 1), "cuda")
    assert (found.status, found.figures["tier"]) == ("ok", "gpu")
    found = latents(Memory(ram_mb=100_000, gpu_mb=reserve_mb), "cuda")
    assert (found.status, found.figures["tier"]) == ("warn", "ram")
    assert "beside the model: trying RAM instead" in found.text


def test_a_gpu_that_was_not_asked_is_not_guessed_at(latents):
    assert latents(ROOMY, "cuda").status == "skip"


def test_a_container_limit_is_named(on_disk):
    checks = validate_ram_for_cache(on_disk(), {}, "cpu", Memory(512.0, is_limited=True))
    assert checks[0].text == "512 MB free (the container's limit)"
    assert checks[1].text.startswith("not checked: their size is known when")


def test_no_size_is_made_up_for_modes_that_keep_none(latents):
    assert latents(ROOMY, features__preload="off").status == "skip"


def test_a_generated_data_set_has_the_size_that_the_cache_gets(tmp_path):
    from ups.latents.store import estimate_cache_size_mb
    from ups.validate.sources import latent_bytes

    config = parse_config(
        {
            "name": "x",
            "data": {
                "sources": {s: [{"key": f"{s}.h5"}] for s in SPLITS},
                "generate": {"nu": 0.01, "num_trajectories": {"train": 7, "val": 3, "test": 9}},
            },
        }
    )
    sources = {s: [on_this_machine(k) for k in planned(config, s)] for s in SPLITS}
    assert latent_bytes(config, sources) == round(estimate_cache_size_mb(config, 10) * 1e6)


@pytest.mark.parametrize("horizon", [1, 2])
def test_activations_are_counted_as_a_real_step_keeps_them(tiny_config, horizon):
    config = tiny_config(training__device="cpu", training__rollout_horizon=horizon)
    step = TrainStep(config)
    weights = {p.untyped_storage().data_ptr() for p in step.model.parameters()}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    z_BTKD = torch.randn(6, 11, 8, 16)  # 41 frames at stride 4
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = step._loss(z_BTKD, torch.zeros(6, 2))
    found = footprint(config, 41, "cpu")
    assert found.activation_bytes == pytest.approx(sum(saved.values()), rel=0.1)
    assert found.num_parameters == sum(p.numel() for p in step.model.parameters())
    del loss


def test_state_is_counted_as_the_step_holds_it(tiny_config):
    config = tiny_config(training__device="cpu")
    step = TrainStep(config)
    held = step.state_dict()
    moments = [
        t for group in held["optimizer"].values() for k in ("mean", "square") for t in group[k]
    ]
    tensors = [*step.model.parameters(), *step.ema.parameters(), *moments]
    gradients = sum(p.nbytes for p in step.model.parameters())
    assert footprint(config, 41, "cpu").state_bytes == gradients + sum(t.nbytes for t in tensors)


def training(parsed, memory, device="cpu"):
    return validate_training_memory(parsed, sources_of(parsed), device, memory)[0]


def test_a_batch_that_does_not_fit_is_a_fault(on_disk):
    parsed = on_disk()
    needed = training(parsed, ROOMY)
    assert needed.status == "ok"
    assert needed.text.endswith("beside 65.6 KB of latents")
    needed_mb = needed.figures["num_bytes"] / 1e6
    found = training(parsed, Memory(ram_mb=needed_mb * 0.9))
    assert found.status == "fault"
    assert "are free; lower training.batch_size" in found.text


def test_on_a_gpu_its_memory_counts_and_the_latents_in_it(on_disk):
    parsed = on_disk()
    assert training(parsed, Memory(ram_mb=1, gpu_mb=50_000), "cuda").status == "ok"
    found = training(parsed, Memory(ram_mb=100_000, gpu_mb=1), "cuda")
    assert found.status == "fault"
    assert "of GPU that are free" in found.text


def test_an_operator_whose_fields_do_not_agree_is_not_built(on_disk):
    rule = "operator.hidden_dim: found 30, expected a multiple of 2 * operator.num_heads (8)"
    parsed = Parsed("x", on_disk().config, faults=(rule,), disagreements=(rule,))
    assert training(parsed, ROOMY).status == "skip"


def test_the_tier_needs_no_gpu_where_none_may_be_used(tiny_config):
    config = tiny_config(features__preload="disk")
    assert choose_tier(config, 10**15, "cuda", gpu_mb=0, ram_mb=0) == ("disk", ())
