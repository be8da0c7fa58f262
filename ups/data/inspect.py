"""Look into a file of trajectories, here or in the store: what it holds, and what it lacks.

Unlike `TrajectoryFile` it says all that is wrong, and goes on. Of an object it reads a few ranges.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ups.config import Model
from ups.data import attributes, header
from ups.data.pdebench import SUFFIXES
from ups.data.stamps import hash_file, read_stamp
from ups.data.web import is_web
from ups.equations import EQUATIONS, Equation, EquationName
from ups.errors import DataError

if TYPE_CHECKING:
    from ups.data.objectstore import ObjectStore

MOST_HASHED = 1 << 30  # bytes of a local file that are hashed without being asked for
MOST_SAMPLED = 64 << 20  # bytes that are read of a file to look at its values


class Facts(Model):
    """What is known of a file. None where it is not told.

    Attributes:
        name: without its folder.
        digest: where `sha256` is from, or why there is none.
        members: what the file has at its top, with shapes and types.
        shape: trajectories, frames, points.
        storage: how the values lie in the file.
        streams: whether training can begin before all of it is there.
        times: of the first and the last frame.
        parameter_from: what tells the parameter.
        sampled: trajectories that were read; `bad` hold what no field has, `zero` nothing.
        faults: why it cannot be trained on; each a line that ends with what to do.
        notes: what is assumed, or slower than it could be.
    """

    where: str
    name: str
    num_bytes: int
    sha256: str | None = None
    digest: str = ""
    members: tuple[str, ...] = ()
    data_set: str | None = None
    shape: tuple[int, int, int] | None = None
    dtype: str | None = None
    storage: str | None = None
    compression: tuple[str, ...] = ()
    streams: bool = False
    times: tuple[float, float] | None = None
    dt: float | None = None
    points: tuple[float, float] | None = None
    equation: EquationName | None = None
    parameter: float | None = None
    parameter_from: str | None = None
    sampled: int = 0
    smallest: float | None = None
    largest: float | None = None
    bad: tuple[int, ...] = ()
    zero: tuple[int, ...] = ()
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Given(Model):
    """What the user says of a file: its equation, and the parameter's value."""

    equation: EquationName | None = None
    parameter: float | None = None


def inspect_file(
    path: Path, given: Given | None = None, *, num_sampled: int = 16, hashed: bool = False
) -> Facts:
    """Look into a local file; nothing is written.

    Args:
        num_sampled: trajectories to read, spread over the file.
        hashed: take its SHA-256 however large it is.
    Raises:
        DataError: it is missing, not HDF5, or truncated.
    """
    with header.open_hdf5(path) as file:
        num_bytes = path.stat().st_size
        looked = _Look(file, path, num_bytes, given or Given(), num_sampled).facts()
    stamp = read_stamp(path)
    sha256, digest = None, f"not taken of more than {MOST_HASHED >> 30} GiB; --digest takes it"
    if stamp is not None and stamp.spares_hashing(path):
        sha256, digest = stamp.sha256, "by its stamp"
    elif hashed or num_bytes <= MOST_HASHED:
        sha256, digest = hash_file(path), "of its bytes"
    about = {"where": str(path), "name": path.name, "num_bytes": num_bytes}
    return Facts(**about, sha256=sha256, digest=digest, **looked)


def inspect_object(
    store: ObjectStore, bucket: str, key: str, given: Given | None = None, *, num_sampled: int = 16
) -> Facts:
    """Look into an object by ranges; nothing is put on the disk.

    Raises:
        DataError: it is not HDF5. ObjectUnavailable, FetchError, CannotStream: see `ComingObject`.
    """
    from ups.data.coming import ComingObject

    path = Path(key.partition("?")[0] if is_web(bucket) else key)
    coming = ComingObject(store, bucket, key, path)
    with header.open_hdf5(path, coming.header()) as file:
        looked = _Look(file, path, coming.num_bytes, given or Given(), num_sampled).facts()
    info, digest = coming.info, "by its manifest"
    if not looked.get("streams") and looked.get("shape"):
        looked["notes"] += (
            "not contiguous float32: it is fetched whole before training begins; `h5repack -l "
            "CONTI -f NONE` makes it contiguous",
        )
    if info.sha256 is None:
        own = f"MD5 {info.md5} by its ETag" if info.md5 else "its ETag is no MD5"
        digest = f"no manifest has it, {own}"
        digest += "" if is_web(bucket) else "; `ups data put` makes a manifest"
    about = {"where": info.uri, "name": path.name, "num_bytes": info.num_bytes}
    return Facts(**about, sha256=info.sha256, digest=digest, **looked)


