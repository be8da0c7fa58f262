"""Every error the library raises on purpose.

UpsError
├── ConfigError         a config value is wrong, unknown or contradicts another; a ValueError
│   └── InvalidConfig   a config was read, and has faults
├── MissingExtra        a library is needed that is not installed; the extra that brings it is named
├── ValidationFailed    a run would fail, for reasons that are known before it begins
├── ShapeError          an array has the wrong shape; a ValueError
├── InputError          an operator is asked for what it cannot predict; a ValueError
├── DataError           a data file is truncated, lacks its data set, or holds NaN
│   └── WrongGrid       it is of another grid than the config
├── FetchError          a transfer failed in a way that can pass: the only error that is retried
│   └── ChecksumMismatch
├── ObjectUnavailable   the object store says no: no such bucket or key, forbidden, no credentials
├── DiskFull            not enough free space for what is about to be written
├── DeviceError         a device was asked for that this machine does not have
├── CacheError          a cache entry cannot be used
│   └── CacheDamaged    its bytes differ from its manifest
├── ClusterError        a Dask cluster is not there, or its workers cannot encode for this run
├── TrainingDiverged    the loss, or a score, is not finite
├── CheckpointError     a checkpoint is missing, unreadable, or of another model
├── RankError           a process that trains with others cannot start, join them or go on
├── RunError            a run's folder is another run's, or open in another process
├── BenchmarkError      a benchmark could not be made, or does not meet what is asked of it
├── RegressionFound     a startup got slower than it was
├── HistoryError        the benchmarks' history cannot be used, or lacks what was asked for
├── VastError           Vast.ai, or its tool, does not do what it was asked for
└── Interrupted         somebody asked to stop

A message says what happened, what was found, what was expected, and the next move.
"""

import errno
import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# What the system refuses, and what a person can do about it; anything else is a fault of ours.
REMEDIES = {
    errno.ENOSPC: "make room there, or name a folder on another disk",
    errno.EDQUOT: "make room there, or name a folder on another disk",
    errno.EROFS: "name a folder that can be written",
    errno.EACCES: "change who may use it, or name another",
    errno.EPERM: "change who may use it, or name another",
    errno.ENAMETOOLONG: "take a shorter name",
    errno.ENOTDIR: "a file stands where a folder is wanted: move it, or name another folder",
    errno.EIO: "the disk cannot be read or written there: look at its health",
}


class UpsError(Exception):
    """Base of every error that is raised on purpose; its text is meant for the user."""


class ConfigError(UpsError, ValueError):
    """Raised when a config value is wrong or unknown, or does not go with another."""


class InvalidConfig(ConfigError):
    """A config has been read and has faults. Args: its file's name; a line for each, key first."""

    def __init__(self, where: str, faults: tuple[str, ...]) -> None:
        super().__init__(where, faults)
        self.where, self.faults = where, faults

    def __str__(self) -> str:
        return "\n".join(f"{self.where}: {fault}" for fault in self.faults)


class MissingExtra(UpsError):
    """Raised when a config asks for what a library does that is not installed."""


class ValidationFailed(UpsError):
    """Raised before a run begins, when it is known to fail."""


class ShapeError(UpsError, ValueError):
    """Raised when an array's shape or type is not the one that a function takes."""


class InputError(UpsError, ValueError):
    """Raised when an operator is asked for a time, or given a parameter, that it does not take."""


class DataError(UpsError):
    """Raised when a data file, or what is said of it, cannot be what it should be."""


class WrongGrid(DataError):
    """A data set has another grid than the config. Args: what; its points; those of the config.

    `also` is the end of the remedy: what else of the config has to change with the grid.
    """

    def __init__(self, what: str, points: int, expected: int, also: str = "") -> None:
        super().__init__(what, points, expected, also)
        self.what, self.points, self.expected, self.also = what, points, expected, also

    def __str__(self) -> str:
        return (
            f"{self.what} has {self.points} grid points, expected {self.expected}; set "
            f"data.grid_points to {self.points}{self.also}, or use data on that grid"
        )


class CannotStream(UpsError):
    """Raised when data cannot be trained on while they are being fetched; the message says why."""


class FetchError(UpsError):
    """Raised when a transfer failed for a reason that can pass, after the attempts to repeat it."""


class ChecksumMismatch(FetchError):
    """Raised when what was fetched has another SHA-256 than the manifest says.

    Args: uri, expected SHA-256, SHA-256 found.
    """

    def __str__(self) -> str:
        uri, expected, got = self.args
        return (
            f"{uri}: sha256 {got}, expected {expected}; the partial file was removed. "
            "If the object changed upstream, refresh the manifest."
        )


class ObjectUnavailable(UpsError):
    """Raised when the object store refuses: no such bucket or key, or no right to it."""


class DiskFull(UpsError):
    """Raised before or while something is written, when the disk has no room for it."""


class DeviceError(UpsError):
    """Raised when a config asks for a device that this machine does not have."""


class CacheError(UpsError):
    """Raised when a cache entry is missing, in use, or of no use to whoever asked for it."""


class CacheDamaged(CacheError):
    """Raised when the bytes of a cache entry are not those that its manifest describes."""


class ClusterError(UpsError):
    """Raised when a Dask cluster does not answer, is of another version, or loses a part."""


class TrainingDiverged(UpsError):
    """Raised when the training loss is not finite any more, or a score of what was trained."""


class CheckpointError(UpsError):
    """Raised when a checkpoint is missing, unreadable, or of another model."""


class RankError(UpsError):
    """Raised when one of the processes that train together cannot start, join, or go on.

    `is_echo` where it is only what another one's end looks like from here.
    """

    is_echo = False


class RunError(UpsError):
    """Raised when a run's folder is another run's, or another process has it open."""


class BenchmarkError(UpsError):
    """Raised when a benchmark cannot be made, or does not meet what is asked of it."""


class RegressionFound(UpsError):
    """Raised when a comparison finds that a startup got slower."""


class HistoryError(UpsError):
    """Raised when the benchmarks' history cannot be read, or lacks what was asked for."""


class VastError(UpsError):
    """Raised when Vast.ai, or its tool, does not do what it was asked for."""


class Interrupted(UpsError):
    """Raised at the next safe moment after somebody asked to stop."""


@contextmanager
def refusals_explained() -> Iterator[None]:
    """Say what the operating system refuses inside in a line with the remedy.

    Raises:
        DiskFull, UpsError: in place of an `OSError` that a person can do something about.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in REMEDIES:
            raise
        kind = DiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else UpsError
        what = error.filename or "standard output, or a file"  # writing names none
        raise kind(f"{what}: {error.strerror}: {REMEDIES[error.errno]}") from error


def portable(error: BaseException, where: str) -> BaseException:
    """The error as another process can have it: ours and the system's as they are, else in words.

    Args:
        where: it was raised, for those.
    """
    if isinstance(error, (UpsError, OSError)):
        with suppress(pickle.PicklingError, TypeError, AttributeError):
            pickle.loads(pickle.dumps(error))
            return error
    return RuntimeError(f"{where}: {type(error).__name__}: {error}")
