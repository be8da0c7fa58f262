"""Latents that training reads from the files of the cache, by reads or through a map of them."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from ups.errors import CacheDamaged
from ups.files import read_fully
from ups.latents import latent_file, store
from ups.latents.latent_file import LatentFile

NUMPY_DTYPES = {"float16": np.float16, "bfloat16": np.int16, "float32": np.float32}
ADVICE_BYTES = 128 << 10  # of a longer range the kernel reads ahead no more than this


class DiskCacheDataset:
    """Latents read from the files of the cache, batch by batch.

    The first row that is wanted of a chunk has all of it read and compared with its checksum: so
    nothing is trained on that was not, and the first step waits for the chunks of its batch alone.
    What is wanted is read from the disk, all rows of a batch at once: of each from its first frame
    to its last, with those between that a time stride leaves out.

    Args:
        files: as the manifests describe them; open until `close`, whatever becomes of their names.
    """

    index_device = "cpu"

    def __init__(
        self,
        files: Sequence[tuple[Path, LatentFile]],
        condition_NC: Tensor,
        time_stride: int,
        device: str,
    ) -> None:
        self._files, self._dtype = files, NUMPY_DTYPES[files[0][1].dtype]
        self._handles = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path, _ in files]
        for handle in self._handles:
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)
        self._buffer = np.empty(max(f.chunk_rows * f.row_bytes for _, f in files), np.uint8)
        self._is_checked = [np.zeros(f.num_chunks, np.bool_) for _, f in files]
        self._stride, self.device = time_stride, device
        self.num_frames = -(-files[0][1].shape[1] // time_stride)
        self._ends = np.cumsum([f.shape[0] for _, f in files])
        self.condition_NC = condition_NC

    def __len__(self) -> int:
        return int(self._ends[-1])

    def close(self) -> None:
        """Close the files."""
        for handle in self._handles:
            os.close(handle)
        self._handles.clear()

    def batch(self, index_B: Tensor, frames_BF: Tensor | None = None) -> Tensor:
        """(B, F, K, D) as stored.

        Raises:
            CacheDamaged: a chunk is not what was written; its entry is set aside.
        """
        if frames_BF is None:  # several reads each, which the disk does at once
            self.will_need(index_B)
        saved_BF = self._saved(index_B, frames_BF)
        batch = np.empty((*saved_BF.shape, *self._files[0][1].shape[2:]), self._dtype)
        for which, is_its_B, rows in self._by_file(index_B):
            self._check(which, rows)
            gathered = self._gather(which, rows, saved_BF[is_its_B])
            if len(rows) == len(batch):
                batch = gathered
            else:
                batch[is_its_B] = gathered
        dtype = getattr(torch, self._files[0][1].dtype)
        return torch.from_numpy(batch).view(dtype).to(self.device)

    def will_need(self, index_B: Tensor, frames_BF: Tensor | None = None) -> None:
        """Have the disk begin to read these frames; of chunks that are not checked yet, all."""
        saved_BF = self._saved(index_B, frames_BF)
        for which, is_its_B, rows in self._by_file(index_B):
            file = self._files[which][1]
            chunks = rows // file.chunk_rows
            is_checked = self._is_checked[which][chunks]
            for chunk in np.unique(chunks[~is_checked]).tolist():
                of_chunk = file.chunk(chunk)
                self._advise(which, of_chunk.start * file.row_bytes, of_chunk.stop * file.row_bytes)
            self._advise_frames(which, rows[is_checked], saved_BF[is_its_B][is_checked])

    def _advise_frames(
        self, which: int, rows: NDArray[np.int64], saved_BF: NDArray[np.int64]
    ) -> None:
        file = self._files[which][1]
        frame_bytes = file.row_bytes // file.shape[1]
        starts = rows * file.row_bytes + saved_BF[:, 0] * frame_bytes
        ends = rows * file.row_bytes + (saved_BF[:, -1] + 1) * frame_bytes
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            self._advise(which, start, end)

    def _advise(self, which: int, first: int, end: int) -> None:
        """Bytes [first, end) of the latents of a file are wanted."""
        offset = self._files[which][1].data_offset
        for start in range(first, end, ADVICE_BYTES):
            num_bytes = min(ADVICE_BYTES, end - start)
            advice = os.POSIX_FADV_WILLNEED
            os.posix_fadvise(self._handles[which], offset + start, num_bytes, advice)

    def _saved(self, index_B: Tensor, frames_BF: Tensor | None) -> NDArray[np.int64]:
        """(B, F), by default all frames, as they are counted in the files."""
        if frames_BF is None:
            frames_BF = torch.arange(self.num_frames).expand(len(index_B), -1)
        return frames_BF.numpy() * self._stride

    def _by_file(
        self, index_B: Tensor
    ) -> Iterator[tuple[int, NDArray[np.bool_], NDArray[np.int64]]]:
        """Each file that trajectories are in, which of them are, and their rows there."""
        which_B = np.searchsorted(self._ends, index_B.numpy(), side="right")
        for which in np.unique(which_B).tolist():
            is_its_B = which_B == which
            first = self._ends[which] - self._files[which][1].shape[0]
            yield which, is_its_B, index_B.numpy()[is_its_B] - first

    def _check(self, which: int, rows: NDArray[np.int64]) -> None:
        """Compare the chunks of these rows with their checksums, where that was not done yet."""
        path, file = self._files[which]
        is_checked = self._is_checked[which]
        for chunk in np.unique(rows // file.chunk_rows).tolist():
            if is_checked[chunk]:
                continue
            of_chunk = file.chunk(chunk)
            read = self._read(
                which, of_chunk.start * file.row_bytes, of_chunk.stop * file.row_bytes
            )
            with damage_set_aside(path):
                checksum = xxhash.xxh3_64_hexdigest(read.data)
                latent_file.check_chunk(path, chunk, checksum, file.checksums[chunk])
            is_checked[chunk] = True

    def _gather(
        self, which: int, rows: NDArray[np.int64], saved_BF: NDArray[np.int64]
    ) -> NDArray[Any]:
        """(B, F, K, D), frames of rows of one file, in order."""
        file = self._files[which][1]
        frame_bytes = file.row_bytes // file.shape[1]
        gathered = np.empty((*saved_BF.shape, *file.shape[2:]), self._dtype)
        for place, (row, saved_F) in enumerate(zip(rows.tolist(), saved_BF, strict=True)):
            start, first = row * file.row_bytes, int(saved_F[0])
            end = start + (int(saved_F[-1]) + 1) * frame_bytes
            read = self._read(which, start + first * frame_bytes, end)
            frames_FKD = read.view(self._dtype).reshape(-1, *file.shape[2:])
            gathered[place] = frames_FKD[saved_F - first]
        return gathered

    def _read(self, which: int, first: int, end: int) -> NDArray[np.uint8]:
        """Bytes [first, end) of the latents of a file; they hold until the next call."""
        path, file = self._files[which]
        read = self._buffer[: end - first]
        with damage_set_aside(path):
            if missing := read_fully(self._handles[which], read.data, file.data_offset + first):
                raise CacheDamaged(f"{path} ends {missing} bytes early")
        return read


class MappedCacheDataset(DiskCacheDataset):
    """Latents in the page cache, of which a map of the files is read: a batch is one gather.

    For latents that memory has room for: nothing is copied before training begins. Chunks are read
    and compared as without a map, so that what the disk cannot read is an error.

    Under a map, bytes that are gone are a signal, which ends the process. Nobody writes to a
    published entry, what is removed stays in the map, and each gather looks at the length of its
    file before. What is left is a stranger who cuts the file between that look and the copy, or a
    page that memory gave up and the disk cannot read again. The next start finds the length, or
    the chunk, wrong, builds the entry anew and resumes.
    """

    def __init__(
        self, files: Sequence[tuple[Path, LatentFile]], condition_NC: Tensor, time_stride: int
    ) -> None:
        super().__init__(files, condition_NC, time_stride, "cpu")
        self._maps, self._frames_MKD = [], []
        try:
            for which, (handle, (_, file)) in enumerate(zip(self._handles, files, strict=True)):
                self._check_length(which)
                mapped = mmap.mmap(
                    handle, file.data_offset + file.num_bytes, access=mmap.ACCESS_READ
                )
                mapped.madvise(mmap.MADV_RANDOM)
                self._maps.append(mapped)
                values = np.frombuffer(mapped, self._dtype, math.prod(file.shape), file.data_offset)
                self._frames_MKD.append(values.reshape(-1, *file.shape[2:]))
        except BaseException:  # nobody has it yet who could close it
            self.close()
            raise

    def close(self) -> None:
        """Give up the map, and close the files."""
        self._frames_MKD.clear()
        for mapped in self._maps:
            mapped.close()
        self._maps.clear()
        super().close()

    def _advise_frames(
        self, which: int, rows: NDArray[np.int64], saved_BF: NDArray[np.int64]
    ) -> None:
        # What was compared is in memory, as a rule. Of pairs a batch has hundreds: a call for each
        # took 12 ms of 512, the gather 0.8; and where one is not there, it is a page or two.
        if saved_BF.shape[1] == self.num_frames:
            super()._advise_frames(which, rows, saved_BF)

    def _gather(
        self, which: int, rows: NDArray[np.int64], saved_BF: NDArray[np.int64]
    ) -> NDArray[Any]:
        self._check_length(which)
        places_BF = rows[:, None] * self._files[which][1].shape[1] + saved_BF
        return self._frames_MKD[which].take(places_BF, axis=0)

    def _check_length(self, which: int) -> None:
        path, file = self._files[which]
        length = file.data_offset + file.num_bytes
        with damage_set_aside(path):
            if (missing := length - os.fstat(self._handles[which]).st_size) > 0:
                raise CacheDamaged(f"{path} ends {missing} bytes early")


@contextmanager
def damage_set_aside(path: Path) -> Iterator[None]:
    """Where a file of an entry turns out to be damaged, take the entry out of use, and say so."""
    try:
        yield
    except CacheDamaged as damage:
        entry = path.parent.parent
        aside = store.quarantine(entry.parent, entry.name) or "nowhere"
        raise CacheDamaged(
            f"{damage}; moved to {aside}: start again, and the entry is built anew"
        ) from damage
