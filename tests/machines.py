"""Several machines, made of this one; no part of the tests.

    .venv/bin/python -m tests.machines netns     a rank of `ups train` in each of two namespaces
    .venv/bin/python -m tests.machines slurm     srun -N2, on a slurmctld and two slurmd of its own
    .venv/bin/python -m tests.machines prefect   a worker's runs in 2 ranks: one cancelled, one
                                                 killed, one to the end

Each ends with a line, and exit code 1 where something was wrong. Namespaces need the right to make
them, Slurm Debian's slurm-wlm.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import UUID

import psutil
import torch

from deployments.layout import PROJECT_DIR
from tests.conftest import TINY_OVERRIDES
from tests.live import wait_until
from tests.stress import EPOCHS, Stress, processes_of_runs
from ups.config import dump_config, load_config
from ups.data.generate import generate
from ups.training import checkpoint

UPS = [sys.executable, "-m", "deployments.cli.app"]
SLURM = ("munged", "slurmctld", "slurmd", "srun")
PORT = 29611
END_S = 300.0
CANCEL_S, KILL_S = 10.0, 5.0


def write_config(folder: Path, **overrides: object) -> Path:
    """A tiny config, and its data."""
    grid = {"grid_points": 256, "num_frames": 41, "t_end": 0.4}
    for seed, (split, num) in enumerate({"train": 22, "val": 6, "test": 4}.items()):
        generate(folder / f"burgers1d_{split}.h5", num, "burgers1d", 0.02, seed=seed, **grid)
    config = load_config(
        "smoke",
        {
            **TINY_OVERRIDES,
            "data.root": str(folder),
            "data.sources": None,
            "data.generate": None,
            "runs_dir": str(folder / "runs"),
            "training.latent_cache_dir": str(folder / "cache"),
            "training.batch_size": 3,
            "training.accumulation_steps": 2,
            **{key.replace("__", "."): value for key, value in overrides.items()},
        },
    )
    path = folder / "tiny.yaml"
    path.write_text(dump_config(config))
    return path


def assert_same(folder: Path, one: str, other: str) -> None:
    """Both runs have come to the same weights, bit for bit."""
    found = [next((folder / "runs").glob(f"*-{name}")) for name in (one, other)]
    first, second = (checkpoint.load(run / "checkpoints/last.pt")["model"] for run in found)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first), "the weights differ"


def train_alone(config: Path) -> None:
    subprocess.run([*UPS, "train", config, "--run-id", "alone"], cwd=PROJECT_DIR, check=True)


def ranks_alive() -> list[psutil.Process]:
    """Processes that were forked from this one: servers of other tests have other command lines."""
    this = psutil.Process()
    alive = [p for p in this.children(recursive=True) if p.status() != "zombie"]
    return [p for p in alive if p.cmdline() == this.cmdline()]


@contextmanager
def two_namespaces() -> Iterator[list[str]]:
    """Their names; rank 0's has the address 10.77.0.1, both a name of the host that leads nowhere.

    Raises:
        CalledProcessError: there is no right to make them.
    """
    names = [f"ups-{secrets.token_hex(3)}-{i}" for i in range(2)]
    ends = [f"v{name[4:10]}{i}" for i, name in enumerate(names)]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    with ExitStack() as made:
        for name in names:
            ip("netns", "add", name)
            made.callback(ip, "netns", "del", name)
        pair = [
            word for end, name in zip(ends, names, strict=True) for word in (end, "netns", name)
        ]
        ip("link", "add", *pair[:3], "type", "veth", "peer", *pair[3:])
        for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", end)
            for device in (end, "lo"):
                ip("-n", name, "link", "set", device, "up")
        yield names


def start_in(namespace: str, rank: int, *command: str | Path) -> subprocess.Popen[str]:
    """A command as one of two ranks."""
    env = {"RANK": f"{rank}", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": f"{PORT}"}
    return subprocess.Popen(
        ["ip", "netns", "exec", namespace, *command],
        cwd=PROJECT_DIR,
        env={**os.environ, **env, "MASTER_ADDR": "10.77.0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def netns(folder: Path) -> str:
    """Train in two namespaces; the same on one, by accumulation."""
    config = write_config(folder)
    with two_namespaces() as names:
        command = [*UPS, "train", config, "--run-id", "apart"]
        ranks = [start_in(name, rank, *command) for rank, name in enumerate(names)]
        outputs = [process.communicate(timeout=END_S)[0] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(outputs)
    train_alone(config)
    assert_same(folder, "apart", "alone")
    return "two network namespaces: the weights of one process with two accumulations, bit for bit"


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """A slurmctld and two slurmd on this host, with munge; the environment for `srun`."""
    missing = [name for name in SLURM if shutil.which(name) is None]
    assert not missing, f"{', '.join(missing)} not found: apt-get install slurm-wlm"
    ports = [_free_port() for _ in range(3)]
    for name in ("state", "spool0", "spool1"):
        (folder / name).mkdir()
    key, munge = folder / "munge.key", folder / "munge.socket"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    host = socket.gethostname()
    conf = folder / "slurm.conf"
    conf.write_text(
        f"""ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={munge}
