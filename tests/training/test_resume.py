"""What is resumed is what was written, by a run of the same kind on the same data."""

import shutil

import h5py
import pytest
import torch

from ups.errors import CheckpointError, Interrupted, ValidationFailed
from ups.latents.encode import PatchEncoder
from ups.runs.metrics import read_metrics
from ups.training import checkpoint
from ups.training.loop import train
from ups.validate.run import require_valid


@pytest.fixture
def first(prepared):
    """The last checkpoint of a run of three epochs."""
    config, latents, run_dir = prepared("first")
    return train(config, latents, run_dir).checkpoint.with_name("last.pt")


def write_as_before(path):
    """Make it one of an earlier version: no checksum, not a word on what it was trained on."""
    record = checkpoint.load(path)
    del record["trained_on"]
    del record["position"]["began_at_epoch"]
    torch.save(record, path)


def test_a_damaged_checkpoint_is_refused_and_the_whole_one_beside_it_named(first, flip_bit):
    best = first.with_name("best.pt")
    best.unlink()  # of the same epoch it is the same file
    shutil.copy(first, best)
    epoch = checkpoint.load(best)["position"]["epoch"]
    for offset in (3, 5000, first.stat().st_size // 2, first.stat().st_size - 2):
        flip_bit(first, offset)
        message = f"its checksum is .*; delete it, and resume from {best} .epoch {epoch}., or"
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load(first)
        flip_bit(first, offset)
    assert checkpoint.load(first)["position"]["epoch"] == 3
    flip_bit(first, 5000)
    flip_bit(best, 5000)
    with pytest.raises(CheckpointError, match="; delete it, or start anew"):
        checkpoint.load(first, mmap=True)


def test_a_checkpoint_of_an_earlier_version_is_resumed_which_says_what_cannot_be_compared(
    prepared, first, caplog
):
    write_as_before(first)
    assert train(*prepared(stages__operator__epochs=4), resume=first).num_epochs == 4
    assert "last.pt is of an earlier version, and does not say which data" in caplog.text
    with pytest.raises(CheckpointError, match="trained with latent"):
        train(*prepared("other", latent__dim=8), resume=first)


def test_a_checkpoint_is_not_resumed_onto_other_data_or_another_encoder(
    prepared, first, tiny_config, tiny_data, tmp_path, stage_all
):
    longer = {"stages__operator__epochs": 4}
    config, latents, run_dir = prepared("turned", **longer)
    whole = latents.encoders["burgers1d"]
    almost = PatchEncoder(whole.weight_PD * (1 + 1e-5), whole.mean, whole.std)
    turned = PatchEncoder(whole.weight_PD.flip(1), whole.mean, whole.std)
    latents.encoders["burgers1d"] = turned
    with pytest.raises(CheckpointError, match="another encoder of burgers1d: .* differs by 1.4"):
        train(config, latents, run_dir, resume=first)
    latents.encoders["burgers1d"] = almost
    assert train(config, latents, run_dir, resume=first).num_epochs == 4

    for split in ("train", "val", "test"):
        name = f"burgers1d_{split}.h5"
        (tmp_path / name).write_bytes((tiny_data / name).read_bytes())
    with h5py.File(tmp_path / "burgers1d_val.h5", "r+") as file:
        file["tensor"][0, 0, 0] += 1e-3
    other = {"data__root": str(tmp_path), **longer}
    message = r"trained on other data of burgers1d: val\[0\].sha256 \w+, the checkpoint has \w+;"
    with pytest.raises(CheckpointError, match=message):
        train(*prepared("other", **other), resume=first)


def test_what_is_complete_is_refused_before_anything_is_done_unless_it_is_the_runs_own(
    prepared, first, tiny_config
):
    message = r"is complete: it has had 3 epochs, 12 steps, and stages.operator.epochs is 3: raise"
    with pytest.raises(ValidationFailed, match=message):
        require_valid(tiny_config(), first)
    with pytest.raises(CheckpointError, match=message):
        train(*prepared("second"), resume=first)
    require_valid(tiny_config(), None, first.parent.parent)  # which may still have to be scored
    require_valid(tiny_config(stages__operator__epochs=4), first)
    few = {"stages__operator__epochs": 9, "stages__operator__max_steps": 12}
    with pytest.raises(ValidationFailed, match="epochs is 9 and max_steps 12: raise that"):
        require_valid(tiny_config(**few), first)


def test_within_an_epoch_neither_the_batch_nor_the_order_may_change(prepared, stop_after, first):
    config, latents, run_dir = prepared()
    with pytest.raises(Interrupted):
        train(config, latents, run_dir, stop=stop_after(latents.train, 6))
    for changed, message in (
        ({"training__batch_size": 3}, r"batch_size × accumulation_steps 6, and this run has 3"),
        ({"training__seed": 5}, r"training.seed \d+, and this run has 5"),
    ):
        with pytest.raises(CheckpointError, match=f"middle of an epoch with .*{message}"):
            train(*prepared(**changed))
    halved = {"training__batch_size": 3, "training__accumulation_steps": 2}
    assert train(*prepared(**halved)).resumed_from_step == 6
    ended = {"training__batch_size": 3, "stages__operator__epochs": 4}
    assert train(*prepared("ended", **ended), resume=first).num_epochs == 4


def test_within_an_epoch_of_pairs_what_they_are_drawn_by_may_not_change(prepared, stop_after):
    pairs = {"training__pairs_per_step": 40, "stages__operator__epochs": 1}
    config, latents, run_dir = prepared(**pairs)
    with pytest.raises(Interrupted):
        train(config, latents, run_dir, stop=stop_after(latents.train, 2))
    for name, value in (
        ("pairs_per_step", 20),
        ("early_pairs", 0.5),
        ("rollout_horizon", 2),
        ("time_stride", 2),
    ):
        message = f"middle of an epoch with training.{name} .*, and this run has {value}: resume"
        with pytest.raises(CheckpointError, match=message):
            train(*prepared(**pairs | {f"training__{name}": value}))


def test_of_a_checkpoint_of_format_1_it_is_said_what_can_be_done_with_it(
    prepared, first, as_format_1
):
    as_format_1(first, ("sources", "encoder"))
    longer, before = {"stages__operator__epochs": 4}, checkpoint.OF_FORMAT_1["operator"]
    remedy = "it is of an earlier version, which encoded otherwise: predict with it"
    message = rf"trained with operator.token_kernel 1 \(this run: 3\), .*: {remedy}"
    with pytest.raises(CheckpointError, match=message):
        train(*prepared("second", **longer), resume=first)
    as_then = {f"operator__{name}": value for name, value in before.items()}
    config, latents, run_dir = prepared("third", **longer, **as_then)
    encoder = latents.encoders["burgers1d"]
    latents.encoders["burgers1d"] = PatchEncoder(
        encoder.weight_PD.flip(1), encoder.mean, encoder.std
    )
    with pytest.raises(CheckpointError, match=f"trained with another encoder .*; {remedy}"):
        train(config, latents, run_dir, resume=first)


def test_patience_counts_from_where_the_checkpoint_of_another_run_was_taken_up(prepared, first):
    patient = {"stages__operator__patience": 2, "stages__operator__epochs": 9}
    config, latents, run_dir = prepared("patient", **patient)
    result = train(config, latents, run_dir, resume=first)
    assert result.num_epochs >= 5
    assert result.best_epoch > 3
    assert [row["epoch"] for row in read_metrics(run_dir).epochs][:5] == [1, 2, 3, 4, 5]
