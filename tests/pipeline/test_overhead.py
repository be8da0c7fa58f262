from __future__ import annotations

from pathlib import Path

import pytest

from ups.data.sources import Staged
from ups.pipeline.overhead import break_down
from ups.pipeline.state import RunState
from ups.runs.breakdown import Span


@pytest.mark.parametrize(("fetched", "words"), [(2_000_000, "network: 4 MB"), (0, "4 MB found,")])
def test_the_breakdown_says_of_how_many_files_nothing_could_be_compared(
    tiny_config, tmp_path, fetched, words
):
    run = RunState(tiny_config(), tmp_path)
    for split, is_verified in (("train", False), ("val", True)):
        source = {"uri": f"s3://b/{split}", "path": Path(split), "rows": None, "sha256": "0"}
        sizes = {"num_bytes": 2_000_000, "fetched_bytes": fetched, "seconds": 1.0}
        staged = Staged(split=split, **source, **sizes, is_verified=is_verified)
        run.staged["burgers1d", split] = [staged]
    span = Span(phase="download", name="download", start=0, end=1, state="Completed")
    breakdown = break_down(run, [span], triggered_at=0, start_mode="cold", bounds={})
    (bound,) = [row.bound for row in breakdown.phases if row.phase == "download"]
    assert bound.startswith(words)
    assert bound.endswith("; 1 of 2 files not verified: no manifest")
