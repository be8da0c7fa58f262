"""A run in Weights & Biases: online with a key, else in offline files that `wandb sync` sends."""

from __future__ import annotations

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import wandb

from ups.runs.index import RunFiles
from ups.runs.metrics import EPOCH
from ups.runs.table import STARTUP, startup_values
from ups.tracking.protocol import NOTE, curves, described, pictures

HOST = "api.wandb.ai"
INIT_TIMEOUT_S = 15.0  # less than a run's end waits, so that what goes offline is kept


class WandbTracker:
    """A wandb run with the folder's name as its id: a retry goes on with it."""

    def __init__(self, files: RunFiles) -> None:
        self.epochs_known = 0
        offline = not has_key() and os.environ.get("WANDB_MODE") in (None, "", "online")
        try:
            self._run = _start(files, offline)
        except wandb.Error as error:
            if offline:
                raise
            print(f"{NOTE}no start online, so offline: {error}".replace("\n", " "), flush=True)
            wandb.teardown(1)  # its service holds the id that could not be had online
            self._run = _start(files, offline=True)
        self._run.define_metric(EPOCH)
        self._run.define_metric("*", step_metric=EPOCH)
        if self._run.resumed:
            self.epochs_known = int(self._run.summary.get(EPOCH, 0))
        if self._run.url:
            print(f"{NOTE}{self._run.url}", flush=True)

    def log(self, row: Mapping[str, Any]) -> None:
        self._run.log({EPOCH: row[EPOCH], "step": row["step"], **curves(row)})

    def finish(self, files: RunFiles, ended: str) -> None:
        last: dict[str, Any] = dict(files.metrics)
        if files.breakdown is not None:
            rows = startup_values(files.breakdown)
            last["startup/breakdown"] = wandb.Table(columns=list(STARTUP), data=rows)
        for name, path in pictures(files).items():
            last[f"pictures/{name}"] = wandb.Image(str(path))
        self._run.log(last)
        self._run.summary["state"] = ended
        folder, is_offline = self._run.settings.sync_dir, self._run.offline
        self._run.finish(exit_code=0 if ended == "completed" else 1)
        if is_offline:
            print(f"{NOTE}kept offline; `wandb sync {folder}` sends it")


def has_key() -> bool:
    """Whether there is a key to log in with: in the environment, or where `wandb login` puts it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname or HOST
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _start(files: RunFiles, offline: bool) -> Any:
    wanted = files.config["logging"]["wandb"]
    settings = wandb.Settings(
        console="off",
        silent=True,
        save_code=False,
        disable_git=True,
        x_disable_stats=True,  # it samples every GPU of the host; a run samples its own
    )
    if "WANDB_INIT_TIMEOUT" not in os.environ:
        settings.init_timeout = INIT_TIMEOUT_S
    return wandb.init(
        project=wanted["project"],
        entity=wanted["entity"],
        id=files.folder.name,
        name=files.folder.name,
        dir=files.folder,
        config=described(files),
        mode="offline" if offline else None,  # None: WANDB_MODE and wandb's own settings say
        resume=None if offline else "allow",
        settings=settings,
    )
