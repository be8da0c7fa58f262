"""Which tests come first, and which ones a worker of xdist takes together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

UI = Path(__file__).with_name("ui")

# Tests that share a Prefect server, which costs a worker of xdist 15 s.
ONE_SERVER = (
    "tests/deployments/test_rented.py",
    "tests/vast/test_whole_way.py",
    "tests/flows/",
    "tests/tasks/",
)
# What takes longest comes first, so that all workers end at about the same time: whoever took up
# such a file late would go on alone.
SLOWEST = (
    "tests/deployments/test_runs.py",
    *ONE_SERVER,
    "tests/deployments/test_deploy.py",
    "tests/deployments/test_team.py",
    "tests/training/test_ranks.py",
    "tests/pipeline/test_streaming.py",
    "tests/deployments/test_start.py",
    "tests/speed/test_sections.py",
    "tests/startup/judge/test_error_rates.py",
    "tests/pipeline/test_local_run.py",
    "tests/cli/test_examples.py",
    "tests/cli/test_exit_codes.py",
    "tests/vast/",
    "tests/tracking/",
    "tests/training/",
)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The tests that need a browser are not even imported where none of them is asked for."""
    return True if config.option.markexpr == "not ui" and collection_path == UI else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a server first, which wait the most; of them, and of the others, the slowest."""
    servers = {"prefect_server", "new_stack", "team"}
    with_server = {item.path for item in items if servers & set(getattr(item, "fixturenames", ()))}

    def place(item: pytest.Item) -> tuple[bool, int]:
        named = (n for n, start in enumerate(SLOWEST) if item.nodeid.startswith(start))
        return item.path not in with_server, next(named, len(SLOWEST))

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker of xdist takes a file at a time, and all that share a server as one."""
    from xdist.scheduler import LoadFileScheduling

    class ByServer(LoadFileScheduling):  # type: ignore[misc, unused-ignore]
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return "one server" if file.startswith(ONE_SERVER) else file

    return ByServer(config, log)
