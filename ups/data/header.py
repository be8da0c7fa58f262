"""The data set of an HDF5 file that holds the trajectories: is it there, whole, and what it seems.

All of it has to lie in this very file: the cache key is made of its bytes, and of no other's.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from ups.errors import DataError, UpsError

DATA_KEYS = ("tensor", "data")
TIMES = "t-coordinate"
PACKING = {"scale_factor": 1, "add_offset": 0}  # netCDF's names, and the values that change nothing
NO_VALUE = ("_FillValue", "missing_value")  # netCDF's, too
MOST_LISTED = 8
DAMAGE = (OSError, RuntimeError, KeyError, TypeError, ValueError, OverflowError)  # h5py's errors
FETCH_AGAIN = "fetch or generate it again"
UNREADABLE = "change who may read it, or look at the health of its disk"


def open_hdf5(path: Path, content: BinaryIO | None = None) -> Any:
    """The open file.

    Args:
        content: what is read in its place, of a file that is on its way to `path`.
    Raises:
        DataError: it is missing, not HDF5, or truncated.
    """
    if content is not None:
        try:
            return h5py.File(content, "r")
        except OSError as error:
            if "signature not found" in str(error):
                raise DataError(
                    f"{path}: what is fetched for it is not HDF5, expected an HDF5 file"
                ) from None
            raise DataError(f"{path}: h5py cannot open what is fetched for it: {error}") from error
    if not path.is_file():
        raise DataError(f"{path}: no such file; stage or generate the data first")
    size = path.stat().st_size
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if error.errno is not None:  # what the system says; HDF5's own faults have no number
            reason = os.strerror(error.errno)
            raise DataError(f"{path} cannot be read: {reason}; {UNREADABLE}") from None
        if cut := re.search(r"truncated file.*stored_eof = (\d+)", str(error)):
            raise truncated(path, size, int(cut[1])) from None
        if h5py.is_hdf5(path):
            raise DataError(f"{path}: HDF5, but h5py cannot open it: {error}") from error
        raise DataError(
            f"{path}: found {size} bytes that are not HDF5, expected an HDF5 file; {FETCH_AGAIN}"
        ) from None


def truncated(path: Path, found: int, expected: int) -> DataError:
    """The error of a file that is shorter than what it says of itself."""
    return DataError(
        f"{path} is truncated: found {found} bytes, expected at least {expected}; {FETCH_AGAIN}"
    )


def check_own_values(path: Path) -> None:
    """Refuse a file whose trajectories or times lie in others: its hash tells of no change there.

    Unlike opening it to be read, this takes as long whatever the number of chunks.

    Raises:
        DataError: they do, or the file is not one of trajectories.
    """
    with open_hdf5(path) as file, damage_named(path):
        find_data(file, path)
        member(file, TIMES, path)


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Make h5py's errors ours.

    Raises:
        DataError: instead of them.
    """
    try:
        yield
    except UpsError:
        raise
    except DAMAGE as error:
        raise DataError(
            f"{path}: HDF5, but h5py cannot read what it holds, it is damaged or of a kind of its "
            f"own ({error}); {FETCH_AGAIN}"
        ) from error


def find_data(file: Any, path: Path) -> Any:
    """The data set that holds the trajectories.

    Raises:
        DataError: there is none, or its values lie in other files.
    """
    for key in DATA_KEYS:
        if (data := member(file, key, path)) is not None:
            return data
    raise DataError(
        f"{path}: no data set {' or '.join(map(repr, DATA_KEYS))}, found {listed(list(file))}; "
        "rename the data set that holds the trajectories"
    )


def member(file: Any, name: str, path: Path) -> Any:
    """The data set of this name; None where there is none.

    Raises:
        DataError: its values lie in other files, or it cannot be opened.
    """
    if name not in file:
        return None
    link = file.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        raise _elsewhere(path, name, "a link into another file", [link.filename])
    try:
        found = file[name]
    except (KeyError, OSError) as error:
        raise DataError(
            f"{path}: data set {name!r} cannot be opened, the file is truncated or damaged "
            f"({error.args[0]}); {FETCH_AGAIN}"
        ) from error
    if not isinstance(found, h5py.Dataset):
        return None
    if found.file.filename != file.filename and not path.samefile(found.file.filename):
        raise _elsewhere(path, name, "a link into another file", [found.file.filename])
    if found.is_virtual:
        sources = sorted({source.file_name for source in found.virtual_sources()})
        raise _elsewhere(path, name, "a virtual data set", sources)
    if found.external:
        names = [entry[0] for entry in found.external]
        raise _elsewhere(path, name, "a data set with external storage", names)
    return found


def _elsewhere(path: Path, name: str, kind: str, files: list[str]) -> DataError:
    found = [name for name in files if (path.parent / name).exists() or Path(name).exists()]
    others = [name if name in found else f"{name} (missing)" for name in files]
    return DataError(
        f"{path}: {name!r} is {kind}, its values lie in {listed(others)}; expected them in this "
        "file, whose hash tells of a change: copy them into it, or use those files as the sources"
    )


