"""What training begins with: library, device, and perhaps a checkpoint to go on from."""

from __future__ import annotations

from pathlib import Path

from ups.config import RunConfig
from ups.errors import CheckpointError, ClusterError, DeviceError, MissingExtra
from ups.machine.devices import check_compile, has_gpu_node, training_device
from ups.machine.ranks import Place, local_ranks, num_gpus
from ups.runs.folder import CHECKPOINTS, LAST, checkpoint_to_resume
from ups.units import format_size
from ups.validate.cache import known_key_fields
from ups.validate.check import Check, Checks
from ups.validate.sources import Sources


def validate_library(config: RunConfig) -> list[Check]:
    """Look for the libraries that the kind of operator and the encoding need, if they need some."""
    checks = Checks("config")
    try:
        config.operator.require_library()
    except MissingExtra as error:
        checks.fault("library", str(error))
    else:
        if config.operator.library is not None:
            checks.ok("library", f"{config.operator.library} is installed")
    if config.encodes_on_cluster:
        from ups.latents.cluster import require_dask

        try:
            require_dask()
        except MissingExtra as error:
            checks.fault("dask", str(error))
        else:
            checks.ok("dask", "dask is installed")
    return checks


def validate_cluster(config: RunConfig) -> list[Check]:
    """Look for the cluster that is to encode, and whether its workers can."""
    checks = Checks("device")
    if config.encodes_on_cluster and config.encode.address is not None:
        from ups.latents.cluster import require_cluster

        try:
            require_cluster(config)
        except (ClusterError, MissingExtra) as error:
            checks.fault("cluster", str(error))
        else:
            checks.ok("cluster", f"the workers of {config.encode.address} can encode")
    return checks


def validate_device(config: RunConfig) -> tuple[list[Check], str]:
    """Look for the device that is asked for, and whether it can do what `training.compile` says.

    Returns: the checks, and the device: `cpu` also where the one asked for is not there.
    """
    checks, device = Checks("device"), "cpu"
    try:
        device = training_device(config)
        checks.ok("device", _describe(config, device), device=device)
        check_compile(config)
    except DeviceError as error:
        checks.fault("compile" if checks else "device", str(error))
    return checks, device


def validate_ranks(config: RunConfig) -> list[Check]:
    """Compare the ranks that the run starts with the GPUs of this machine."""
    checks, wanted = Checks("device"), config.training.ranks
    if Place.of_environment() is not None:
        return checks
    num, gpus = local_ranks(config), num_gpus()
    if config.training.shard and num == 1:
        checks.warn(
            "shard",
            "training.shard: found true, and one process trains, which holds all weights; expected "
            "several: raise training.ranks",
        )
    if wanted == 1:
        return checks
    on_gpu = config.training.device != "cpu" and gpus > 0
    if on_gpu and num > gpus:
        noun = "GPU" if gpus == 1 else "GPUs"
        checks.fault(
            "ranks",
            f"training.ranks: found {wanted}, and this machine has {gpus} {noun}; expected one for "
            "each rank: lower it, or set it to auto",
        )
    else:
        where = f"of {gpus} GPUs" if on_gpu else "on the CPU"
        checks.ok("ranks", f"training.ranks {wanted}: {num} {where}", num=num)
    return checks


def validate_device_early(config: RunConfig) -> list[Check]:
    """The same for the head of a run, where torch may not be imported yet, which takes a second.

    What `warm-up-device` finds out at once, beside the downloads, is left to it; torch is imported
    only where it looks as if it is going to refuse.
    """
    checks, training = Checks("device"), config.training
    if training.device != "cuda" and training.compile != "graph":
        checks.ok("device", training.device)
    elif has_gpu_node() and config.features.warm_up:
        checks.skip("device", "there is a GPU; warm-up-device finds out whether torch can use it")
    else:
        checks += validate_device(config)[0]
    return checks


def _describe(config: RunConfig, device: str) -> str:
    import torch

    if device == "cuda":
        return f"cuda, {torch.cuda.get_device_name()}"
    wanted = config.training.device
    return "cpu" if wanted == "cpu" else f"cpu (torch {torch.__version__} sees no CUDA device)"


def validate_checkpoint(
    config: RunConfig, resume: Path | None, sources: Sources, run_dir: Path | None = None
) -> list[Check]:
    """It can be read, is of this config's model and, as far as that is known, of these sources.

    Args:
        resume: the checkpoint that is named.
        run_dir: of the run, if it has been there before: its own checkpoint comes first.
    """
    checks, own = Checks("checkpoint"), False
    if run_dir is not None:
        resume = checkpoint_to_resume(run_dir, resume)
        own = resume == run_dir / CHECKPOINTS / LAST
    if resume is None:
        checks.skip("resume", "none is named, training begins anew")
    elif not resume.is_file():  # known without torch
        checks.fault("resume", f"no checkpoint {resume}")
    else:
        from ups.training import checkpoint

        problems = config.data.problems
        try:
            record = checkpoint.load(resume, mmap=True)
            checkpoint.check_fits(resume, record, config)
            if not own:  # of a run of its own, evaluation may be all that is left
                checkpoint.check_goes_on(resume, record, config)
            fields = [known_key_fields(config, sources, problem) for problem in problems]
            if not any(why_not for _, why_not in fields):
                known = {p.name: f["sources"] for p, (f, _) in zip(problems, fields, strict=True)}
                checkpoint.check_data(resume, record, known)
        except CheckpointError as error:
            checks.fault("resume", str(error))
        else:
            size, at = format_size(resume.stat().st_size), record["position"]
            text = f"{resume}: {size}, epoch {at['epoch']}, step {at['step']}, of this model"
            checks.ok("resume", text, epoch=at["epoch"])
    return checks
