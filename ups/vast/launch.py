"""Rent a machine, start a stopped one again, and give the account what machines need to know."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import ValidationError

from ups.config import Model, RunConfig, find_config, load_config
from ups.errors import ConfigError, VastError
from ups.vast import tool
from ups.vast.script import PORTS, Onstart, Source, find_source

if TYPE_CHECKING:
    from ups.validate.check import Check

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
STORE_KEYS = SENT[:2]
STOPPED = ("stopped", "exited")


def plan(
    config: str,
    settings: Mapping[str, Any],
    *,
    mount: str,
    commit: str,
    repo: str | None = None,
    **options: Any,
) -> tuple[Onstart, Source]:
    """Plan what a machine is to do, and check it as far as that can be done from here.

    Args:
        config: a name in deployments/configs, or the path of a committed file.
        settings: dotted overrides of the config.
        repo: None: the remote `origin`.
        options: further fields of `Onstart`.
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
        **options,
    )
    return onstart, source


def at_price(onstart: Onstart, dollars_per_hour: float) -> Onstart:
    """The same with the price that the breakdown counts in, unless the user has set one."""
    price = {"startup.price_per_hour": round(dollars_per_hour, 4)}
    overrides = {**price, **onstart.parameters["overrides"]}
    return onstart.model_copy(update={"parameters": {**onstart.parameters, "overrides": overrides}})


def check(config: str, onstart: Onstart) -> list[Check]:
    """Validate the config, and its objects in the store, without what is of the machine itself."""
    from ups.validate.check import Checks  # h5py and numpy, which nobody else here needs
    from ups.validate.data import validate_data
    from ups.validate.run import valid_config

    # Files that are staged here are not on the machine.
    data = {"data.root": f"{onstart.mount}/data/pdebench"}
    loaded = load_config(config, {**onstart.parameters["overrides"], **data})
    objects = Checks("data")
    if loaded.data.is_local:
        objects.skip("files", f"the config wants {_local(loaded)} of the machine")
    elif not all(os.environ.get(key) for key in STORE_KEYS):
        objects.skip("objects", f"{' and '.join(STORE_KEYS)} are not set here")
    else:
        found, _ = validate_data(_without_generators(loaded))
        objects += [check for check in found if check.status != "skip"]
    return [*valid_config(find_config(config).name), *objects]


def _local(config: RunConfig) -> str:
    """The local files of a config."""
    sources = [of for p in config.data.problems for of in (p.sources or {}).values()]
    paths = {str(source.path): None for of_split in sources for source in of_split}
    return ", ".join(paths) or f"them in {config.data.root}"


def _without_generators(config: RunConfig) -> RunConfig:
    """Only `ups run` generates what the store lacks, and a rented machine does not."""
    problems = tuple(
        problem.model_copy(update={"generate": None}) for problem in config.data.problems
    )
    data = {"task": problems} if isinstance(config.data.task, tuple) else {"generate": None}
    return config.model_copy(update={"data": config.data.model_copy(update=data)})


def tunnel(url: str) -> str | None:
    """The ssh options that bring a server of this machine to another; None if it is elsewhere.

    Args:
        url: as `Onstart` lets it pass.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or PORTS[parts.scheme]
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return None
    if not address.is_loopback:
        return None
    # sshd listens on the loopback of both families; quoted, since brackets are a shell's pattern.
    bracketed = f"'{port}:[{address}]:{port}'"
    return f"-N -R {f'{port}:{address}:{port}' if address.version == 4 else bracketed}"


M = TypeVar("M", bound=Model)


def checked(model: type[M], **values: Any) -> M:
    """Make a model from values that a user gave.

    Raises:
        ConfigError: one line per field that is wrong: its name, what was found, what is expected.
    """
    try:
        return model(**values)
    except ValidationError as error:
        faults = [
            f"{'.'.join(map(str, e['loc']))}: found {_shown(e['input'])}; "
            f"{e['msg'].removeprefix('Value error, ')}"  # pydantic's, before a validator's words
            for e in error.errors()
        ]
        raise ConfigError("\n".join(faults)) from None


def _shown(value: object) -> str:
    """A value as a message may show it: an address without its login."""
    return re.sub(r"//[^/@]*@", "//*****@", repr(value))


def write_script(onstart: Onstart, folder: Path = FOLDER) -> Path:
    """Write the script as people read it and, packed, as Vast takes it; returns the packed one."""
    folder.mkdir(parents=True, exist_ok=True)
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


def known_instances() -> list[dict[str, Any]]:
    """The account's instances.

    Raises:
        VastError: Vast answers something else.
    """
    known = tool.ask("show", "instances")
    if not isinstance(known, list):
        raise VastError(f"`vastai show instances` answered {type(known).__name__}, not a list")
    return known


def find_instance(wanted: str) -> dict[str, Any]:
    """The account's instance with this id or, if there is but one, this label.

    Raises:
        VastError: there is none, or there are several.
    """
    known = known_instances()
    by_label = [instance for instance in known if instance.get("label") == wanted]
    found = [instance for instance in known if str(instance.get("id")) == wanted] or by_label
    if len(found) == 1:
        return dict(found[0])
    shown = ", ".join(f"{i.get('id')} ({i.get('label')})" for i in found or known) or "none"
    many = "several instances have" if found else "no instance has"
    raise VastError(f"{many} the id or label {wanted!r}; there: {shown}")


def resume(wanted: str) -> tuple[int, bool]:
    """Start a stopped instance; its disk and its onstart script are as they were.

    Returns:
        Its id, and whether it was started: False where it runs already.
    """
    instance = find_instance(wanted)
    number, is_stopped = int(instance["id"]), instance.get("actual_status") in STOPPED
    if is_stopped or instance.get("intended_status") == "stopped":
        tool.run("start", "instance", str(number), accepted="starting instance")
        return number, True
    return number, False


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
