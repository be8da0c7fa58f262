"""Read trajectories from HDF5: PDEBench's layout and the earlier plan's, one file or shards.

    with TrajectoryFile(path, rows=(0, 1000), grid_points=1024) as file:
        u = file.read(0, 16)             # (16, T, X) float32

A file holds one data set, `tensor` (PDEBench) or `data`, of shape (N, T, X) or (N, T, X, 1), with
the equation's parameter in an attribute (ν in `Nu`, β in `beta`) and the saved times in
`t-coordinate`, T or T + 1 of them. A data set that is contiguous float32 is read straight from its
offset: h5py holds one lock for the whole process, `preadv` none.
"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import numpy.typing as npt

from ups.equations import EQUATIONS, Equation, EquationName
from ups.errors import DataError, ShapeError
from ups.files import read_fully

log = logging.getLogger(__name__)

DATA_KEYS = ("tensor", "data")
SUFFIXES = (".h5", ".hdf5")
ALIASES = {"val": ("val", "valid")}
MOST_LISTED = 8

Frames = npt.NDArray[np.float32]


class TrajectoryFile:
    """Rows of one file; `read` may be called from several threads at once.

    Args:
        rows: [first, end) of the file's trajectories; default all. Row 0 of `read` is `first`.
        grid_points: what X must be.
        equation: that the trajectories are of.
    Attributes:
        num_trajectories, num_frames, grid_points: N (of `rows`), T, X.
        dt: time between saved frames.
        equation, parameter: what it is called, and its value, ν or β.
        num_bytes: of all of `rows`, as `read` returns them.
    Raises:
        DataError: the file is missing, not HDF5, truncated, or lacks its data set or its
            parameter; the data set has the wrong rank, type or grid; `rows` are not all there.
    """

    def __init__(
        self,
        path: Path,
        rows: tuple[int, int] | None = None,
        *,
        grid_points: int | None = None,
        equation: EquationName = "burgers1d",
    ) -> None:
        self.path, self.equation = Path(path), EQUATIONS[equation]
        self._fd: int | None = None
        self._file = _open(self.path)
        try:
            self._data = _find_data(self._file, self.path)
            total, self.num_frames, self.grid_points = _check_shape(
                self._data, self.path, grid_points
            )
            self._first, end = rows or (0, total)
            if not 0 <= self._first < end <= total:
                raise DataError(
                    f"{self.path}: rows [{self._first}, {end}) asked for, the file has {total} "
                    "trajectories; correct the row range of this source"
                )
            self.num_trajectories = end - self._first
            self._row_bytes = 4 * self.num_frames * self.grid_points
            self.num_bytes = self.num_trajectories * self._row_bytes
            self.parameter = _find_parameter(self._file, self._data, self.path, self.equation)
            self.dt = _find_dt(self._file, self._data, self.num_frames, self.path)
            self._offset = _raw_offset(self._data, self.path)
            if self._offset is not None:
                self._fd = os.open(self.path, os.O_RDONLY)
                self._file.close()
        except BaseException:  # whoever called has no file yet to close
            self.close()
            raise

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
        if self._fd is None:
            rows = slice(self._first + lo, self._first + hi)
            self._data.read_direct(out.reshape(hi - lo, *self._data.shape[1:]), rows)
        else:
            assert self._offset is not None
            self._read_raw(self._fd, self._offset + (self._first + lo) * self._row_bytes, out)
        return out

    def read_frames(self, row: int, stride: int) -> Frames:
        """Every `stride`-th frame of one trajectory, (ceil(T / stride), X), and no other byte."""
        times = range(0, self.num_frames, stride)
        out = np.empty((len(times), self.grid_points), np.float32)
        if self._fd is None or self._offset is None:
            frames = self._data[self._first + row, ::stride]
            out[:] = frames.reshape(out.shape)
        else:
            start = self._offset + (self._first + row) * self._row_bytes
            for frame, time in zip(out, times, strict=True):
                self._read_raw(self._fd, start + time * frame.nbytes, frame)
        return out

    def check_finite(self, frames: Frames, lo: int) -> None:
        """Refuse NaN and infinity in what `read(lo, …)` gave.

        Raises:
            DataError: naming the first bad trajectory, as a row of the file.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            total = frames.sum()  # one pass, no temporary; NaN and infinity always reach the sum
        if np.isfinite(total):
            return
        bad = ~np.isfinite(frames).reshape(len(frames), -1).all(axis=1)
        if bad.any():
            raise DataError(
                f"{self.path}: trajectory {self._first + lo + int(bad.argmax())} has NaN or "
                f"infinite values ({int(bad.sum())} of the {len(frames)} just read do), expected "
                "finite ones; fetch or generate the file again, or leave those rows out"
            )

    def _read_raw(self, fd: int, offset: int, out: Frames) -> None:
        if missing := read_fully(fd, out.data.cast("B"), offset):
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
    names = ALIASES.get(split, (split,))
    for name in names:
        for suffix in SUFFIXES:
            if (whole := root / f"{problem}_{name}{suffix}").is_file():
                return [whole]
    for name in names:
        shards = [p for suffix in SUFFIXES for p in root.glob(f"{problem}_{name}_*{suffix}")]
        if shards := sorted(p for p in shards if p.is_file()):
            return shards
    wanted = " or ".join(f"{problem}_{n}{end}" for n in names for end in (".h5", "_*.h5"))
    found = "no such folder"
    if root.is_dir():
        found = f"found {_listed(sorted(p.name for p in root.iterdir()))}"
    raise DataError(
        f"no {split} data in {root}: looked for {wanted} (or .hdf5), {found}; "
        "stage the files there, or set data.root or PDEBENCH_ROOT"
    )


