"""Checkpoints: written aside and renamed, with config, position and random state inside.

Behind what `torch.save` writes stands a checksum of it, which torch passes over. A checkpoint also
says what it was trained on, and what it takes to use it where neither data nor cache are: of each
problem the encoder, the equation, its parameters and the time of a step.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
import xxhash

from ups.config import RunConfig
from ups.data.sources import PROVISIONAL
from ups.equations import in_order
from ups.errors import CheckpointError
from ups.files import link_or_copy, replacing
from ups.latents.encode import PatchEncoder
from ups.latents.key import explain_difference
from ups.latents.loader import Latents
from ups.runs.folder import BEST, LAST

FORMAT_VERSION = 2
OF_FORMAT_1 = {  # what was added since to a config, as it then was
    "encoder": {"x_stride": 1, "t_stride": 1},
    "operator": {
        "kind": "latent_transformer",
        "history": 1,
        "token_kernel": 1,
        "amplitude_scaling": False,
        "conserve_mean": False,
    },
}
FIXED_SECTIONS = ("latent", "encoder", "operator")
ENCODER_TOLERANCE = 1e-3  # float16 latents are rounded by as much
CHECK = b"ups-xxh3:"
CHECK_BYTES = len(CHECK) + 16
READ_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a checkpoint of one moment holds, its tensors on the CPU or on their way there.

    Attributes:
        copied: after which all of them are there; None without a GPU, where they are at once.
    """

    record: dict[str, Any]
    copied: torch.cuda.Event | None


def snapshot(config: RunConfig, state: dict[str, Any]) -> Snapshot:
    """Copy the state of this moment to the CPU: training may go on.

    From a GPU the copies go into pinned memory, behind the steps that are queued there, and nobody
    waits for them here: copied one by one, each of the tensors, four for each weight, was a
    synchronisation.
    """
    record: dict[str, Any] = _copied(state)
    copied = None
    if torch.cuda.is_initialized():
        copied = torch.cuda.Event()
        copied.record()
    record = {
        "format": FORMAT_VERSION,
        "config": config.model_dump_json(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        **record,
    }
    return Snapshot(record, copied)


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", non_blocking=True, copy=True)
    if isinstance(value, Mapping):
        return {name: _copied(member) for name, member in value.items()}
    return [_copied(member) for member in value] if isinstance(value, list) else value


def num_bytes(state: Any) -> int:
    """Of all the tensors in it."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    members = state.values() if isinstance(state, Mapping) else state
    return sum(map(num_bytes, members)) if isinstance(state, Mapping | list) else 0


def write(taken: Snapshot, path: Path, *others: Path, durable: bool = True) -> None:
    """Write a snapshot, once it is all there; a reader, or a crash, never sees half of it.

    Args:
        others: further names that it is to have.
        durable: also after a power cut.
    """
    if taken.copied is not None:
        taken.copied.synchronize()
    with replacing(path, durable=durable) as file:
        checked = _Checked(file)
        try:
            torch.save(taken.record, cast(BinaryIO, checked))
        except RuntimeError as error:  # torch's, of where it stands in a file that was not written
            if checked.error is None:
                raise
            raise checked.error from error
        file.write(CHECK + checked.digest.hexdigest().encode())
    for other in others:
        link_or_copy(path, other)


def save(path: Path, config: RunConfig, state: dict[str, Any]) -> None:
    """Write a checkpoint of this moment, and wait until it is on the disk."""
    write(snapshot(config, state), path)


class _Checked:
    """A file that is written from front to back, with a checksum of what was."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest = file, xxhash.xxh3_64()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def load(path: Path, device: str = "cpu", *, mmap: bool = False) -> dict[str, Any]:
    """Read a checkpoint onto a device.

    Args:
        mmap: leave the tensors in the file until they are read.
    Raises:
        CheckpointError: there is none, or it is damaged; a whole one beside it is named.
    """
    try:
        record = _read(path, device, mmap)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint {path}: correct the path, or start anew") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}; {_remedy(path)}") from error
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {_remedy(path)}") from error
    if "fetches" in record:
        raise CheckpointError(
            f"{path} was trained on data that were not verified yet, and its own run alone goes on "
            f"from it: name {LAST} or {BEST} of that run, once they are there"
        )
    return record


