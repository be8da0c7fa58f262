"""A process from its start to its first optimizer steps, as `startup` times it.

    python -m speed.first_step SPEC      SPEC: JSON with config, compile, steps, frames, device, and
                                         beside, the number of busy processes for the last steps

Prints one line of JSON: when the first step was done (Unix time), the seconds of later ones, and of
as many beside the busy processes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from typing import Any

BATCHES = 4
BUSY = (sys.executable, "-c", "while True: pass")


def main(spec: dict[str, Any]) -> dict[str, float]:
    from ups.config import load_config

    changes = {"training.compile": spec["compile"], "training.device": spec["device"]}
    config = load_config(spec["config"], changes)
    import torch

    from ups.latents.datasets import PreloadedCacheDataset
    from ups.models.conditioning import conditioning
    from ups.training.step import TrainStep, epoch_order

    imported_at = time.time()
    step = TrainStep(config)
    training, latent = config.training, config.latent
    frames = -(-spec["frames"] // training.time_stride)
    rows = step.items_per_step * BATCHES
    z_NTKD = torch.randn(rows, frames, latent.tokens, latent.dim).half().to(step.device)
    nu_N = torch.full((rows,), 0.01, device=step.device)
    condition_NC = conditioning(["burgers1d"], "burgers1d", nu_N, 0.01 * training.time_stride)
    data = PreloadedCacheDataset(z_NTKD, condition_NC, step.device)
    order_M = epoch_order(data, config, epoch=0)
    with step.on_stream():
        step.begin(data, 1000)
        step.begin_epoch(order_M)
        step()
        step.synchronize()
        first_step_at = time.time()

        def step_s() -> float:
            seconds = []
            for i in range(spec["steps"]):
                if i % BATCHES == 0:
                    step.begin_epoch(order_M)
                started = time.perf_counter()
                step()
                step.synchronize()
                seconds.append(time.perf_counter() - started)
            return statistics.median(seconds)

        found = {"imported_at": imported_at, "first_step_at": first_step_at, "step_s": step_s()}
        if "beside" in spec:
            with ExitStack() as stack:
                for _ in range(spec["beside"]):
                    process = stack.enter_context(subprocess.Popen(BUSY))
                    stack.callback(process.kill)
                found["beside_s"] = step_s()
    return found


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
