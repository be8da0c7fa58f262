"""Parts of an entry that are encoded by a call in this process, in place of a cluster's workers."""

from contextlib import contextmanager
from functools import partial

import pytest

from ups.errors import CacheDamaged, ClusterError, DataError
from ups.latents import parts, store
from ups.latents.build import ensure


@pytest.fixture
def build(tiny_config, stage_all, tmp_path):
    """`build(encode)`: the bytes of an entry in row blocks, each encoded by this call."""

    def make(encode):
        class Here:
            def encode(self, config, encoder, every, take, *_stop):
                for part in every:
                    take(part, encode(config, encoder, part))

        @contextmanager
        def spread(config, sources):
            yield Here()

        config = tiny_config(training__latent_cache_dir=str(tmp_path / "in-parts"))
        ensure(config, stage_all(config), plan=partial(parts.SpreadBuild, spread=spread))
        return bytes_of(config)

    return make


def bytes_of(config):
    (manifest,) = store.list_entries(config.training.latent_cache_dir)
    directory = store.generation_dir(config.training.latent_cache_dir, manifest)
    return [(directory / file.name).read_bytes() for file in manifest.files]


@pytest.mark.parametrize("block", [1, 1 << 30])  # a chunk, a file
def test_parts_make_the_entry_that_one_machine_makes(
    build, tiny_config, stage_all, monkeypatch, block
):
    monkeypatch.setattr(parts, "LEAST_BYTES", block)
    labels = []

    def encode(config, encoder, part):
        labels.append(part.label)
        return parts.encode_part(config, encoder, part)

    found = build(encode)
    config = tiny_config()
    ensure(config, stage_all(config))
    assert found == bytes_of(config)
    whole = ["train_000", "val_000"]
    assert labels[:2] == (whole if block > 1 else ["train_000 rows 0-4", "train_000 rows 4-8"])


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("code", {"ups": "9.9"}, ClusterError("has .*, expected {'ups': '9.9'}: install the same")),
        ("source_state", (1, 1), DataError("finds another file, by its size or time")),
        ("source", "/nowhere.h5", DataError("finds no such file")),
        ("directory", "/nowhere", ClusterError("does not see /nowhere, or it is gone")),
    ],
)
def test_a_worker_that_would_encode_something_else_refuses(build, field, value, error):
    def encode(config, encoder, part):
        changed = part.model_validate({**part.model_dump(), field: value})
        return parts.encode_part(config, encoder, changed)

    with pytest.raises(type(error), match=str(error)):
        build(encode)


def test_a_block_that_arrives_otherwise_than_it_was_written_makes_no_entry(
    build, monkeypatch, tmp_path
):
    monkeypatch.setattr(parts, "LEAST_BYTES", 1)

    def encode(config, encoder, part):
        encoded = parts.encode_part(config, encoder, part)
        path = part.directory / encoded.name
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
        return encoded

    with pytest.raises(CacheDamaged, match="look at the file system that both share"):
        build(encode)
    assert not list(tmp_path.glob("in-parts/*/CURRENT"))
    assert not list(tmp_path.glob(f"in-parts/*/building-*/*{parts.SUFFIX}*"))
