"""Encode one chunk of trajectories: read, project, cast, on the CPU or through a GPU."""

from __future__ import annotations

import logging
import threading
from typing import Self

import torch
from torch import Tensor

from ups.config import RunConfig
from ups.data.pdebench import TrajectoryFile
from ups.errors import DataError
from ups.latents.encode import PatchEncoder

log = logging.getLogger(__name__)

CPU_BATCH = 2
MOST_SQUARES = 1e20  # of latents of order one; the square of what no field has is far beyond


def _sum_of_squares(tensor: Tensor) -> Tensor:
    flat = tensor.flatten()
    return torch.dot(flat, flat)


def bytes_of(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, of any dtype, without a copy."""
    return tensor.view(torch.uint8).numpy().data.cast("B")


class ChunkEncoder:
    """Encodes chunks from several threads at once, each in buffers (and a stream) of its own.

    One worker takes a chunk all the way, so reading, copying, encoding and writing overlap between
    workers without queues, and memory is bounded by workers x chunk. On the CPU a worker computes
    on one thread and in batches that stay in its core's cache.
    """

    def __init__(self, config: RunConfig, encoder: PatchEncoder, device: str) -> None:
        self._dtype = getattr(torch, config.training.latent_cache_dtype)
        largest = torch.finfo(self._dtype).max
        self._most_squares = min(largest**2, MOST_SQUARES)
        self._encoders = {"cpu": encoder.to("cpu")}
        self._device = device
        self._batch = config.training.encode_batch_size
        if device != "cpu":
            self._encoders[device] = encoder.to(device)
        self._local = threading.local()
        self._lock = threading.Lock()
        self._threads_before = torch.get_num_threads()
        self._single_threaded = config.features.parallel_encode and config.training.num_workers > 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        torch.set_num_threads(self._threads_before)

    def encode(self, source: TrajectoryFile, first: int, end: int) -> memoryview:
        """The latents of rows [first, end) as stored: the bytes of a (n, T, K, D) array.

        The view is the calling thread's own and holds until its next call.

        Raises:
            DataError: a value of the source is no field value, or overflows the stored dtype.
        """
        if self._single_threaded and not getattr(self._local, "ready", False):
            torch.set_num_threads(1)
            self._local.ready = True
        encoder = self._encoders["cpu"]
        tokens = source.grid_points // encoder.weight_PD.shape[0]
        shape = (end - first, source.num_frames, tokens, encoder.weight_PD.shape[1])
        latents = self._buffer("latents", shape, self._dtype)
        squares = self._encode(source, first, latents)
        if not squares < self._most_squares:  # NaN compares as false
            source.check_finite(source.read(first, end), first)
            if not torch.isfinite(latents).all():
                raise DataError(
                    f"{source.path}: rows {first} to {end} overflow {self._dtype}; "
                    "set training.latent_cache_dtype to float32"
                )
        return bytes_of(latents)

    def _encode(self, source: TrajectoryFile, first: int, latents: Tensor) -> float:
        """Fill `latents`; returns the sum of the squares of what was cast into it.

        Every value that is not finite, or too large for the stored dtype, shows in that sum, which
        costs a fourth of looking at the stored values.
        """
        while self._device != "cpu":
            batch = self._batch
            try:
                return self._encode_on_gpu(source, first, latents, batch)
            except torch.cuda.OutOfMemoryError:
                self._shrink(batch)
        return self._encode_on_cpu(source, first, latents)

    def _encode_on_cpu(self, source: TrajectoryFile, first: int, latents: Tensor) -> float:
        squares = 0.0
        for i in range(0, len(latents), CPU_BATCH):
            batch = latents[i : i + CPU_BATCH]
            frames = self._read(source, first + i, len(batch))
            product = self._buffer("product", batch.shape, torch.float32)
            encoded = self._encoders["cpu"].encode(frames, out=product)
            squares += _sum_of_squares(encoded).item()
            batch.copy_(encoded)
        return squares

    def _encode_on_gpu(
        self, source: TrajectoryFile, first: int, latents: Tensor, batch: int
    ) -> float:
        """Wait once a chunk, as its bytes are written next: for the thread's own stream alone."""
        frames = self._read(source, first, len(latents))
        stream = getattr(self._local, "stream", None)
        if stream is None:
            stream = self._local.stream = torch.cuda.Stream("cuda")
            # The encoder was copied, and memory may have been freed, on the default stream.
            stream.wait_stream(torch.cuda.default_stream())
        try:
            with torch.cuda.stream(stream):
                squares = torch.zeros((), device="cuda")
                for i in range(0, len(frames), batch):
                    on_gpu = frames[i : i + batch].to("cuda", non_blocking=True)
                    encoded = self._encoders["cuda"].encode(on_gpu)
                    squares += _sum_of_squares(encoded)
                    latents[i : i + batch].copy_(encoded.to(self._dtype), non_blocking=True)
                return squares.item()
        finally:
            stream.synchronize()

    def _read(self, source: TrajectoryFile, first: int, count: int) -> Tensor:
        shape = (count, source.num_frames, source.grid_points)
        frames = self._buffer("frames", shape, torch.float32)
        source.read(first, first + count, out=frames.numpy())
        return frames

    def _shrink(self, failed_batch: int) -> None:
        """Halve the batch that failed, once for all the workers that it failed."""
        with self._lock:
            if self._batch != failed_batch:
                return
            if self._batch > 1:
                self._batch //= 2
                log.warning("out of GPU memory: encoding with batch %d", self._batch)
            elif self._device != "cpu":
                log.warning("out of GPU memory at batch 1: encoding on the CPU instead")
                self._device = "cpu"

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of this shape in memory of this thread's own; pinned where a GPU reads it."""
        buffer: Tensor | None = getattr(self._local, name, None)
        if buffer is None or len(buffer) < shape[0] or buffer.shape[1:] != shape[1:]:
            buffer = torch.empty(shape, dtype=dtype, pin_memory=self._device != "cpu")
            setattr(self._local, name, buffer)
        return buffer if len(buffer) == shape[0] else buffer[: shape[0]]
