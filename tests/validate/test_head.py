"""What a run checks at its head: cheap, and all faults in one message."""

import subprocess
import sys

import pytest
import yaml

from ups.config import read_config
from ups.errors import ValidationFailed
from ups.validate.head import check_head, require_valid


@pytest.fixture
def written(in_store, tmp_path):
    """`written(**overrides)`: the parsed file of a tiny config with its data in the store."""

    def write(overrides=None):
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(in_store().config.model_dump(mode="json")))
        return read_config(path, overrides)

    return write


def test_a_valid_config_passes_without_a_word(written, caplog):
    require_valid(written())
    assert caplog.text == ""


def test_all_faults_are_in_one_message(written, tmp_path):
    (tmp_path / "taken").write_text("")
    faulty = {
        "latnt.dim": 3,
        "training.seed": "x",
        "latent.tokens": 24,
        "training.compile": "graph",
        "training.device": "cpu",
        "training.latent_cache_dir": str(tmp_path / "taken" / "cache"),
    }
    with pytest.raises(ValidationFailed) as error:
        require_valid(written(faulty), tmp_path / "none.pt")
    title, *lines = str(error.value).splitlines()
    assert title == "6 faults, found before anything was done:"
    assert [line.partition(":")[0] for line in lines] == [
        "config, training.seed",
        "config, latnt",
        "config, latent.tokens",
        f"disk, {tmp_path / 'taken' / 'cache'}",
        "device, compile",
        "checkpoint, resume",
    ]


def test_missing_local_files_are_found_at_once(tiny_config, tmp_path):
    from ups.config import Parsed

    config = tiny_config(data__root=str(tmp_path))
    with pytest.raises(ValidationFailed, match="3 faults") as error:
        require_valid(Parsed("x", config))
    assert "data, train: no train data in" in str(error.value)


def test_a_warning_goes_to_the_log(written, caplog, monkeypatch):
    monkeypatch.setattr("ups.validate.memory.available_ram_mb", lambda: 0.001)
    generate = {"nu": 0.1, "num_trajectories": {"train": 20, "val": 5, "test": 6}}
    require_valid(written({"data.generate": generate}))
    assert "memory, latents: " in caplog.text
    assert "reading them from disk instead" in caplog.text


def test_a_checkpoint_of_the_run_itself_is_what_a_retry_needs(tmp_path):
    from ups.runs import checkpoint_to_resume

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
        "from ups.config import read_config\n"
        "from ups.validate.head import check_head\n"
        "checks = check_head(read_config('train_burgers_pdebench'))\n"
        "assert {'config', 'memory', 'disk', 'device'} <= {c.group for c in checks}\n"
        "print([m for m in ('torch', 'h5py', 'boto3', 'prefect') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_room_that_an_entry_already_has_is_not_asked_for_again(
    written, stage_from_store, monkeypatch
):
    from ups.latents.build import ensure

    parsed = written()
    staged = stage_from_store(parsed.config)
    before = next(c for c in check_head(parsed) if c.group == "disk")
    assert before.name == "cache"
    ensure(parsed.config, staged)
    after = next(c for c in check_head(parsed) if c.group == "disk")
    assert (after.name, after.figures["needed_bytes"]) == ("room", 0)