CredType=cred/munge
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=n0,n1 Default=YES State=UP
"""
    )
    for number in range(2):
        (folder / f"spool{number}").rename(folder / f"spooln{number}")
    env = {**os.environ, "SLURM_CONF": str(conf)}
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={munge}",
         f"--pid-file={folder}/munged.pid", f"--seed-file={folder}/munged.seed",
         f"--log-file={folder}/munged.log"],
        ["slurmctld", "-D", "-f", str(conf)],
        ["slurmd", "-D", "-N", "n0", "-f", str(conf)],
        ["slurmd", "-D", "-N", "n1", "-f", str(conf)],
    ]  # fmt: skip
    daemons = []
    try:
        for command in commands:
            with (folder / f"{len(daemons)}-{command[0]}.out").open("w") as output:
                daemons.append(subprocess.Popen(command, env=env, stdout=output, stderr=output))
            if command[0] == "munged":
                wait_until(munge.exists, 20, 0.1)
        wait_until(lambda: _num_idle(env) == 2, 60, 0.5)
        yield env
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()


def _num_idle(env: dict[str, str]) -> int:
    command = ["sinfo", "-h", "-N", "-t", "idle"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    return len(done.stdout.splitlines())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def slurm(folder: Path) -> str:
    """Train as the script of the deployments does it, on two nodes."""
    config = write_config(folder)
    script = PROJECT_DIR / "deployments/slurm/rank.sh"
    (folder / "slurm").mkdir()
    with slurm_cluster(folder / "slurm") as env:
        srun = ["srun", "-N2", "-n2", "--kill-on-bad-exit=1", script, config, "--run-id", "apart"]
        env = {**env, "UPS": " ".join(UPS), "MASTER_PORT": str(_free_port())}
        subprocess.run(srun, cwd=PROJECT_DIR, env=env, check=True, timeout=END_S)
    train_alone(config)
    assert_same(folder, "apart", "alone")
    return "srun -N2: the weights of one process with two accumulations, bit for bit"


def prefect(folder: Path) -> str:
    """Cancel a run of a worker that trains in two ranks, kill a rank of one, and let one be."""
    stress = Stress(folder, EPOCHS["cancel"])
    stress.parameters["overrides"] |= {"training.ranks": 2, "evaluation.batch_size": 1}
    try:
        run_id, _ = _training(stress)
        state = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
        stress.live.ask("POST", f"/flow_runs/{run_id}/set_state", state)
        cancelled_s = _ended_s(stress, run_id, "CANCELLED")
        (run_dir,) = stress.runs_dir.glob(f"*-{UUID(run_id).hex}")
        step = checkpoint.load(run_dir / "checkpoints/last.pt")["position"]["step"]
        assert step > 0, "it left no checkpoint of its steps"
        assert not _ranks(stress), "ranks were left behind"

        run_id, ranks = _training(stress)
        ranks[-1].kill()
        failed_s = _ended_s(stress, run_id, "FAILED")
        message = stress.live.run(run_id)["state"]["message"]
        assert "was ended by SIGKILL" in message, message
        assert not _ranks(stress), "ranks were left behind"

        stress.parameters["overrides"]["stages.operator.epochs"] = 2
        run_id = stress.trigger()
        ended = stress.end_of(run_id)["state"]
        assert ended["type"] == "COMPLETED", ended["message"]
        (log,) = stress.runs_dir.glob(f"*-{UUID(run_id).hex}/run.log")
        assert "scoring in 2 ranks" in log.read_text()
        assert stress.score(run_id), "it was not scored"
    finally:
        stress.live.ups("down")
        stress.live.api.close()
    assert cancelled_s < CANCEL_S, f"{cancelled_s:.1f} s until it was cancelled"
    assert failed_s < KILL_S, f"{failed_s:.1f} s until it failed"
    return (
        f"cancelled after {cancelled_s:.1f} s with a checkpoint of step {step}; failed "
        f"{failed_s:.1f} s after a rank was killed: {message}; a third one was scored in 2 ranks"
    )


def _training(stress: Stress) -> tuple[str, list[psutil.Process]]:
    """A run that is past its first epoch, and its ranks."""
    run_id = stress.trigger()
    place = f"*-{UUID(run_id).hex}/checkpoints/last.pt"
    wait_until(lambda: list(stress.runs_dir.glob(place)), END_S, 0.2)
    ranks = _ranks(stress)
    assert len(ranks) == 2, ranks
    return run_id, ranks


def _ranks(stress: Stress) -> list[psutil.Process]:
    """Forked from a run, or from its server; beside that it has a tracker of resources."""
    found: dict[int, psutil.Process] = {}
    for run in processes_of_runs(stress.live):
        alive = [p for p in run.children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]
        own = {p.pid for p in alive if p.ppid() == run.pid}
        servers = {p.pid for p in alive if p.pid in own and "forkserver" in str(p.cmdline())}
        ranks = [p for p in alive if p.ppid() in servers or p.cmdline() == run.cmdline()]
        found |= {p.pid: p for p in ranks}
    return list(found.values())


def _ended_s(stress: Stress, run_id: str, state: str) -> float:
    began = time.monotonic()
    wait_until(lambda: stress.live.run(run_id)["state_type"] == state, 60, 0.1)
    return time.monotonic() - began


CHECKS = {"netns": netns, "slurm": slurm, "prefect": prefect}


def main() -> None:
    plain = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("check", choices=CHECKS)
    with tempfile.TemporaryDirectory(prefix="ups-machines-") as folder:
        print(CHECKS[parser.parse_args().check](Path(folder)))


if __name__ == "__main__":
    main()
