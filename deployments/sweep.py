"""A sweep: a run of the deployment for each combination of values, all with one tag."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import httpx

from deployments import prefect_api as api
from deployments.follow import POLL_S, SERVER_LOST_S, SETTLE_S, TERMINAL, TRAIN, RunTimeout
from deployments.layout import Stack, StackError
from ups import PROJECT_DIR
from ups.config import RunConfig, load_changed, read_yaml, run_title, shortened
from ups.errors import ConfigError
from ups.runs.folder import find_run_dir

MOST_RUNS = 100
BUSY_S = 30.0
INTERRUPTED = "its sweep was interrupted"
WAITING = "SCHEDULED"  # the type of the states before a process is started for a run
SHOWN = ("RUNNING", *TERMINAL)
TAG = "sweep-{name}-{stamp}"
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Point:
    """One combination of a sweep.

    Attributes:
        overrides: what is swept and what is set for all, by dotted keys.
        title: the name of its run.
    """

    overrides: Mapping[str, Any]
    title: str
    config: RunConfig


@dataclass(slots=True)
class SweptRun:
    """The run of a combination, and its state as the server last said it."""

    point: Point
    id: str
    state_type: str = WAITING
    state_name: str = "Scheduled"
    message: str = ""

    @property
    def has_ended(self) -> bool:
        return self.state_type in TERMINAL

    @property
    def folder(self) -> Path | None:
        """Where it left its files; None where it did not get that far."""
        return find_run_dir(PROJECT_DIR / self.point.config.runs_dir, UUID(self.id))


def parse_axes(settings: Sequence[str]) -> dict[str, list[Any]]:
    """`["latent.dim=16,32"]` → `{"latent.dim": [16, 32]}`; values are YAML, as in a list of it.

    Raises:
        ConfigError: no key, no value, a key or a value twice, or no YAML.
    """
    axes: dict[str, list[Any]] = {}
    for text in settings:
        key, equals, values = text.partition("=")
        expected = "expected KEY=VALUE,VALUE,…, such as latent.dim=16,32,48"
        if not (key and equals):
            raise ConfigError(f"found {shortened(text)}, {expected}")
        if key in axes:
            raise ConfigError(f"{key}: given twice, expected once: leave one out")
        try:
            found = read_yaml(f"[{values}]")
        except ConfigError as error:
            raise ConfigError(f"{key}: found {shortened(values)}, {expected}: {error}") from None
        if not isinstance(found, list) or not found:
            raise ConfigError(f"{key}: found no value, {expected}")
        if twice := [value for value in found if found.count(value) > 1]:
            raise ConfigError(f"{key}: {json.dumps(twice[0])} stands there twice, expected once")
        axes[key] = found
    return axes


def points(config: str, axes: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Every combination, the last key first to change.

    Raises:
        ConfigError: one of them is no valid config, or there are too many.
    """
    found = []
    num = math.prod(map(len, axes.values()))
    if num > MOST_RUNS:
        counts = " × ".join(f"{len(values)} of {key}" for key, values in axes.items())
        raise ConfigError(f"found {num} runs ({counts}), expected at most {MOST_RUNS} in a sweep")
    for values in itertools.product(*axes.values()):
        overrides = dict(zip(axes, values, strict=True))
        resolved, _ = load_changed(config, overrides)
        swept = {key: value for key, value in overrides.items() if len(axes[key]) > 1}
        found.append(Point(overrides, run_title(resolved.name, swept or overrides), resolved))
    return found


def make_tag(name: str, at: float) -> str:
    """`sweep-smoke-20261129-101500`."""
    return TAG.format(name=name, stamp=time.strftime("%Y%m%d-%H%M%S", time.gmtime(at)))