def files_in(path: Path) -> list[Path]:
    """The HDF5 files of a folder, by their names; a file itself.

    Raises:
        DataError: the folder has none.
    """
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.iterdir() if p.is_file() and is_data(p.name))
    if not found:
        raise _no_files(str(path), [p.name for p in sorted(path.iterdir())])
    return found


def objects_in(store: ObjectStore, bucket: str, prefix: str) -> list[str]:
    """The keys of the HDF5 files right below a folder of the store, in order.

    Raises:
        DataError: there are none. ObjectUnavailable, FetchError: it cannot be listed.
    """
    keys = sorted(key for key in store.below(bucket, prefix) if "/" not in key[len(prefix) :])
    if not (found := [key for key in keys if is_data(key)]):
        raise _no_files(f"s3://{bucket}/{prefix}", [key[len(prefix) :] for key in keys])
    return found


def unreadable(where: str, error: DataError) -> Facts:
    """The facts of a file that cannot be opened, among others that can."""
    name = where.rpartition("/")[2]
    return Facts(
        where=where, name=name, num_bytes=0, faults=(str(error).removeprefix(where + ": "),)
    )


def is_data(name: str) -> bool:
    """Whether it is called like HDF5, and is no hidden file."""
    return name.endswith(SUFFIXES) and not name.rpartition("/")[2].startswith(".")


def _no_files(where: str, found: list[str]) -> DataError:
    return DataError(
        f"{where}: found {header.listed(found)}, expected files called {' or '.join(SUFFIXES)}"
    )


