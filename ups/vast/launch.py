"""Rent a machine, start a stopped one again, and give the account what machines need to know."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from ups.config import Model, load_config
from ups.errors import ConfigError, VastError
from ups.vast import tool
from ups.vast.onstart import Onstart
from ups.vast.source import Source, find_source

FOLDER = Path(".vast")
SCRIPT, PACKED = "onstart.sh", "onstart.packed.sh"
OFFER = "OFFER"  # stands in a printed command for what the search would find
# What a run, its object store, its server and its trackers read from the environment.
SENT = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL_S3",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "PREFECT_API_URL",
    "PREFECT_API_KEY",
    "PREFECT_API_AUTH_STRING",
    "WANDB_API_KEY",
)
STOPPED = ("stopped", "exited")


def plan(
    config: str,
    settings: Mapping[str, Any],
    *,
    repo: str | None,
    commit: str,
    mount: str,
    **limits: Any,
) -> tuple[Onstart, Source]:
    """What a machine is to do, checked as far as it can be from here.

    Args:
        config: a name in deployments/configs, or the path of a committed file.
        settings: dotted overrides of the config.
        repo: None: the remote `origin`.
        limits: further fields of `Onstart`.
    Returns:
        The script, and what it clones.
    Raises:
        ConfigError: a value is wrong, or the commit is not what lies here.
    """
    overrides = {
        # A GPU that torch cannot use is a fault to end with, not a reason to train on the CPU.
        "training.device": "cuda",
        "training.latent_cache_dir": f"{mount}/data/latent_cache",
        "runs_dir": f"{mount}/runs",
        **settings,
    }
    load_config(config, overrides)
    source, known = find_source(repo, commit, config)
    onstart = checked(
        Onstart,
        repo=source.repo,
        commit=source.commit,
        parameters={"config": known, "overrides": overrides},
        mount=mount,
        **limits,
    )
    return onstart, source


def at_price(onstart: Onstart, dollars_per_hour: float) -> Onstart:
    """The same with the price that the breakdown counts in, unless the user has set one."""
    price = {"startup.price_per_hour": round(dollars_per_hour, 4)}
    overrides = {**price, **onstart.parameters["overrides"]}
    return onstart.model_copy(update={"parameters": {**onstart.parameters, "overrides": overrides}})


M = TypeVar("M", bound=Model)


def checked(model: type[M], **values: Any) -> M:
    """
    Raises:
        ConfigError: one line per field that is wrong: its name, what was found, what is expected.
    """
    try:
        return model(**values)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, e['loc']))}: found {_shown(e['input'])}; {_said(e['msg'])}"
            for e in error.errors()
        ]
        raise ConfigError("\n".join(faults)) from None


def _said(message: str) -> str:
    """Without what pydantic puts before the words of a validator."""
    return message.removeprefix("Value error, ")


def _shown(value: object) -> str:
    """A value as a message may show it: an address without its login."""
    return re.sub(r"//[^/@]*@", "//*****@", repr(value))


def write_script(onstart: Onstart, folder: Path = FOLDER) -> Path:
    """Write the script as people read it and, packed, as Vast takes it; returns the packed one."""
    folder.mkdir(exist_ok=True)
    (folder / SCRIPT).write_text(onstart.script())
    (folder / SCRIPT).chmod(0o755)
    packed = folder / PACKED
    packed.write_text(onstart.packed())
    return packed


def create_command(
    offer: str,
    script: Path,
    *,
    image: str,
    disk_gb: float,
    label: str,
    volume: int | None,
    mount: str,
) -> list[str]:
    """Arguments of `vastai`; values behind `=`, so that none is taken for an option."""
    command = ["create", "instance", offer, f"--image={image}", f"--disk={disk_gb:g}"]
    command += [f"--label={label}", f"--onstart={script}", "--ssh", "--direct", "--cancel-unavail"]
    if volume is not None:
        command += [f"--link-volume={volume}", f"--mount-path={mount}"]
    return command


def create(command: Sequence[str]) -> int:
    """Rent it; returns the instance's id.

    Raises:
        VastError: Vast refuses.
    """
    answer = tool.ask(*command)
    if isinstance(answer, dict) and answer.get("success") and "new_contract" in answer:
        return int(answer["new_contract"])
    said = answer.get("msg", answer) if isinstance(answer, dict) else answer
    raise VastError(f"the offer {command[2]} could not be rented: {said}")


def find_instance(wanted: str) -> dict[str, Any]:
    """The account's instance with this id or, if there is but one, this label.

    Raises:
        VastError: there is none, or there are several.
    """
    found = tool.ask("show", "instances")
    if not isinstance(found, list):
        raise VastError(f"`vastai show instances` answered {type(found).__name__}, not a list")
    chosen = [i for i in found if str(i.get("id")) == wanted] or [
        i for i in found if i.get("label") == wanted
    ]
    if len(chosen) == 1:
        return dict(chosen[0])
    known = ", ".join(f"{i.get('id')} ({i.get('label')})" for i in chosen or found) or "none"
    many = "several instances have" if chosen else "no instance has"
    raise VastError(f"{many} the id or label {wanted!r}; there: {known}")


def resume(wanted: str) -> tuple[int, bool]:
    """Start a stopped instance; its disk and its onstart script are as they were.

    Returns:
        Its id, and whether it was started: False where it runs already.
    """
    instance = find_instance(wanted)
    number = int(instance["id"])
    status = instance.get("actual_status")
    if status not in STOPPED and instance.get("intended_status") != "stopped":
        return number, False
    tool.tell("start", "instance", str(number), accepted="starting instance")
    return number, True


def variables(
    environment: Mapping[str, str], extra: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """What of this environment goes to the account, and the usual names that are not set here.

    Args:
        extra: further names.
    Raises:
        ConfigError: an extra name is none, or is not set.
    """
    for name in extra:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ConfigError(f"--name: found {name!r}, expected the name of a variable")
        if not environment.get(name):
            raise ConfigError(f"--name: {name} is not set in this environment")
    names = dict.fromkeys([*SENT, *extra])
    found = {name: value for name in names if (value := environment.get(name))}
    return found, [name for name in names if name not in found]


def send_command(name: str, value: str, known: Sequence[str] = ()) -> list[str]:
    """Arguments of `vastai`; a variable that the account knows is updated."""
    return ["update" if name in known else "create", "env-var", name, value]


def known_variables() -> list[str]:
    """Names that the account's environment has; the tool hides the values."""
    found = tool.ask("show", "env-vars")
    return list(found) if isinstance(found, dict) else []