def trigger(
    stack: Stack, config: str, wanted: Sequence[Point], tag: str, made: list[SweptRun]
) -> None:
    """Have the deployment run each combination, in their order; those of this tag are found again.

    Args:
        config: as the flow takes it.
        made: takes them, one by one.
    Raises:
        StackError: the deployment is not there, or the server does not answer; none is left.
    """
    try:
        with _client(stack) as client:
            deployment = _patiently(lambda: api.find_deployment(client, TRAIN))
            if deployment is None:
                raise StackError(f"no deployment {TRAIN}: `ups up` registers it")
            for point in wanted:
                overrides = dict(point.overrides)
                create = functools.partial(
                    api.create_run,
                    client,
                    deployment,
                    {"config": config, "overrides": overrides},
                    key=f"{tag} {json.dumps([config, overrides], sort_keys=True)}",
                    name=point.title,
                    tags=[tag],
                )
                made.append(SweptRun(point, _patiently(create)))
    except httpx.HTTPError as error:
        with contextlib.suppress(httpx.HTTPError):
            cancel_waiting(stack, tag, made)
        raise StackError(f"the runs of the sweep could not be made: {error!r}") from None


def follow(
    stack: Stack,
    tag: str,
    runs: Sequence[SweptRun],
    say: Callable[[str], None],
    timeout_s: float | None = None,
) -> None:
    """Say when a run begins and ends, until all have ended.

    Raises:
        RunTimeout: some go on after `timeout_s`.
        StackError: the server does not answer any more.
    """
    began = answered = time.monotonic()
    with _client(stack) as client:
        while not all(run.has_ended for run in runs):
            try:
                for run in _update(client, tag, runs):
                    done = sum(each.has_ended for each in runs)
                    counted = f"{done} of {len(runs)}" if run.has_ended else ""
                    at = f"{time.monotonic() - began:7.1f} s"
                    say(f"{at}  {run.point.title:<44} {run.state_name:<10} {counted}".rstrip())
                answered = time.monotonic()
            except httpx.HTTPError as error:
                if time.monotonic() - answered > SERVER_LOST_S:
                    raise StackError(
                        f"the Prefect server at {stack.ui_url} does not answer ({error!r}): "
                        "`ups up` starts it again"
                    ) from None
            if timeout_s is not None and time.monotonic() - began > timeout_s:
                raise RunTimeout(f"the sweep did not end in {timeout_s:.0f} s")
            time.sleep(POLL_S)
    time.sleep(SETTLE_S)


def cancel_waiting(stack: Stack, tag: str, runs: Sequence[SweptRun]) -> int:
    """Cancel the runs of a tag that no process runs yet; one that has begun goes on.

    By the tag: a run may have been made whose id never arrived here.

    Returns:
        How many were cancelled.
    """
    num = 0
    with _client(stack) as client:
        # The last first: whoever gets the slot of the deployment meanwhile is the first of them.
        for run in reversed(_patiently(lambda: api.read_tagged(client, tag))):
            if run["state"]["type"] == WAITING:
                cancel = functools.partial(api.cancel_run, client, run["id"], INTERRUPTED)
                num += _patiently(cancel)
        _patiently(lambda: _update(client, tag, runs))
    return num


def _update(client: httpx.Client, tag: str, runs: Sequence[SweptRun]) -> list[SweptRun]:
    """Ask for the states; returns the runs that have begun or ended since."""
    changed = []
    found = {run["id"]: run for run in api.read_tagged(client, tag)}
    for run in runs:
        state = found.get(run.id, {}).get("state")
        if state is None:
            continue
        is_news = state["type"] != run.state_type and state["type"] in SHOWN
        run.state_type, run.state_name = state["type"], state["name"]
        run.message = state["message"] or ""
        if is_news:
            changed.append(run)
    return changed


def _patiently(call: Callable[[], T]) -> T:
    """Ask again while the server does not answer, or is busy: with SQLite it often is, a 503."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            return call()
        except httpx.HTTPError as error:
            answer = error.response if isinstance(error, httpx.HTTPStatusError) else None
            is_refused = answer is not None and answer.is_client_error
            if is_refused or time.monotonic() > deadline:
                raise
        time.sleep(POLL_S)


def _client(stack: Stack) -> httpx.Client:
    return stack.client(timeout_s=30)
