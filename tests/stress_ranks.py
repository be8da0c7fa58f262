"""Ends runs that train in ranks, or one of their processes, at every stage; no part of the tests.

    .venv/bin/python -m tests.stress_ranks
    .venv/bin/python -m tests.stress_ranks --only "scoring.* TERM"
    .venv/bin/python -m tests.stress_ranks --set training.shard=true

A line for each attack: how the run ended, after how many seconds, with what it said, and what was
wrong: it took too long, said something else, left a process behind or no checkpoint, or the next
start, which goes on from there, came to other weights. Exit code 1 if anything was.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from deployments.layout import PROJECT_DIR
from tests.conftest import TINY_OVERRIDES, S3Server, serving_s3
from tests.live import wait_until
from tests.proxy import Faults, Proxy, serving_proxy
from ups.config import SPLITS, dump_config, load_config
from ups.data.generate import generate
from ups.data.objectstore import ObjectStore
from ups.runs.folder import UNVERIFIED
from ups.training import checkpoint

END_S, WAIT_S, STEPS_S = 10.0, 60.0, 1.0
NUM_ROWS = 12  # requests after which nothing comes: less than the first batch
NUM = {"train": 20, "val": 60, "test": 120}
OVERRIDES = {
    **TINY_OVERRIDES,
    "data.generate": None,
    "training.ranks": 2,
    "operator": {"hidden_dim": 64, "depths": [2, 2, 2]},
    "stages.operator.epochs": 4,
    "encoder.fit_trajectories": 4,
    "evaluation.batch_size": 1,  # val and the score take seconds
    "features.parallel_downloads": False,
}
ASKED = (signal.SIGTERM, signal.SIGINT)
STOPPED = "was stopped"
KILLED = r"rank {} \(process \d+\) was ended by SIGKILL"

# stage → what the log says at its beginning; None: see `Attacks.reach`
STAGES = {
    "rows": None,  # they wait for the first rows
    "steps": None,  # all rows are there, without a verdict
    "epochs": "epoch 1/",  # validates, mostly
    "scoring": "scoring in 2 ranks",
}


class Attack(NamedTuple):
    """Who is sent what, and what the run has to say then.

    Attributes:
        victim: `run`, `server`, `rank 0`, …; `group`: all of them, as a service manager does.
        says: a pattern; None: the run itself is killed.
    """

    victim: str
    number: signal.Signals
    says: str | None


ATTACKS = (
    *(Attack(f"rank {n}", signal.SIGKILL, KILLED.format(n)) for n in range(2)),
    *(Attack(f"rank {n}", signal.SIGTERM, STOPPED) for n in range(2)),
    *(Attack(who, number, "") for who in ("run", "group") for number in ASKED),
    Attack("run", signal.SIGKILL, None),
    Attack("server", signal.SIGKILL, "rank|server"),
)


class Attacks:
    """`ups train` on a store of its own, in a folder for each run."""

    def __init__(self, folder: Path, s3: S3Server, proxy: Proxy, given: dict[str, object]) -> None:
        self.folder, self.proxy, self.given = folder, proxy, given
        reached = {**s3.env, "AWS_ENDPOINT_URL_S3": proxy.url}
        self.env = {**os.environ, **reached, "PDEBENCH_ROOT": ""}
        grid = {"grid_points": 256, "num_frames": 41, "t_end": 0.4}
        with s3.used(), closing(ObjectStore()) as client:
            for seed, split in enumerate(SPLITS):
                path = folder / f"{split}.h5"
                generate(path, NUM[split], "burgers1d", 0.02, seed=seed, **grid)
                client.upload(path, "tiny", f"tiny/{split}.h5")
        place = folder / "undisturbed"
        with self.started(place) as run:
            assert run.wait(WAIT_S) == 0, (place / "output").read_text()
        self.expected = self.weights(place)

    def weights(self, place: Path) -> dict[str, dict[str, torch.Tensor]]:
        (last,) = place.glob("runs/*-mine/checkpoints/last.pt")
        record = checkpoint.load(last)
        return {part: record[part] for part in ("model", "ema")}

    @contextmanager
    def started(self, place: Path) -> Iterator[subprocess.Popen[bytes]]:
        """A run of a folder; the second one goes on with the first."""
        place.mkdir(exist_ok=True)
        folders = {
            "runs_dir": str(place / "runs"),
            "data.root": str(place / "data"),
            "data.sources": {s: [{"bucket": "tiny", "key": f"tiny/{s}.h5"}] for s in SPLITS},
            "training.latent_cache_dir": str(place / "cache"),
        }
        config = place / "tiny.yaml"
        config.write_text(dump_config(load_config("smoke", {**OVERRIDES, **folders, **self.given})))
        command = [sys.executable, "-m", "deployments.cli.app", "train", config, "--run-id", "mine"]
        with (place / "output").open("a") as output:
            run = subprocess.Popen(
                command,
                cwd=PROJECT_DIR,
                env=self.env,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            yield run
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
            run.wait()

    def reach(self, stage: str, place: Path, run: subprocess.Popen[bytes]) -> None:
        """Return once the run is there."""

        def is_there() -> bool:
            assert run.poll() is None, (place / "output").read_text()
            if stage == "rows":
                return len(self.ranks(run)) == 2
            if stage == "steps":
                return bool(list(place.rglob(UNVERIFIED)))
            return str(STAGES[stage]) in (place / "output").read_text()

        wait_until(is_there, WAIT_S, 0.05)
        time.sleep(STEPS_S if stage in ("rows", "steps") else STEPS_S / 4)

    def server(self, run: subprocess.Popen[bytes]) -> psutil.Process | None:
        """Which forks the ranks, where the run does not."""
        found = [
            p
            for p in psutil.Process(run.pid).children()
            if "multiprocessing.forkserver" in " ".join(_words(p))
        ]
        return found[0] if found else None

    def ranks(self, run: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """In their order, as they were started."""
        parents = [p for p in (self.server(run), psutil.Process(run.pid)) if p is not None]
        ranks = [p for of in parents for p in of.children() if _words(p) == _words(of)]
        return sorted(ranks, key=lambda process: (process.create_time(), process.pid))

    def attack(self, stage: str, attack: Attack) -> tuple[str, list[str]]:
        """How the run ended, and what was wrong; None where there is no such process."""
        place = self.folder / re.sub(r"\W", "-", f"{stage}-{attack.victim}-{attack.number.name}")
        gate = threading.Event()
        self.proxy.faults = Faults()
        if stage in ("rows", "steps"):
            self.proxy.ranges.clear()

            def stall(path: str) -> None:
                num, is_first = len(self.proxy.ranges), self.proxy.ranges[-1].startswith("bytes=0-")
                if "train" in path and (
                    num > NUM_ROWS if stage == "rows" else num > 3 and is_first
                ):
                    gate.wait(60)

            self.proxy.faults.on_range = stall
        with self.started(place) as run:
            self.reach(stage, place, run)
            server, ranks = self.server(run), self.ranks(run)
            family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
            if attack.victim == "server" and server is None:
                return "forked, without a server", []
            began = time.monotonic()
            if attack.victim == "group":
                os.killpg(run.pid, attack.number)
            else:
                named = {
                    "run": run,
                    "server": server,
                    **{f"rank {n}": r for n, r in enumerate(ranks)},
                }
                named[attack.victim].send_signal(attack.number)
            wrong = []
            try:
                code = run.wait(3 * END_S)
            except subprocess.TimeoutExpired:
                code = None
                wrong.append("it has not ended")
            ended_s = time.monotonic() - began
            left = psutil.wait_procs(family, timeout=2)[1]
            left = [p for p in left if _words(p)]  # a zombie has none
            if ended_s > END_S:
                wrong.append(f"it took {ended_s:.1f} s")
            if left:
                wrong.append(f"left behind: {left}")
        lines = (place / "output").read_text().splitlines()
        said = lines[-1] if lines else ""
        saved = sorted(path.name for path in place.rglob("*.pt"))
        if attack.says is not None and (code in (0, None) or not re.search(attack.says, said)):
            wrong.append("it does not say so")
        is_asked, of_run = attack.number in ASKED, attack.victim in ("run", "group")
        if is_asked and of_run and code != 128 + attack.number:
            wrong.append("another exit code")
        has_said = any("stopped in epoch" in line for line in lines)
        if is_asked and stage in ("steps", "epochs") and not has_said:
            wrong.append("no checkpoint of the last step")
        if any("Traceback" in line for line in lines):
            wrong.append("a traceback")
        if stage in ("epochs", "scoring") and not {"last.pt", "best.pt"} <= set(saved):
            wrong.append("no checkpoint")
        if stage == "steps" and saved != [UNVERIFIED]:
            wrong.append(f"checkpoints: {saved}")
        gate.set()
        self.proxy.faults = Faults()
        with self.started(place) as run:
            again = run.wait(WAIT_S)
        if again != 0:
            wrong.append("the next one failed: " + (place / "output").read_text().splitlines()[-1])
        else:
            found = self.weights(place)
            if any(
                not torch.equal(value, found[part][key])
                for part, values in self.expected.items()
                for key, value in values.items()
            ):
                wrong.append("other weights")
        return f"{code} after {ended_s:.1f} s: {said} [{', '.join(saved)}]", wrong


def _words(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def main() -> None:
    plain = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--only", default="", help="a pattern: stage, victim, signal")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    changes = dict(pair.split("=", 1) for pair in given.set)
    bad = num = 0
    with tempfile.TemporaryDirectory(prefix="ups-attack-") as name:
        folder = Path(name)
        (folder / "s3").mkdir()
        with (
            serving_s3(folder / "s3", folder / "log") as s3,
            serving_proxy(s3.endpoint_url) as handler,
        ):
            attacks = Attacks(folder, s3, handler.proxy, changes)
            for stage in STAGES:
                for attack in ATTACKS:
                    title = f"{stage}, {attack.victim}, {attack.number.name}"
                    if not re.search(given.only, title):
                        continue
                    how, wrong = attacks.attack(stage, attack)
                    num, bad = num + 1, bad + bool(wrong)
                    print(f"{title}: {how}\n  {'; '.join(wrong) or 'as it should be'}", flush=True)
    print(f"{num - bad} of {num} as they should be")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
