"""Latents that stay in the files of the cache: what is read of them, and when it is an error."""

import mmap
import os
import random
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash

from ups.latents.latent_file import LatentFile
from ups.latents.on_disk import DiskCacheDataset, MappedCacheDataset
from ups.machine import page_cache
from ups.training.step import Feed, epoch_order

ROWS, FRAMES, TOKENS, DIM = 64, 201, 16, 32  # 206 KB a row, as of PDEBench
ROOM = 1.2  # of what is wanted, so much may be read


@pytest.fixture
def files(tmp_path):
    """A file of noise, and what its manifest would say of it."""
    values = random.Random(3).randbytes(ROWS * FRAMES * TOKENS * DIM * 2)
    file = LatentFile(
        name="train_000.safetensors",
        split="train",
        shape=(ROWS, FRAMES, TOKENS, DIM),
        dtype="float16",
        dt=0.01,
        parameters={"nu": 0.01},
        chunk_rows=8,
    )
    ends = [file.chunk(n).stop * file.row_bytes for n in range(file.num_chunks)]
    chunks = [values[first:end] for first, end in zip([0, *ends], ends, strict=False)]
    checksums = tuple(map(xxhash.xxh3_64_hexdigest, chunks))
    path = tmp_path / file.name
    with path.open("wb") as handle:
        handle.write(file.header + values)
        os.fsync(handle.fileno())
    return [(path, file.model_copy(update={"checksums": checksums}))]


def opened(kind, files):
    condition_NC = torch.zeros(ROWS, 2)
    if kind == "map":
        return MappedCacheDataset(files, condition_NC, 1)
    return DiskCacheDataset(files, condition_NC, 1, "cpu")


def read_bytes():
    """What this process has had the disk read so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


def forget(data, path, offset, num_bytes):
    """Have memory give up a range of the file, as where latents are larger than memory."""
    start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
    num_bytes = (offset + num_bytes) // mmap.PAGESIZE * mmap.PAGESIZE - start
    if isinstance(data, MappedCacheDataset):
        data._maps[0].madvise(mmap.MADV_DONTNEED, start, num_bytes)
    handle = os.open(path, os.O_RDONLY)
    os.posix_fadvise(handle, start, num_bytes, os.POSIX_FADV_DONTNEED)
    os.close(handle)


@pytest.mark.parametrize("kind", ["map", "disk"])
def test_the_disk_reads_what_is_wanted_though_memory_keeps_nothing_that_was_used(
    tiny_config, files, kind
):
    ((path, file),) = files
    page_cache.forget(path)
    before = read_bytes()
    path.read_bytes()
    if read_bytes() - before < file.num_bytes:
        pytest.skip("no disk is below the temporary folder, or its reads are not counted")
    page_cache.forget(path)
    with closing(opened(kind, files)) as data:
        config = tiny_config(training__batch_size=6)
        feed, order = Feed(data, config, "cpu"), epoch_order(data, config, 0)
        feed.begin_epoch(order, 0)
        before = read_bytes()
        for index_B in order.split(6):
            feed.draw(len(index_B))
            for row in index_B.tolist():
                forget(data, path, file.data_offset + row * file.row_bytes, file.row_bytes)
        assert 0.9 < (read_bytes() - before) / file.num_bytes < ROOM

        forget(data, path, file.data_offset, file.num_bytes)
        before = read_bytes()
        for row in (50, 3, 31):  # of chunks that were compared before
            data.batch(torch.tensor([row]))
        assert 0.9 < (read_bytes() - before) / (3 * file.row_bytes) < ROOM


@pytest.mark.parametrize("kind", ["map", "disk"])
def test_a_batch_is_that_of_the_file_though_its_name_is_gone(files, kind):
    ((path, file),) = files
    stored = np.fromfile(path, np.int16, offset=file.data_offset).reshape(file.shape)
    index = torch.tensor([63, 0, 17])
    frames = torch.tensor([[1, 2], [0, 200], [3, 9]])
    with closing(opened(kind, files)) as data:
        path.unlink()
        assert np.array_equal(data.batch(index).view(torch.int16), stored[index])
        picked = data.batch(index, frames).view(torch.int16)
        assert np.array_equal(picked, stored[index[:, None], frames])
