"""Run `prefect ARGUMENTS…` in two steps: import it now, begin when a line arrives on stdin.

The imports take seconds, so `ups up` lets them happen while the Prefect server starts. If stdin
ends without a line, whoever was to send it is gone, and nothing is done.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    import prefect.cli.deploy._core
    import prefect.cli.worker
    import prefect.workers.process  # noqa: F401
    from prefect.cli import app

    if not sys.stdin.readline():
        sys.exit("not started: `ups up` ended before")
    os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
    sys.argv[0] = "prefect"
    app()


if __name__ == "__main__":
    main()
