"""What is damaged is set aside, said once, shown by the list, and built anew."""

import json
import logging
import os
import threading

import pytest

from ups.errors import Interrupted
from ups.files import unseal
from ups.latents import journal, store
from ups.latents.build import ensure
from ups.latents.entries import entries


@pytest.fixture
def built(tiny_config, stage_all):
    """A config, its sources and the folder of their entry."""
    config = tiny_config()
    sources = stage_all(config)
    entry = ensure(config, sources)
    return config, sources, store.entry_dir(config.training.latent_cache_dir, entry.config_hash)


@pytest.fixture
def stopped(tiny_config, stage_all):
    """The same of a build that was stopped."""
    config, stop = tiny_config(), threading.Event()
    sources = stage_all(config)
    with pytest.raises(Interrupted):
        ensure(config, sources, stop=stop, progress=lambda done, _: done >= 8 and stop.set())
    (directory,) = config.training.latent_cache_dir.glob("*/building-*")
    return config, sources, directory.parent


def cut(path):
    os.truncate(path, path.stat().st_size - 10)


def states(config):
    return [entry.state for entry in entries(config.training.latent_cache_dir)]


@pytest.mark.parametrize(
    ("name", "is_kept"),
    [
        ("CURRENT", False),  # then nothing says which generation it was
        ("2*/.cache_metadata.json", True),
        ("2*/val_000.safetensors", True),
    ],
)
def test_a_damaged_entry_is_listed_as_such_set_aside_said_once_and_built_anew(
    built, caplog, name, is_kept
):
    config, sources, entry = built
    (path,) = entry.glob(name)
    cut(path)
    assert states(config) == ["damaged"]
    with caplog.at_level(logging.INFO, "ups"):
        assert not ensure(config, sources).reused
        assert ensure(config, sources).reused
    (said,) = [record for record in caplog.records if str(path) in record.message]
    assert said.levelno == logging.WARNING
    assert said.message.endswith("building it anew")
    assert len(list(entry.glob("damaged-*"))) == is_kept
    assert sorted(states(config)) == ["complete", *["damaged"] * is_kept]


def test_of_what_was_set_aside_the_newest_is_kept(built):
    config, sources, entry = built
    generations = []
    for _ in range(3):
        generations.append(store.current_generation(entry))
        cut(entry / generations[-1] / "val_000.safetensors")
        ensure(config, sources)
    assert [path.name for path in entry.glob("damaged-*")] == [f"damaged-{generations[-1]}"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda directory: (directory / journal.NAME).write_bytes(b"{}\n"),
        lambda directory: cut(directory / "val_000.safetensors"),
        lambda directory: (directory / "train_000.safetensors").unlink(),
    ],
    ids=["journal", "cut", "gone"],
)
def test_a_damaged_partial_build_is_set_aside_said_once_and_begun_anew(stopped, caplog, damage):
    config, sources, entry = stopped
    (directory,) = entry.glob("building-*")
    damage(directory)
    resumed = []
    assert not ensure(config, sources, progress=lambda done, _: resumed.append(done)).reused
    assert resumed[0] == 0
    assert caplog.text.count("a partial build cannot go on: ") == 1
    assert sorted(states(config)) == ["complete", "damaged"]


def test_a_partial_build_whose_journal_cannot_be_read_is_listed_as_damaged(stopped, flip_bit):
    config, _, entry = stopped
    assert states(config) == ["partial"]
    (path,) = entry.glob(f"building-*/{journal.NAME}")
    flip_bit(path, 200)
    assert states(config) == ["damaged"]


def test_what_an_earlier_version_wrote_has_no_checks_and_is_read(built):
    config, sources, entry = built
    (path,) = entry.glob(f"2*/{store.MANIFEST_NAME}")
    path.write_bytes(unseal(path.read_bytes()))
    assert "check" not in json.loads(path.read_text())
    (entry / store.POINTER_NAME).write_text(path.parent.name)
    assert states(config) == ["complete"]
    assert ensure(config, sources).reused


def test_a_build_that_an_earlier_version_began_goes_on(stopped):
    config, sources, entry = stopped
    (path,) = entry.glob(f"building-*/{journal.NAME}")
    first, *lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([unseal(first), *lines]))
    resumed = []
    ensure(config, sources, progress=lambda done, _: resumed.append(done))
    assert resumed[0] >= 8


def test_the_manifest_of_another_entry_is_not_taken(built, tiny_config):
    config, sources, entry = built
    other = ensure(tiny_config(latent__dim=8), sources)
    other_dir = store.entry_dir(config.training.latent_cache_dir, other.config_hash)
    (path,) = entry.glob(f"2*/{store.MANIFEST_NAME}")
    path.write_bytes((other_dir / other.generation / store.MANIFEST_NAME).read_bytes())
    assert not store.check_cache_valid(entry.parent, entry.name)
    assert not ensure(config, sources).reused