def load_unverified(
    path: Path, device: str, fetches: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Read what was trained before the verdict on its data, if these are of the same bytes.

    Args:
        fetches: problem → what brought the bytes of its latents, see `Latents`.
    Raises:
        OSError, CheckpointError: it cannot be read; its data are, or may be, of other bytes.
    """
    record = _read(path, device, mmap=False)
    if record.get("fetches") != fetches:
        raise CheckpointError(
            f"{path} was trained on data before they were verified, and those that are there now "
            "may have been fetched anew"
        )
    return record


def _read(path: Path, device: str, mmap: bool) -> dict[str, Any]:
    """Read a checkpoint whose checksum is right, or which has none, being of an earlier version.

    Raises:
        OSError, CheckpointError: it cannot be opened; it is not what was written.
    """
    size = path.stat().st_size - CHECK_BYTES
    with path.open("rb", buffering=0) as file:
        found = _checksum(file, size)
        name, expected = file.read(len(CHECK)), file.read(CHECK_BYTES - len(CHECK))
    if name == CHECK and found != expected:
        raise CheckpointError(
            f"{path} is not a checkpoint that can be read: its checksum is {found.decode()}, "
            f"expected {expected.decode(errors='replace')}"
        )
    try:
        record: dict[str, Any] = torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except Exception as error:  # torch promises no kind: what the unpickler meets, it raises
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointError(f"{path} is not a checkpoint that can be read: {reason}") from error
    version = record.get("format") if isinstance(record, dict) else None
    if version == 1:
        config = json.loads(record["config"])
        for section, then in OF_FORMAT_1.items():
            config[section] |= then
        record["config"] = json.dumps(config)
    elif version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {version}, expected 1 to {FORMAT_VERSION}: "
            "it is of another version of this project"
        )
    return record


def _checksum(file: FileIO, num_bytes: int) -> bytes:
    digest = xxhash.xxh3_64()
    while num_bytes > 0 and (block := file.read(min(num_bytes, READ_BYTES))):
        digest.update(block)
        num_bytes -= len(block)
    return digest.hexdigest().encode()


def _remedy(path: Path) -> str:
    """What to do without this checkpoint: go on from the other one beside it, if that is whole."""
    for other in (path.with_name(name) for name in (LAST, BEST) if name != path.name):
        with contextlib.suppress(OSError, CheckpointError):
            epoch = _read(other, "cpu", mmap=True)["position"]["epoch"]
            return f"delete it, and resume from {other} (epoch {epoch}), or start anew"
    return "delete it, or start anew"


def trained_on(config: RunConfig, latents: Latents) -> dict[str, Any]:
    """Problem → what a checkpoint says of its data.

    `sources`, their content; `encoder`; `equation`; `parameters`, the values that were trained on;
    `step_dt`, the time of an operator step.
    """
    found = {}
    for name, fields in latents.key_fields.items():
        rows = [rows for rows in latents.train_rows if rows.problem == name]
        found[name] = {
            "sources": fields["sources"],
            "encoder": latents.encoders[name].to_manifest(),
            "equation": rows[0].equation,
            "parameters": sorted({r.parameter for r in rows}),
            "step_dt": rows[0].dt * config.training.time_stride,
        }
    return found


def check_fits(path: Path, record: dict[str, Any], config: RunConfig) -> None:
    """Refuse a checkpoint that this run cannot go on from, by its config.

    Raises:
        CheckpointError: it is of another model, or in the middle of an epoch of another order.
    """
    saved, now = json.loads(record["config"]), config.model_dump(mode="json")
    task = saved["data"]["task"]  # one equation by its name, or a list of problems
    equations = in_order([task] if isinstance(task, str) else [t["equation"] for t in task])
    if equations != config.data.equations:
        raise CheckpointError(
            f"{path} was trained on {', '.join(equations)}, and this run has "
            f"{', '.join(config.data.equations)}: the operator is told other parameters; resume "
            "with tasks of the same equations, or start anew"
        )
    for section in FIXED_SECTIONS:
        then, own = saved[section], now[section]
        if then != own:
            raise CheckpointError(
                f"{path} was trained with {_differences(section, then, own)}: "
                f"{_resume_with(record, 'config')}"
            )
    if record["position"]["batch"]:
        for name, value in _order_of(now).items():
            if (found := _order_of(saved).get(name)) != value:
                raise CheckpointError(
                    f"{path} is in the middle of an epoch with {name} {found}, and this run has "
                    f"{value}: resume with {found}, or from the end of an epoch"
                )


def _differences(section: str, saved: dict[str, Any], now: dict[str, Any]) -> str:
    """The keys of a section that differ, with both values; of another kind, the kind alone."""
    keys = [key for key in {**now, **saved} if saved.get(key) != now.get(key)]
    return ", ".join(
        f"{section}.{key} {saved.get(key)} (this run: {now.get(key)})"
        for key in (["kind"] if "kind" in keys else keys)
    )


def _resume_with(record: dict[str, Any], what: str) -> str:
    if record["format"] == FORMAT_VERSION:
        return f"resume with the {what} that it was trained with, or start anew"
    return (
        "it is of an earlier version, which encoded otherwise: predict with it (`ups predict`), "
        "and start anew to train"
    )


def _order_of(config: dict[str, Any]) -> dict[str, float | None]:
    """What the order of an epoch, and the place in it, depend on."""
    training = config["training"]
    pairs, batch = training.get("pairs_per_step"), training["batch_size"]
    order = {
        "training.pairs_per_step": pairs,
        "training.batch_size × accumulation_steps": (pairs or batch)
        * training["accumulation_steps"],
        "training.seed": training["seed"],
    }
    of_pairs = ("early_pairs", "rollout_horizon", "time_stride")
    return order | ({f"training.{name}": training[name] for name in of_pairs} if pairs else {})


def is_complete(record: dict[str, Any], config: RunConfig) -> bool:
    """Whether every step that the config asks for was taken, and validated."""
    position, stage = record["position"], config.stages.operator
    all_taken = stage.max_steps is not None and position["step"] >= stage.max_steps
    return position["epoch"] >= stage.epochs or (all_taken and position["batch"] == 0)


def check_goes_on(path: Path, record: dict[str, Any], config: RunConfig) -> None:
    """Refuse a checkpoint that leaves nothing to train.

    Raises:
        CheckpointError: it is complete.
    """
    if is_complete(record, config):
        position, stage = record["position"], config.stages.operator
        steps = "" if stage.max_steps is None else f" and max_steps {stage.max_steps}"
        raise CheckpointError(
            f"{path} is complete: it has had {position['epoch']} epochs, {position['step']} steps, "
            f"and stages.operator.epochs is {stage.epochs}{steps}: raise that to train on"
        )


def check_data(
    path: Path,
    record: dict[str, Any],
    sources: Mapping[str, Mapping[str, Any]],
    encoders: Mapping[str, PatchEncoder] | None = None,
) -> bool:
    """Refuse a checkpoint that was trained on other data, or on latents of another encoder.

    At the end of an epoch a run may have further problems.

    Args:
        sources: problem → the `sources` of its key fields.
        encoders: problem → the encoder of its latents; None where it is not known yet.
    Returns:
        Whether that could be compared: an earlier version's checkpoint does not say.
    Raises:
        CheckpointError: they are others.
    """
    if (saved := record.get("trained_on")) is None:
        return False
    is_within_epoch = record["position"]["batch"] > 0
    if saved.keys() - sources.keys() or (is_within_epoch and saved.keys() != sources.keys()):
        raise CheckpointError(
            f"{path} was trained on {', '.join(saved)}, and this run has {', '.join(sources)}: "
            "resume with the same tasks, or start anew"
        )
    for name, of_problem in saved.items():
        has = "the checkpoint has"
        differs = [
            each
            for each in explain_difference(sources[name], of_problem["sources"], has)
            if f"{has} {PROVISIONAL}" not in each  # of the same fetches, see `load_unverified`
        ]
        if differs:
            raise CheckpointError(
                f"{path} was trained on other data of {name}: {'; '.join(differs)}; resume with "
                "the data it was trained on, or start anew"
            )
        if encoders is None:
            continue
        distance = encoders[name].distance(PatchEncoder.from_manifest(of_problem["encoder"]))
        if not distance <= ENCODER_TOLERANCE:
            raise CheckpointError(
                f"{path} was trained with another encoder of {name}: a basis vector, the mean or "
                f"the scale differs by {distance:.2g}, expected {ENCODER_TOLERANCE} at most; "
                f"{_resume_with(record, 'cache entry')}"
            )
    return True


def restore_rng(record: dict[str, Any]) -> None:
    """Set torch's random state to what it was when the checkpoint was written."""
    torch.set_rng_state(record["rng"].cpu())
    if record["cuda_rng"] and torch.cuda.is_available():
        of_gpus = record["cuda_rng"][: torch.cuda.device_count()]  # a rank sees one alone
        torch.cuda.set_rng_state_all([state.cpu() for state in of_gpus])
