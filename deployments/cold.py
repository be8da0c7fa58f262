"""Run a module in this fresh interpreter: its imports come in without the cyclic collector.

    python -m deployments.cold MODULE         what a cold start of `deployments/start.py` becomes

Of a run's imports the collector takes a fifth: 2.07 s of processor time with it, 1.64 without
(medians of 5, alternated). Torch's libraries load beside them.
"""

import importlib
import runpy
import sys

from ups.machine.torch_import import collector_at_rest, load_libraries_beside


def main() -> None:
    """Import what a flow run needs, then become the module that the command line names."""
    module = sys.argv[1]
    load_libraries_beside()
    with collector_at_rest():
        for name in ("prefect.flow_engine", "prefect.events.worker", "flows.train_burgers"):
            importlib.import_module(name)
    sys.argv = [module]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
