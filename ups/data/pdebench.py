"""Read trajectories from HDF5: PDEBench's layout, the earlier plan's and The Well's.

    with TrajectoryFile(path, rows=(0, 1000), grid_points=1024) as file:
        u = file.read(0, 16)             # (16, T, X) float32

A file holds one data set, `tensor` (PDEBench) or `data`, of shape (N, T, X) or (N, T, X, 1), with
the equation's parameter in an attribute (ν in `Nu`, β in `beta`) and the saved times in
`t-coordinate`, T or T + 1 of them: see `attributes.py`. Of The Well it is the one field in the
group `t0_fields`, with the times in `dimensions/time`. A data set that is contiguous float32 is
read straight from its offset: h5py holds one lock for the whole process, `preadv` none.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import BinaryIO, Protocol, Self

import numpy as np
import numpy.typing as npt

from ups.data import attributes, header
from ups.equations import EQUATIONS, EquationName
from ups.errors import CannotStream, DataError, ShapeError
from ups.files import read_fully

SUFFIXES = (".h5", ".hdf5")
ALIASES = {"val": ("val", "valid")}

Frames = npt.NDArray[np.float32]


class Coming(Protocol):
    """A file that is on its way to the disk."""

    num_bytes: int

    def header(self) -> BinaryIO:
        """The file, to be read here and there: it waits for what it is asked for."""

    def open(self) -> int:
        """A file descriptor of what is there of it; whoever calls closes it."""

    def wait(self, start: int, end: int) -> None:
        """Return when the bytes [start, end) are there."""

    def doubt(self) -> None:
        """Say that it holds what no file should."""


class TrajectoryFile:
    """Rows of one file; `read` may be called from several threads at once.

    Args:
        rows: [first, end) of the file's trajectories; default all. Row 0 of `read` is `first`.
        grid_points: what X must be.
        equation: that the trajectories are of.
        strides: of time and of space; of the frames every so many-th is read, of the points, too.
        parameter: its value, whatever the file tells.
        expected_parameter: its value, which the file then need not tell, but must not deny.
        least_frames: what T must be at least.
        coming: the file, where it is only on its way to `path`: reading waits for the rows.
        header_only: nothing is going to be read of it.
    Attributes:
        num_trajectories, num_frames, grid_points: N (of `rows`), T, X, as they are read.
        dt: time between the frames that are read.
        equation, parameter: what it is called, and its value, ν or β.
        is_named: whether the file does not hold that value: its name tells it, or who opens it.
        num_bytes: of all of `rows`, as `read` returns them.
        is_contiguous: whether its values lie in the file one after the other, as float32.
    Raises:
        DataError: the file is missing, not HDF5, damaged, lacks its data set or its parameter, or
            has another than is expected, or these lie in other files; the data set has the wrong
            rank, type, grid or axes, or was packed by a filter that is not there; `rows` are not
            all there, or not written.
        CannotStream: a file that is on its way holds no contiguous float32.
    """

    def __init__(
        self,
        path: Path,
        rows: tuple[int, int] | None = None,
        *,
        grid_points: int | None = None,
        equation: EquationName = "burgers1d",
        strides: tuple[int, int] = (1, 1),
        parameter: float | None = None,
        expected_parameter: float | None = None,
        least_frames: int = 2,
        coming: Coming | None = None,
        header_only: bool = False,
    ) -> None:
        self.path, self.equation = Path(path), EQUATIONS[equation]
        self._t_stride, self._x_stride = strides
        self._fd: int | None = None
        self._coming = coming
        self._opening = threading.Lock()
        self._file = header.open_hdf5(self.path, coming.header() if coming else None)
        try:
            with header.damage_named(self.path):
                self._read_header(rows, grid_points, parameter, expected_parameter, least_frames)
                if not header_only:
                    self._prepare()
        except BaseException:  # whoever called has no file yet to close
            self.close()
            raise

    def _read_header(
        self,
        rows: tuple[int, int] | None,
        grid_points: int | None,
        parameter: float | None,
        expected: float | None,
        least_frames: int,
    ) -> None:
        file, path = self._file, self.path
        self._data = data = header.find_data(file, path)
        total, saved_frames, saved_points = header.check_shape(
            data, path, grid_points, least_frames
        )
        header.check_axes(file, saved_points, path)
        self._first, end = rows or (0, total)
        if not 0 <= self._first < end <= total:
            raise DataError(
                f"{path}: rows [{self._first}, {end}) asked for, the file has {total} "
                "trajectories; correct the row range of this source"
            )
        self.num_trajectories = end - self._first
        self.num_frames = -(-saved_frames // self._t_stride)
        self.grid_points = -(-saved_points // self._x_stride)
        self._saved_points = saved_points
        self._num_rows, self._row_bytes = total, 4 * saved_frames * saved_points
        self.num_bytes = 4 * self.num_trajectories * self.num_frames * self.grid_points
        if parameter is not None:
            self.parameter, self.is_named = parameter, False
        else:
            found = attributes.find_parameter(file, data, path, self.equation, expected)
            self.parameter, self.is_named = found
        self.dt = attributes.find_dt(file, data, saved_frames, path) * self._t_stride
        self._no_values, self._fill = header.no_values(data), header.fill_value(data)
        size = path.stat().st_size if self._coming is None else self._coming.num_bytes
        self._offset = header.find_offset(data, path, size)
        self.is_contiguous = self._offset is not None

    def _prepare(self) -> None:
        """Be ready to read."""
        file, data, path = self._file, self._data, self.path
        if self._offset is None and self._coming is not None:
            raise CannotStream(f"{path} is in chunks, or not float32")
        rows = self._first, self._first + self.num_trajectories
        header.check_written(data, rows, path)
        self._filters = header.missing_filters(data)
        if self._offset is not None:
            if self._coming is None:
                self._fd = os.open(path, os.O_RDONLY)
            file.close()
        elif self._filters:
            self.read_frames(0, self.num_frames)  # a chunk may have been written without it

    def read(self, lo: int, hi: int, out: Frames | None = None) -> Frames:
        """Trajectories [lo, hi), counted from the first of `rows`.

        Args:
            out: (hi - lo, T, X) float32, contiguous, to read into; default a new array.
        Raises:
            DataError: they are not all there, or the file has become shorter.
            ShapeError: `out` does not fit.
        """
        if not 0 <= lo < hi <= self.num_trajectories:
            raise DataError(
                f"{self.path}: trajectories [{lo}, {hi}) asked for, there are "
                f"{self.num_trajectories}"
            )
        shape = (hi - lo, self.num_frames, self.grid_points)
        if out is None:
            out = np.empty(shape, np.float32)
        elif out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
            raise ShapeError(
                f"out: found {out.dtype} {out.shape}, expected contiguous float32 {shape}"
            )
        self._wait(lo, hi)
        if (self._t_stride, self._x_stride) != (1, 1):
            for row, frames in enumerate(out, lo):
                self._read_frames(row, self._t_stride, frames)
        elif self._offset is None:
            rows = slice(self._first + lo, self._first + hi)
            try:
                self._data.read_direct(out.reshape(hi - lo, *self._data.shape[1:]), rows)
            except (OSError, RuntimeError) as error:
                raise self._unreadable(lo, hi, error) from error
        else:
            self._read_raw(self.bytes_of(lo, hi)[0], out)
        if self._no_values or self._fill is not None:
            self.check_finite(out, lo)
        return out

    def read_frames(self, row: int, stride: int) -> Frames:
        """Every `stride`-th frame of one trajectory, (ceil(T / stride), X), and no other byte."""
        out = np.empty((-(-self.num_frames // stride), self.grid_points), np.float32)
        self._wait(row, row + 1)
        self._read_frames(row, stride * self._t_stride, out)
        if self._no_values or self._fill is not None:
            self.check_finite(out[None], row)
        return out

    def _read_frames(self, row: int, stride: int, out: Frames) -> None:
        """Every `stride`-th saved frame of one trajectory into (frames, X)."""
        if self._offset is None:
            try:
                read = self._data[self._first + row, ::stride]
            except (OSError, RuntimeError) as error:
                raise self._unreadable(row, row + 1, error) from error
            out[:] = read.reshape(len(out), -1)[:, :: self._x_stride]
            return
        start, _ = self.bytes_of(row, row + 1)
        whole = out[0] if self._x_stride == 1 else np.empty(self._saved_points, np.float32)
        for number, frame in enumerate(out):
            into = frame if self._x_stride == 1 else whole
            self._read_raw(start + number * stride * whole.nbytes, into)
            if into is whole:
                frame[:] = whole[:: self._x_stride]

    def check_finite(self, frames: Frames, lo: int) -> None:
        """Refuse what is no field value in what `read(lo, …)` gave: NaN, infinity, a fill value.

        Raises:
            DataError: naming the first bad trajectory, as a row of the file.
        """
        bad = self.find_bad(frames)
        if not bad.any():
            return
        if self._coming is not None:
            self._coming.doubt()
        first = int(bad.argmax())
        what, largest = "NaN or infinite values", frames[first].flat[np.abs(frames[first]).argmax()]
        if np.isfinite(largest):  # argmax finds NaN, too
            what = f"values that no field has, such as {largest:g}"
        raise DataError(
            f"{self.path}: trajectory {self._first + lo + first} has {what} ({int(bad.sum())} of "
            f"the {len(frames)} just read do), expected finite ones below {header.BOUND:g}; fetch "
            "or generate the file again, or leave those rows out"
        )

    def find_bad(self, frames: Frames) -> npt.NDArray[np.bool_]:
        """(n,), which of these trajectories hold what is no field value."""
        return header.find_bad(frames, self._no_values, self._fill)

    def _unreadable(self, lo: int, hi: int, error: Exception) -> DataError:
        rows = f"{self.path}: rows [{self._first + lo}, {self._first + hi}) cannot be read"
        if self._filters:
            return DataError(
                f"{rows}, they are compressed by {header.listed(self._filters)}, which HDF5 does "
                "not find: install hdf5plugin and set HDF5_PLUGIN_PATH to what `python -c 'import "
                "hdf5plugin; print(hdf5plugin.PLUGIN_PATH)'` prints, or repack the file where the "
                "filter is there (h5repack -f GZIP=4)"
            )
        return DataError(f"{rows}, the file is damaged ({error}); {header.FETCH_AGAIN}")

    def bytes_of(self, lo: int, hi: int) -> tuple[int, int]:
        """Where in the file trajectories [lo, hi) are, of one that is contiguous float32."""
        assert self._offset is not None
        first = self._offset + self._first * self._row_bytes
        return first + lo * self._row_bytes, first + hi * self._row_bytes

    @property
    def data_bytes(self) -> tuple[int, int]:
        """Where in the file all trajectories are, of `rows` or not, of one that is contiguous."""
        assert self._offset is not None
        return self._offset, self._offset + self._num_rows * self._row_bytes

    def _wait(self, lo: int, hi: int) -> None:
        if self._coming is not None:
            self._coming.wait(*self.bytes_of(lo, hi))
            with self._opening:
                if self._fd is None:
                    self._fd = self._coming.open()

    def _read_raw(self, offset: int, out: Frames) -> None:
        assert self._fd is not None
        if missing := read_fully(self._fd, out.data.cast("B"), offset):
            raise DataError(
                f"{self.path} ends at byte {offset + out.nbytes - missing}, {missing} bytes early: "
                "it became shorter while it was read; fetch or generate it again"
            )

    def close(self) -> None:
        self._file.close()
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def find_files(root: Path, problem: str, split: str) -> list[Path]:
    """`{root}/{problem}_{split}.h5`, else the shards `{problem}_{split}_*.h5` in order of name.

    Also .hdf5, and `valid` for `val`; links are followed.

    Raises:
        DataError: there is none; the message says what was looked for.
    """
    if choices := _choices(root, problem, split):
        return choices[0]
    names = ALIASES.get(split, (split,))
    wanted = " or ".join(f"{problem}_{n}{end}" for n in names for end in (".h5", "_*.h5"))
    found = "no such folder"
    if root.is_dir():
        found = f"found {header.listed(sorted(p.name for p in root.iterdir()))}"
    raise DataError(
        f"no {split} data in {root}: looked for {wanted} (or .hdf5), {found}; "
        "stage the files there, or set data.root or PDEBENCH_ROOT"
    )


def left_out(root: Path, problem: str, split: str) -> list[Path]:
    """What is called like files of the split, and not among those that `find_files` gives."""
    return [path for choice in _choices(root, problem, split)[1:] for path in choice]


def _choices(root: Path, problem: str, split: str) -> list[list[Path]]:
    """All that the files of a split could be, what comes first before the others."""
    names = ALIASES.get(split, (split,))
    wholes = [[root / f"{problem}_{name}{suffix}"] for name in names for suffix in SUFFIXES]
    shards = [
        sorted(p for suffix in SUFFIXES for p in root.glob(f"{problem}_{name}_*{suffix}"))
        for name in names
    ]
    there = [[path for path in choice if path.is_file()] for choice in (*wholes, *shards)]
    return [choice for choice in there if choice]


def locate(ends: npt.NDArray[np.int64], index: int) -> tuple[int, int]:
    """Which of several files holds a row, and which of its rows that is.

    Args:
        ends: for each file, the number of rows up to its end.
    """
    which = int(np.searchsorted(ends, index, side="right"))
    return which, index - (int(ends[which - 1]) if which else 0)
