"""The data set of an HDF5 file that holds the trajectories: is it there, whole, and what it seems.

All of it has to lie in this very file: the cache key is made of its bytes, and of no other's.
"""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
import numpy.typing as npt

from ups.errors import DataError, UpsError, WrongGrid

DATA_KEYS = ("tensor", "data")
FIELDS = "t0_fields"  # the group of The Well's scalar fields
TIMES = ("t-coordinate", "dimensions/time")  # PDEBench's name and The Well's
POINTS = ("x-coordinate", "dimensions/x")
PACKING = {"scale_factor": 1, "add_offset": 0}  # netCDF's names, and the values that change nothing
NO_VALUE = ("_FillValue", "missing_value")  # netCDF's, too
MOST_LISTED = 8
BOUND = 1e15  # fields are of order one, fill values 1e20 and more; squares below sum up in float32
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
            size = content.seek(0, os.SEEK_END)
            raise _not_opened(path, size, error, "signature not found" not in str(error)) from error
    if not path.is_file():
        raise DataError(f"{path}: no such file; stage or generate the data first")
    size = path.stat().st_size
    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        if error.errno is not None:  # what the system says; HDF5's own faults have no number
            reason = os.strerror(error.errno)
            raise DataError(f"{path} cannot be read: {reason}; {UNREADABLE}") from None
        raise _not_opened(path, size, error, h5py.is_hdf5(path)) from error


def _not_opened(path: Path, size: int, error: OSError, is_hdf5: bool) -> DataError:
    """The error of a file that HDF5 does not open."""
    if cut := re.search(r"truncated file.*stored_eof = (\d+)", str(error)):
        return truncated(path, size, int(cut[1]))
    if is_hdf5:
        return DataError(f"{path}: HDF5, but h5py cannot open it: {error}")
    return DataError(
        f"{path}: found {size} bytes that are not HDF5, expected an HDF5 file; {FETCH_AGAIN}"
    )


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
        coordinate(file, TIMES, path)


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
    if isinstance(group := file.get(FIELDS), h5py.Group):
        return _only_field(file, group, path)
    raise DataError(
        f"{path}: no data set {' or '.join(map(repr, DATA_KEYS))}, found {listed(list(file))}; "
        "rename the data set that holds the trajectories"
    )


def _only_field(file: Any, group: Any, path: Path) -> Any:
    """The field of a file of The Well.

    Raises:
        DataError: it has none, several, or more than one dimension of space.
    """
    if (num := file.attrs.get("n_spatial_dims", 1)) != 1:
        raise DataError(f"{path}: found fields of {num} dimensions of space, expected 1")
    found = [(name, member(file, f"{FIELDS}/{name}", path)) for name in group]
    fields = [(name, data) for name, data in found if data is not None]
    in_time = [data for _, data in fields if data.attrs.get("time_varying", True)]
    vectors = [name for key in ("t1_fields", "t2_fields") for name in file.get(key, ())]
    if len(in_time) == 1 and not vectors:
        return in_time[0]
    names = [name for name, _ in fields] + vectors
    raise DataError(
        f"{path}: found the fields {listed(names)}, expected one that changes with time; write it "
        "into a file of its own"
    )


def coordinate(file: Any, names: tuple[str, ...], path: Path) -> Any:
    """The first of these data sets that is there; None where none is.

    Raises: see `member`.
    """
    return next((data for name in names if (data := member(file, name, path)) is not None), None)


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
        raise WrongGrid(f"{path}: data set {name!r}", points, grid_points)
    return num, num_frames, points


def check_axes(file: Any, points: int, path: Path) -> None:
    """Refuse a data set whose last axis is not that of the points, where the file has them.

    Raises:
        DataError: it has another number of entries.
    """
    x = next((x for name in POINTS if isinstance(x := file.get(name), h5py.Dataset)), None)
    if x is None or x.ndim != 1 or x.size in (points, points + 1):
        return
    raise DataError(
        f"{path}: {x.name.lstrip('/')} has {x.size} entries, and the last axis of the data set "
        f"{points} points, expected as many: the axes are transposed, or the file is cut; convert "
        "it to (trajectories, times, points)"
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


def find_bad(
    frames: npt.NDArray[np.float32], no_values: Sequence[np.float32], fill: np.float32 | None
) -> npt.NDArray[np.bool_]:
    """(n,), which of the trajectories, (n, T, X), hold what is no field value.

    Args:
        no_values, fill: see `no_values` and `fill_value`.
    """
    bad = np.zeros(len(frames), np.bool_)
    if not (frames.min() > -BOUND and frames.max() < BOUND):  # NaN compares as false
        bad |= ~(np.abs(frames) < BOUND).all(axis=(1, 2))
    for value in no_values:
        bad |= (frames == value).any(axis=(1, 2))
    if fill is not None:
        bad |= (frames == fill).all(axis=2).any(axis=1)
    return bad


def listed(names: list[str]) -> str:
    """Names in a message: some of them, and how many more there are."""
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return (", ".join(names[:MOST_LISTED]) or "nothing") + more
