"""Every error the library raises on purpose.

UpsError
├── ConfigError         a config value is wrong, unknown or contradicts another; a ValueError
├── ValidationFailed    a run would fail, for reasons that are known before it begins
├── ShapeError          an array has the wrong shape; a ValueError
├── DataError           a data file is truncated, lacks its data set, or holds NaN
├── FetchError          a transfer failed in a way that can pass: the only error that is retried
│   └── ChecksumMismatch
├── ObjectUnavailable   the object store says no: no such bucket or key, forbidden, no credentials
├── DiskFull            not enough free space for what is about to be written
├── DeviceError         a device was asked for that this machine does not have
├── CacheError          a cache entry cannot be used
│   └── CacheDamaged    its bytes differ from its manifest
├── TrainingDiverged    the loss is no longer finite
├── CheckpointError     a checkpoint is missing, unreadable, or of another model
├── RunError            a run's folder is another run's, or open in another process
├── BenchmarkError      a benchmark could not be made, or does not meet what is asked of it
├── RegressionFound     a startup got slower than it was
├── HistoryError        the benchmarks' history cannot be used, or lacks what was asked for
├── VastError           Vast.ai, or its tool, does not do what it was asked for
└── Interrupted         somebody asked to stop

A message says what happened, what was found, what was expected, and the next move.
"""


class UpsError(Exception):
    """Base of all of them; its text is meant for the user."""


class ConfigError(UpsError, ValueError):
    pass


class ValidationFailed(UpsError):
    pass


class ShapeError(UpsError, ValueError):
    pass


class DataError(UpsError):
    pass


class FetchError(UpsError):
    pass


class ChecksumMismatch(FetchError):
    """Args: uri, expected SHA-256, SHA-256 found."""

    def __str__(self) -> str:
        uri, expected, got = self.args
        return (
            f"{uri}: sha256 {got}, expected {expected}; the partial file was removed. "
            "If the object changed upstream, refresh the manifest."
        )


class ObjectUnavailable(UpsError):
    pass


class DiskFull(UpsError):
    pass


class DeviceError(UpsError):
    pass


class CacheError(UpsError):
    pass


class CacheDamaged(CacheError):
    pass


class TrainingDiverged(UpsError):
    pass


class CheckpointError(UpsError):
    pass


class RunError(UpsError):
    pass


class BenchmarkError(UpsError):
    pass


class RegressionFound(UpsError):
    pass


class HistoryError(UpsError):
    pass


class VastError(UpsError):
    pass


class Interrupted(UpsError):
    pass