def locate(ends: npt.NDArray[np.int64], index: int) -> tuple[int, int]:
    """Which of several files holds a row, and which of its rows that is.

    Args:
        ends: for each file, the number of rows up to its end.
    """
    which = int(np.searchsorted(ends, index, side="right"))
    return which, index - (int(ends[which - 1]) if which else 0)


def _open(path: Path) -> Any:
    if not path.is_file():
        raise DataError(f"{path}: no such file; stage or generate the data first")
    size = path.stat().st_size
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if cut := re.search(r"truncated file.*stored_eof = (\d+)", str(error)):
            raise _truncated(path, size, int(cut[1])) from None
        if h5py.is_hdf5(path):
            raise DataError(f"{path}: HDF5, but h5py cannot open it: {error}") from error
        raise DataError(
            f"{path}: found {size} bytes that are not HDF5, expected an HDF5 file; "
            "fetch or generate it again"
        ) from None


def _truncated(path: Path, found: int, expected: int) -> DataError:
    return DataError(
        f"{path} is truncated: found {found} bytes, expected at least {expected}; "
        "fetch or generate it again"
    )


def _find_data(file: Any, path: Path) -> Any:
    for key in DATA_KEYS:
        if key not in file:
            continue
        try:
            data = file[key]
        except (KeyError, OSError) as error:
            raise DataError(
                f"{path}: data set {key!r} cannot be opened, the file is truncated or damaged "
                f"({error.args[0]}); fetch or generate it again"
            ) from error
        if isinstance(data, h5py.Dataset):
            return data
    raise DataError(
        f"{path}: no data set {' or '.join(map(repr, DATA_KEYS))}, found {_listed(list(file))}; "
        "rename the data set that holds the trajectories"
    )


def _check_shape(data: Any, path: Path, grid_points: int | None) -> tuple[int, int, int]:
    name, shape = data.name.lstrip("/"), data.shape
    if shape is None or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)):
        raise DataError(
            f"{path}: data set {name!r} has shape {shape}, expected (trajectories, times, points) "
            "or the same with one channel at the end; convert the file"
        )
    num, num_frames, points = (int(n) for n in shape[:3])
    if data.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: data set {name!r} holds {data.dtype}, expected real numbers; convert the file"
        )
    if num < 1 or num_frames < 2:
        raise DataError(
            f"{path}: data set {name!r} has {num} trajectories of {num_frames} frames, "
            "expected at least 1 of at least 2; generate it again"
        )
    if grid_points is not None and points != grid_points:
        raise DataError(
            f"{path}: data set {name!r} has {points} grid points, expected {grid_points}; "
            "set data.grid_points, or use data on that grid"
        )
    return num, num_frames, points


