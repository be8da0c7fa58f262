"""Start the worker or `prefect ARGUMENTS…` in two steps: import now, begin when a line arrives.

    python -m deployments.gate worker POOL …
    python -m deployments.gate prefect --no-prompt deploy --name NAME …

The imports take seconds, so `ups up` lets them happen while the Prefect server starts. If standard
input ends without a line, whoever was to send it is gone, and nothing is done.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Import what the command line asks for, wait for a line, and run it."""
    kind, *arguments = sys.argv[1:]
    sys.argv = [kind, *arguments]
    if kind == "worker":
        from deployments import worker

        worker.main(begin=wait_for_line)
    else:
        import prefect.cli.deploy._core  # noqa: F401
        from prefect.cli import app

        wait_for_line()
        app()


def wait_for_line() -> None:
    """Return when standard input has a line, and close it; exit where it ends without one."""
    if not sys.stdin.readline():
        sys.exit("not started: `ups up` ended before")
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())


if __name__ == "__main__":
    main()
