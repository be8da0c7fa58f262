"""Scale, by simulation: bytes, seconds and dollars for 1 to 64 GPUs and 8 GB to 10 TB.

    python -m speed.scale

Nothing is run. The order of the first epoch is `ups.latents.order`'s, sizes are of the config and
of the operator that it builds; rates are below, with what each was measured on, or assumed.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ups.config import RunConfig, load_config
from ups.latents.order import CHUNK_ROWS, arrival_turns, first_epoch_windows
from ups.models.build import build_operator
from ups.training.step import window_frames

CONFIG = "train_burgers_pdebench"
FRAMES, POINTS, FIELD_BYTES, LATENT_BYTES = 201, 1024, 4, 2  # of PDEBench, float32; float16
GBIT = 1e9 / 8
SIZES = {"8.2 GB": 8.2e9, "100 GB": 1e11, "1 TB": 1e12, "10 TB": 1e13}
NUM_EPOCHS = 25


@dataclass(frozen=True, slots=True)
class Machines:
    """What is rented, and how fast its parts are.

    Attributes:
        num_gpus, gpus_per_machine: of one kind.
        link_bytes_s: from the bucket, of each machine.
        encode_rows_s: trajectories that a machine encodes and writes each second.
        first_batch_s: trigger → first step, less what the link takes for the first chunk.
        step_s: an optimizer step of the whole global batch on one GPU.
        least_step_s: of a step however small its share of the batch is: launches, the optimizer.
        ram_bytes: of each machine that latents may take; beyond that they come from the disk.
        disk_bytes_s: at which a machine reads latents that its memory has no room for.
        inside_bytes_s, between_bytes_s: of an all_reduce inside a machine and between machines.
        price_per_hour: of a GPU, dollars.
    """

    num_gpus: int = 1
    gpus_per_machine: int = 8
    link_bytes_s: float = 10 * GBIT  # assumed: a data centre's; 1 Gbit/s is what was measured with
    encode_rows_s: float = 2845 * 8  # 2,845 on two cores, measured; assumed: 16 cores, linear
    first_batch_s: float = 2.0  # measured on two cores: 1.78 s through the deployment, warm
    step_s: float = 0.0131  # on paper: 20 s an epoch of PDEBench's file on an H100, bound by memory
    least_step_s: float = 0.001  # assumed: a replayed CUDA graph
    ram_bytes: float = 1e12  # assumed
    disk_bytes_s: float = 5e9  # assumed: NVMe
    inside_bytes_s: float = 200e9  # assumed: NVLink
    between_bytes_s: float = 10 * GBIT  # assumed: the same network
    price_per_hour: float = 1.89  # of the config

    @property
    def num_machines(self) -> int:
        return -(-self.num_gpus // self.gpus_per_machine)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run comes to; seconds from the trigger, GPU-seconds over all GPUs.

    Attributes:
        fetched_bytes: by all machines.
        bound: what the first epoch waits for most.
    """

    fetched_bytes: float
    ttfs_s: float
    idle_gpu_s: float
    first_epoch_s: float
    later_epoch_s: float
    bound: str
    dollars: float


