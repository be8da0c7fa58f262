"""Put a config's generated data set into the object store, where it has none.

    python -m deployments.seed CONFIG [OVERRIDES as JSON]

A process of its own, so that it works while the Prefect server starts.
"""

from __future__ import annotations

import json
import sys

from ups.config import load_config
from ups.data.seed import seed
from ups.errors import UpsError


def main() -> int:
    overrides = json.loads(sys.argv[2]) if len(sys.argv) > 2 else None
    try:
        seed(
            load_config(sys.argv[1], overrides),
            lambda s, what: print(f"  {'data':<15} {s:5.1f} s  {what}", flush=True),
        )
    except UpsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
