"""What the flow trains and scores: the checkpoint that it is given, and the test split."""

import json

from ups.training import checkpoint


def test_a_run_goes_on_from_another_runs_checkpoint_and_is_scored_on_test(
    flow_config, run, tmp_path
):
    path = flow_config()
    _, _, first = run(path, epochs=1)
    folder = tmp_path / "runs" / first["run"]
    assert json.loads((folder / "scores.json").read_text())["num_trajectories"] == 6
    last = folder / "checkpoints" / "last.pt"
    state, _, second = run(path, epochs=2, resume_from=str(last))
    assert state.is_completed(), state.message
    folder = tmp_path / "runs" / second["run"]
    assert f"resuming from {last} at epoch 2, step 4" in (folder / "run.log").read_text()
    assert checkpoint.load(folder / "checkpoints" / "last.pt")["position"]["step"] == 8
