"""Latents that one run has built and another pulls, as the page of a run shows it."""

from tests.conftest import TINY_FILE


def test_a_run_says_that_it_pushed_its_latents_and_the_next_that_it_pulled_them(
    first_run, flow_config, run, task_states, tmp_path
):
    remote, key = f"s3://tiny/{tmp_path.name}", first_run.breakdown["config_hash"]
    given = {"cache__remote": remote, "stages__operator__max_steps": 1}
    state, tasks, _ = run(flow_config(**first_run.found, **given))
    assert state.is_completed(), state.message
    assert tasks[f"2 build-latent-cache [{key}] reused"] == "Cached"
    assert ": pushed, " in task_states(state)["5 push-latents"].message

    state, tasks, pulled = run(flow_config(**given))
    assert state.is_completed(), state.message
    assert pulled["cache_reused"] is True
    assert tasks[f"2 build-latent-cache [{key}] pulled"] == "Completed"
    bounds = {row["phase"]: row["bound"] for row in pulled["phases"]}
    assert bounds["cache"].startswith(f"pulled from {remote}/latents/{key}/")
    said = {name: of.message for name, of in task_states(state).items()}
    for split in ("train", "val"):
        assert said[f"1 download [{split}]"].startswith("nothing to fetch: the latents are pulled")
    staged = [file.name for file in (tmp_path / "staged").rglob("*.h5")]
    assert staged == [TINY_FILE.format("test")]
    assert said["5 push-latents"] == "nothing to push: the latents were pulled"
