"""Which tests come first, and which ones a worker of xdist takes together."""

from __future__ import annotations

from typing import Any

import pytest

# Tests that share a Prefect server, which costs a worker of xdist 15 s.
ONE_SERVER = ("tests/flows/", "tests/tasks/", "tests/deployments/test_rented.py", "tests/vast/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a server come first: while others are left, no worker is without a test."""
    servers = {"prefect_server", "new_stack"}
    with_server = {item.path for item in items if servers & set(getattr(item, "fixturenames", ()))}
    items.sort(key=lambda item: item.path not in with_server)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker of xdist takes a file at a time, and all that share a server as one."""
    from xdist.scheduler import LoadFileScheduling

    class ByServer(LoadFileScheduling):  # type: ignore[misc, unused-ignore]
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return "one server" if file.startswith(ONE_SERVER) else file

    return ByServer(config, log)