def simulate(
    config: RunConfig, machines: Machines, num_bytes: float, *, from_latents: bool
) -> Outcome:
    """Train on a data set of so many bytes of fields, fetched raw or as latents.

    Each machine fetches all, as later epochs shuffle over all of it. Where memory has no room for
    the latents nothing streams: all is fetched and encoded first, and the disk is read for the
    part that has no room.
    """
    num = max(CHUNK_ROWS, round(num_bytes / (FRAMES * POINTS * FIELD_BYTES)))
    latent_row = FRAMES * config.latent.tokens * config.latent.dim * LATENT_BYTES
    kept_row = -(-FRAMES // config.training.time_stride) * latent_row / FRAMES
    fetched_row = latent_row if from_latents else FRAMES * POINTS * FIELD_BYTES
    rates = {"link": machines.link_bytes_s / fetched_row}
    if not from_latents:
        rates["encode"] = machines.encode_rows_s
    slowest = min(rates, key=lambda name: rates[name])
    step_s, step_bound = step(config, machines)
    row_s = pairs_of_a_row(config) / pairs_of_a_step(config) * step_s
    missing = max(0.0, 1 - machines.ram_bytes / (num * kept_row))
    read_s = missing * kept_row / machines.disk_bytes_s
    later_row_s, later_bound = max((row_s, step_bound), (read_s, "disk"))
    if missing:
        arrived_s = np.full(1, machines.first_batch_s + num / rates[slowest])
        work_s = np.full(1, num * later_row_s)
    else:
        sizes, last_turns = windows(num, config.training.seed)
        arrived_s = machines.first_batch_s + (last_turns + 1) * CHUNK_ROWS / rates[slowest]
        work_s = sizes * row_s
    # Window k ends when it and all before it are trained on, none before it is there.
    before_s = np.cumsum(work_s) - work_s
    first_epoch_s = float(np.max(arrived_s - before_s) + work_s.sum())
    ttfs_s = float(arrived_s[0] + step_s)
    idle_s = first_epoch_s - num * row_s
    total_s = first_epoch_s + (NUM_EPOCHS - 1) * num * later_row_s
    return Outcome(
        fetched_bytes=machines.num_machines * num * fetched_row,
        ttfs_s=ttfs_s,
        idle_gpu_s=idle_s * machines.num_gpus,
        first_epoch_s=first_epoch_s,
        later_epoch_s=num * later_row_s,
        bound=slowest if idle_s - machines.first_batch_s > num * row_s / 10 else later_bound,
        dollars=total_s / 3600 * machines.num_gpus * machines.price_per_hour,
    )


def windows(num: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Trajectories of each window of epoch 1, and the turn of the last of its chunks to arrive."""
    turns = arrival_turns(num, seed)
    of_windows = first_epoch_windows(num, seed)
    sizes = np.array([len(rows) for rows in of_windows])
    return sizes, np.array([turns[rows].max() for rows in of_windows])


def step(config: RunConfig, machines: Machines) -> tuple[float, str]:
    """Seconds of an optimizer step over all GPUs, and what most of them are."""
    gpus, gradient_bytes = machines.num_gpus, 4 * num_weights(config)
    parts = {"step": machines.step_s / gpus, "launches": machines.least_step_s}
    compute_s, bound = max((seconds, name) for name, seconds in parts.items())
    inside = min(gpus, machines.gpus_per_machine)
    reduce_s = 2 * (inside - 1) / inside * gradient_bytes / machines.inside_bytes_s
    across = machines.num_machines
    reduce_s += 2 * (across - 1) / across * gradient_bytes / machines.between_bytes_s
    return compute_s + reduce_s, "all_reduce" if reduce_s > compute_s else bound


def num_weights(config: RunConfig) -> int:
    """Of the operator, whose gradients the ranks add up."""
    return sum(p.numel() for p in build_operator(config).parameters())


def pairs_of_a_row(config: RunConfig) -> int:
    """Pairs of a trajectory that an epoch takes."""
    return -(-FRAMES // config.training.time_stride) - window_frames(config) + 1


def pairs_of_a_step(config: RunConfig) -> int:
    training = config.training
    pairs = training.pairs_per_step or training.batch_size * pairs_of_a_row(config)
    return pairs * training.accumulation_steps


def table(config: RunConfig, machines: Machines) -> str:
    """Markdown: a row for each size, number of GPUs, and way to start."""
    lines = [
        "| data | GPUs | from | fetched | TTFS | idle GPU·s | epoch 1 | later epoch | bound | $ |",
        "|--:|--:|:--|--:|--:|--:|--:|--:|:--|--:|",
    ]
    for size, num_bytes in SIZES.items():
        for num_gpus in (1, 8, 64):
            of_run = replace(machines, num_gpus=num_gpus)
            for name, from_latents in (("raw", False), ("latents", True)):
                o = simulate(config, of_run, num_bytes, from_latents=from_latents)
                cells = (
                    *(size, str(num_gpus), name, _bytes(o.fetched_bytes), _time(o.ttfs_s)),
                    *(f"{o.idle_gpu_s:,.0f}", _time(o.first_epoch_s), _time(o.later_epoch_s)),
                    *(o.bound, f"{o.dollars:,.2f}" if o.dollars < 100 else f"{o.dollars:,.0f}"),
                )
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _bytes(num: float) -> str:
    return f"{num / 1e12:.3g} TB" if num >= 1e12 else f"{num / 1e9:.3g} GB"


def _time(seconds: float) -> str:
    if seconds >= 7200:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 300 else f"{seconds:.1f} s"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m speed.scale", description="Bytes, seconds and dollars at scale, simulated."
    )
    parser.add_argument("--config", default=CONFIG)
    for name, what in (("link", "from the bucket"), ("between", "between machines")):
        parser.add_argument(f"--{name}", type=float, default=10.0, help=f"Gbit/s, {what}")
    given = parser.parse_args(arguments)
    rates = {"link_bytes_s": given.link * GBIT, "between_bytes_s": given.between * GBIT}
    print(table(load_config(given.config), Machines(**rates)))


if __name__ == "__main__":
    main()