def check_shape(
    data: Any, path: Path, grid_points: int | None, least_frames: int = 2
) -> tuple[int, int, int]:
    """Numbers of trajectories, frames and points.

    Raises:
        DataError: rank, type or grid are not those of trajectories, or the values are packed.
    """
    name, shape = data.name.lstrip("/"), data.shape
    if shape is None or not (len(shape) == 3 or (len(shape) == 4 and shape[3] == 1)):
        raise DataError(
            f"{path}: data set {name!r} has shape {shape}, expected (trajectories, times, points) "
            "or the same with one channel at the end; convert the file"
        )
    num, num_frames, points = (int(n) for n in shape[:3])
    packing = [k for k, no in PACKING.items() if k in data.attrs and np.any(data.attrs[k] != no)]
    if packing or data.dtype.kind != "f":
        packed = f" with {' and '.join(packing)}" if packing else ""
        raise DataError(
            f"{path}: data set {name!r} holds {data.dtype}{packed}, expected real numbers in "
            "floating point, as they are; convert the file (packed values: value x scale_factor + "
            "add_offset)"
        )
    if num < 1 or num_frames < least_frames:
        raise DataError(
            f"{path}: data set {name!r} has {num} trajectories of {num_frames} frames, "
            f"expected at least 1 of at least {least_frames}; generate it again"
        )
    if grid_points is not None and points != grid_points:
        raise DataError(
            f"{path}: data set {name!r} has {points} grid points, expected {grid_points}; "
            "set data.grid_points, or use data on that grid"
        )
    return num, num_frames, points


def check_axes(file: Any, points: int, path: Path) -> None:
    """Refuse a data set whose last axis is not the one of `x-coordinate`, where there is one.

    Raises:
        DataError: it has another number of entries.
    """
    x = file.get("x-coordinate")
    if not isinstance(x, h5py.Dataset) or x.ndim != 1 or x.size in (points, points + 1):
        return
    raise DataError(
        f"{path}: x-coordinate has {x.size} entries, and the last axis of the data set {points} "
        "points, expected as many: the axes are transposed, or the file is cut; convert it to "
        "(trajectories, times, points)"
    )


def check_written(data: Any, rows: tuple[int, int], path: Path) -> None:
    """Refuse rows of a chunked data set that were never written: they read as its fill value.

    Raises:
        DataError: a chunk of these rows is not in the file.
    """
    if data.chunks is None:
        return
    grid = [-(-n // c) for n, c in zip(data.shape, data.chunks, strict=True)]
    if data.id.get_num_chunks() == math.prod(grid):
        return
    deep = data.chunks[0]
    wanted = range(rows[0] // deep, -(-rows[1] // deep))
    for place in itertools.product(wanted, *map(range, grid[1:])):
        corner = tuple(i * c for i, c in zip(place, data.chunks, strict=True))
        if data.id.get_chunk_info_by_coord(corner).byte_offset is None:
            first = max(rows[0], corner[0])
            raise DataError(
                f"{path}: {data.name.lstrip('/')!r} was never written from trajectory {first} on "
                f"(chunk {corner}); {FETCH_AGAIN}, or leave those rows out"
            )


def find_offset(data: Any, path: Path, size: int) -> int | None:
    """Where the bytes start, if they lie in the file as contiguous float32.

    Args:
        size: of the file, in bytes.
    Raises:
        DataError: they reach beyond the end of the file, or were never written.
    """
    if data.id.get_create_plist().get_layout() != h5py.h5d.CONTIGUOUS:
        return None
    offset = data.id.get_offset()
    if offset is None:
        raise DataError(f"{path}: {data.name.lstrip('/')!r} was never written; generate it again")
    num_bytes = int(np.prod(data.shape, dtype=np.int64)) * data.dtype.itemsize
    if offset + num_bytes > size:
        raise truncated(path, size, offset + num_bytes)
    return int(offset) if data.dtype == np.dtype("<f4") else None


def missing_filters(data: Any) -> list[str]:
    """The filters that its chunks went through and this HDF5 does not have."""
    plist = data.id.get_create_plist()
    filters = [plist.get_filter(i) for i in range(plist.get_nfilters())]
    return [
        f"{name.decode(errors='replace') or 'filter'} ({code})"
        for code, _, _, name in filters
        if not h5py.h5z.filter_avail(code)
    ]


def no_values(data: Any) -> list[np.float32]:
    """The numbers that stand for a value that is missing, by netCDF's attributes."""
    found = [np.ravel(data.attrs[key]) for key in NO_VALUE if key in data.attrs]
    return [np.float32(v) for values in found if values.dtype.kind in "fiu" for v in values]


def fill_value(data: Any) -> np.float32 | None:
    """What a part that was never written reads as, where that is told from a field at rest."""
    is_given = data.id.get_create_plist().fill_value_defined() == h5py.h5d.FILL_VALUE_USER_DEFINED
    return np.float32(data.fillvalue) if is_given and data.fillvalue else None


def listed(names: list[str]) -> str:
    """Names in a message: some of them, and how many more there are."""
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return (", ".join(names[:MOST_LISTED]) or "nothing") + more
