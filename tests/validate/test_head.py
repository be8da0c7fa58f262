"""What a run checks at its head: cheap, and all faults in one message."""

import shutil
import subprocess
import sys

import h5py
import pytest

from ups.config import SPLITS
from ups.data.sources import stage
from ups.errors import UpsError, ValidationFailed
from ups.latents.build import ensure
from ups.runs.folder import checkpoint_to_resume
from ups.validate.cache import validate_cache
from ups.validate.data import validate_data
from ups.validate.run import check_head, require_valid


def test_all_faults_are_in_one_message(in_store, tmp_path):
    (tmp_path / "taken").write_text("")
    config = in_store(
        training__compile="graph",
        training__device="cpu",
        training__latent_cache_dir=str(tmp_path / "taken" / "cache"),
    )
    with pytest.raises(ValidationFailed) as error:
        require_valid(config, tmp_path / "none.pt", refused=UpsError("no address"))
    title, *lines = str(error.value).splitlines()
    assert title == "4 faults, found before anything was done:"
    assert [line.partition(":")[0] for line in lines] == [
        "data, object store",
        f"disk, {tmp_path / 'taken' / 'cache'}",
        "device, compile",
        "checkpoint, resume",
    ]


def test_missing_local_files_are_found_at_once(tiny_config, tmp_path):
    with pytest.raises(ValidationFailed, match="3 faults") as error:
        require_valid(tiny_config(data__root=str(tmp_path)))
    assert "data, train: no train data in" in str(error.value)


def test_a_valid_config_passes_without_a_word_and_a_warning_goes_to_the_log(
    in_store, caplog, monkeypatch
):
    require_valid(in_store())
    assert caplog.text == ""
    monkeypatch.setattr("ups.validate.memory.available_ram_mb", lambda: 0.001)
    generate = {"nu": 0.1, "num_trajectories": {"train": 20, "val": 5, "test": 6}}
    require_valid(in_store(data__generate=generate))
    assert "memory, latents: " in caplog.text
    assert "reading them from disk instead" in caplog.text


def test_a_checkpoint_of_the_run_itself_is_what_a_retry_needs(tmp_path):
    given = tmp_path / "other.pt"
    assert checkpoint_to_resume(tmp_path, given) == given
    own = tmp_path / "checkpoints" / "last.pt"
    own.parent.mkdir()
    own.touch()
    assert checkpoint_to_resume(tmp_path, given) == own


def test_neither_network_nor_data_nor_torch_is_touched():
    script = (
        "import socket, sys\n"
        "socket.socket.connect = None\n"
        "from ups.config import load_config\n"
        "from ups.validate.run import check_head\n"
        "checks = check_head(load_config('train_burgers_pdebench'))\n"
        "assert {'memory', 'disk', 'device'} <= {c.group for c in checks}\n"
        "print([m for m in ('torch', 'h5py', 'boto3', 'prefect') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"


def test_the_room_that_an_entry_already_has_is_not_asked_for_again(in_store, stage_from_store):
    config = in_store()
    staged = stage_from_store(config)
    (before,) = (check for check in check_head(config) if check.group == "disk")
    assert before.name == "cache"
    ensure(config, staged)
    (after,) = (check for check in check_head(config) if check.group == "disk")
    assert (after.name, after.figures["needed_bytes"]) == ("room", 0)


def test_an_entry_whose_parameter_is_of_the_files_name_is_found_at_the_head_too(
    tiny_config, tiny_data, tmp_path
):
    for split in SPLITS:
        named = tmp_path / f"burgers1d_Nu2e-2_{split}.h5"
        shutil.copy(tiny_data / f"burgers1d_{split}.h5", named)
        with h5py.File(named, "r+") as file:
            del file.attrs["Nu"]
    config = tiny_config(data__task=["burgers1d_Nu2e-2"], data__root=str(tmp_path))
    staged = {split: stage(config, split, None) for split in SPLITS}
    found = []
    for _ in range(2):
        (disk,) = (check for check in check_head(config) if check.group == "disk")
        found.append(disk.figures["needed_bytes"] > 0)
        entry = ensure(config, staged)
    assert found == [True, False]
    assert entry.reused
    checks, found_by_validate = validate_cache(config, validate_data(config)[1])
    assert f"valid, hash={entry.config_hash}" in checks[0].text
    assert found_by_validate == {"burgers1d_Nu2e-2": True}