class _Look:
    """One look into an open file; `facts` once."""

    def __init__(
        self, file: Any, path: Path, num_bytes: int, given: Given, num_sampled: int
    ) -> None:
        self._file, self._path, self._given = file, path, given
        self._num_bytes, self._num_sampled = num_bytes, num_sampled
        self._found: dict[str, Any] = {}
        self._faults: list[str] = []
        self._notes: list[str] = []

    def facts(self) -> dict[str, Any]:
        """The fields of `Facts` that the file itself tells."""
        with self._noting():
            self._found["members"] = tuple(self._members())
            data = header.find_data(self._file, self._path)
            self._look_at_data(data)
        return {**self._found, "faults": tuple(self._faults), "notes": tuple(self._notes)}

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """Take what is wrong for a fault, and go on after the block."""
        try:
            with header.damage_named(self._path):
                yield
        except DataError as error:
            self._faults.append(str(error).removeprefix(f"{self._path}: "))

    def _members(self) -> Iterator[str]:
        for name in self._file:
            found = self._file.get(name, getclass=True, default=None)
            is_own = not hasattr(self._file.get(name, getlink=True), "filename")
            member = self._file.get(name) if is_own and found is not None else None
            shape, dtype = getattr(member, "shape", None), getattr(member, "dtype", "")
            yield f"{name} {dtype}{list(shape)}" if shape is not None else name

    def _look_at_data(self, data: Any) -> None:
        self._found |= {"data_set": data.name.lstrip("/"), **_layout(data)}
        num, num_frames, points = header.check_shape(data, self._path, None)
        self._found["shape"] = num, num_frames, points
        with self._noting():
            header.check_axes(self._file, points, self._path)
            x = header.coordinate(self._file, header.POINTS, self._path)
            if x is not None and x.ndim == 1 and x.size:
                self._found["points"] = float(x[0]), float(x[-1])
        with self._noting():
            self._look_at_times(data, num_frames)
        with self._noting():
            self._look_at_parameter(data)
        with self._noting():
            offset = header.find_offset(data, self._path, self._num_bytes)
            self._found["streams"] = offset is not None
            header.check_written(data, (0, num), self._path)
            if missing := header.missing_filters(data):
                raise DataError(
                    f"it is compressed by {header.listed(missing)}, which HDF5 does not find: "
                    "install hdf5plugin and set HDF5_PLUGIN_PATH, or repack it (h5repack -f GZIP=4)"
                )
            self._look_at_values(data)

    def _look_at_times(self, data: Any, num_frames: int) -> None:
        self._found["dt"] = attributes.find_dt(self._file, data, num_frames, self._path)
        times = header.coordinate(self._file, header.TIMES, self._path)
        if times is not None:
            t = np.ravel(times[()])
            self._found["times"] = float(t[0]), float(t[num_frames - 1])
        elif not any("dt" in holder.attrs for holder in (self._file, data)):
            self._notes.append(
                f"no {header.TIMES[0]} and no attribute dt: the times are taken for PDEBench's, "
                "from 0 to 2; add one of them if they are others"
            )

    def _look_at_parameter(self, data: Any) -> None:
        equation = self._equation(data)
        if equation is None:
            options = " or ".join(f"--{e.parameter} VALUE" for e in EQUATIONS.values())
            names = " or ".join(e.attribute for e in EQUATIONS.values())
            raise DataError(
                f"neither an attribute {names} nor its name tells which equation it is of: give "
                f"{options} here, and as data.parameter in the config"
            )
        self._found["equation"] = equation.name
        given = self._given.parameter
        try:
            value, is_beside = attributes.find_parameter(
                self._file, data, self._path, equation, given
            )
        except DataError as error:
            if "no attribute" not in str(error):
                raise
            raise DataError(
                f"{equation.symbol} of {equation.name} is missing, no attribute "
                f"{equation.attribute!r}, no data set 'params': give --{equation.parameter} VALUE "
                f"here, and data.parameter: {{{equation.parameter}: VALUE}} in the config"
            ) from None
        told = "by the file"
        if is_beside:
            is_named = equation.value_in(self._path.stem) is not None
            told = "by its name alone" if is_named else "as given"
        self._found |= {"parameter": value, "parameter_from": told}

    def _equation(self, data: Any) -> Equation | None:
        """What the trajectories are of, as far as the user, an attribute or the name tells."""
        if self._given.equation is not None:
            return EQUATIONS[self._given.equation]
        named = attributes.named_equations(self._file, data)
        if named:
            return named[0]  # of two, `find_parameter` says that one is another's
        of_data = [e for e in EQUATIONS.values() if self._has_data_of(e)]
        told = [e for e in EQUATIONS.values() if e.value_in(self._path.stem) is not None]
        words = [e for e in EQUATIONS.values() if e.name[:-2] in str(self._path).lower()]
        return next(iter((*of_data, *told, *words)), None)

    def _has_data_of(self, equation: Equation) -> bool:
        """Whether a data set is called as its parameter."""
        names = (equation.attribute, equation.attribute.lower())
        return any(name in self._file or f"scalars/{name}" in self._file for name in names)

    def _look_at_values(self, data: Any) -> None:
        num, num_frames, points = self._found["shape"]
        row_bytes = _bytes_to_read_a_row(data)
        most = min(self._num_sampled, MOST_SAMPLED // row_bytes if row_bytes else num)
        if not most:
            self._notes.append(
                f"no values were looked at: a trajectory cannot be read without {row_bytes} bytes, "
                "as the chunks are of many"
            )
            return
        rows = np.unique(np.linspace(0, num - 1, most).round().astype(int)).tolist()
        no_values, fill = header.no_values(data), header.fill_value(data)
        bad, zero, low, high = [], [], math.inf, -math.inf
        for row in rows:
            frames = np.asarray(data[row], np.float32).reshape(1, num_frames, points)
            if header.find_bad(frames, no_values, fill).any():
                bad.append(row)
                continue
            if not frames.any():
                zero.append(row)
            low, high = min(low, float(frames.min())), max(high, float(frames.max()))
        self._found |= {"sampled": len(rows), "bad": tuple(bad), "zero": tuple(zero)}
        if low <= high:
            self._found |= {"smallest": low, "largest": high}
        of = f"of {len(rows)} sampled trajectories"
        if zero:
            self._notes.append(
                f"{len(zero)} {of} are zero throughout ({_first_of(zero)}): no error can be "
                "relative to them"
            )
        if bad:
            raise DataError(
                f"{len(bad)} {of} hold NaN, infinity or fill values ({_first_of(bad)}): fetch or "
                "generate it again, or leave those rows out"
            )


def _layout(data: Any) -> dict[str, Any]:
    dtype = data.dtype
    order = ", big-endian" if dtype.byteorder == ">" else ""
    plist = data.id.get_create_plist()
    filters = [plist.get_filter(i) for i in range(plist.get_nfilters())]
    names = (f"{name.decode(errors='replace') or code}" for code, _, _, name in filters)
    storage = "contiguous" if data.chunks is None else f"chunks of {tuple(data.chunks)}"
    return {"dtype": f"{dtype.name}{order}", "storage": storage, "compression": tuple(names)}


def _bytes_to_read_a_row(data: Any) -> int:
    """Of the file, to have one trajectory: of chunks, all that hold it."""
    num = data.shape[0]
    groups: int = num if data.chunks is None else -(-num // data.chunks[0])
    num_bytes: int = data.id.get_storage_size()
    return num_bytes // max(1, groups)


def _first_of(rows: list[int]) -> str:
    return f"row {header.listed([str(row) for row in rows])}"