def _raw_offset(data: Any, path: Path) -> int | None:
    """Where the bytes start, if they lie in the file as `read` returns them.

    Raises:
        DataError: they reach beyond the end of the file, or were never written.
    """
    plist = data.id.get_create_plist()
    if plist.get_layout() != h5py.h5d.CONTIGUOUS or plist.get_external_count():
        return None
    offset = data.id.get_offset()
    if offset is None:
        raise DataError(f"{path}: {data.name.lstrip('/')!r} was never written; generate it again")
    num_bytes = int(np.prod(data.shape, dtype=np.int64)) * data.dtype.itemsize
    if offset + num_bytes > (size := path.stat().st_size):
        raise _truncated(path, size, offset + num_bytes)
    return int(offset) if data.dtype == np.dtype("<f4") else None


def _find_parameter(file: Any, data: Any, path: Path, equation: Equation) -> float:
    """An attribute, `Nu` or `beta`, else a constant data set `params`, else the file's name."""
    name, symbol = equation.attribute, equation.symbol
    if (value := _attribute(file, data, name)) is not None:
        return value
    for other in EQUATIONS.values():
        if _attribute(file, data, other.attribute) is not None:
            raise DataError(
                f"{path}: found the attribute {other.attribute!r} of {other.name}, expected "
                f"{name!r} of {equation.name}; correct the equation of its task"
            )
    if isinstance(params := file.get("params"), h5py.Dataset) and params.dtype.kind in "fiu":
        values = np.unique(params[()])
        if len(values) == 1:
            log.info(
                "%s: no attribute %s; %s = %g from the data set params", path, name, symbol, *values
            )
            return float(values[0])
    if match := re.search(rf"{name}(\d+(?:\.\d+)?)", path.stem):
        log.warning(
            "%s: no attribute %s; %s = %s from the file's name", path, name, symbol, match[1]
        )
        return float(match[1])
    raise DataError(
        f"{path}: no attribute {name!r} on the file or on {data.name.lstrip('/')!r}, and no "
        "constant data set 'params'; add the attribute, the model is conditioned on it"
    )


def _attribute(file: Any, data: Any, name: str) -> float | None:
    for holder in (file, data):
        for key in (name, name.lower(), name.capitalize()):
            if key in holder.attrs:
                return float(np.ravel(holder.attrs[key])[0])
    return None


def _find_dt(file: Any, data: Any, num_frames: int, path: Path) -> float:
    """Time between frames: `t-coordinate`, else attribute `dt`, else PDEBench's span of 2."""
    if isinstance(coordinate := file.get("t-coordinate"), h5py.Dataset):
        t = np.ravel(coordinate[()]).astype(np.float64)
        if len(t) not in (num_frames, num_frames + 1):
            raise DataError(
                f"{path}: t-coordinate has {len(t)} entries, expected {num_frames} or "
                f"{num_frames + 1}, the number of frames or one more; correct the file"
            )
        steps = np.diff(t[:num_frames])
        dt = float(steps.mean())
        if not dt > 0 or np.abs(steps - dt).max() > 0.01 * dt:
            raise DataError(
                f"{path}: t-coordinate is not evenly spaced and increasing, as the operator's one "
                "time step needs it; correct the file"
            )
        return float(f"{dt:.6g}")  # float32 times: 0.01, not 0.00999999978
    if (attribute := _attribute(file, data, "dt")) is not None:
        return attribute
    dt = 2.0 / (num_frames - 1)
    log.warning("%s: no t-coordinate and no attribute dt; took %g, PDEBench's t = 0 to 2", path, dt)
    return dt


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return (", ".join(names[:MOST_LISTED]) or "nothing") + more
