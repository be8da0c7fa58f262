"""Cache entries behind the states that Prefect keeps of them."""

import shutil

import pytest

from flows.train_burgers import train_burgers
from tests.conftest import TINY_FILE
from ups.latents.build import ensure
from ups.latents.entries import entries
from ups.latents.prune import remove
from ups.latents.store import list_entries
from ups.runs.stored import RunInfo

ONE_STEP = {"stages__operator__max_steps": 1}


def test_a_damaged_or_removed_entry_behind_a_cached_state_is_built_again(
    first_run, flow_config, run
):
    path, cache_dir = flow_config(**first_run.found, **ONE_STEP), first_run.folder / "cache"
    key = first_run.breakdown["config_hash"]
    (entry,) = [entry for entry in entries(cache_dir) if entry.current]
    (entry.directory / "train_000.safetensors").unlink()
    state, tasks, again = run(path)
    assert state.is_completed()
    assert again["cache_reused"] is False
    assert tasks[f"2 build-latent-cache [{key}]"] == "Completed"
    _, tasks, _ = run(path)
    assert tasks[f"2 build-latent-cache [{key}] reused"] == "Cached"
    (entry,) = [entry for entry in entries(cache_dir) if entry.current]
    assert remove(entry)
    state, tasks, _ = run(path)
    assert state.is_completed()
    assert tasks[f"2 build-latent-cache [{key}]"] == "Completed"


def test_a_torn_record_of_a_cached_result_is_a_miss_not_a_failure(first_run, flow_config, run):
    results = first_run.folder / "cache" / ".prefect" / "results"
    record = results / f"latents-{first_run.breakdown['config_hash']}"
    record.write_bytes(record.read_bytes()[:20])
    state, _, again = run(flow_config(**first_run.found, **ONE_STEP))
    assert state.is_completed()
    assert again["cache_reused"] is True  # by the entry itself, whose files are whole


def test_a_valid_entry_on_a_disk_that_can_only_be_read_is_reused_and_trained_on(
    flow_config, run, tiny_config, stage_all, read_only
):
    config = tiny_config()
    entry = ensure(config, stage_all(config))
    written = sorted(config.training.latent_cache_dir.rglob("*"))
    cache_dir = read_only(config.training.latent_cache_dir)
    with pytest.raises(OSError, match="Read-only"):
        (cache_dir / "x").touch()
    path = flow_config(training__latent_cache_dir=str(cache_dir), **ONE_STEP)
    state, tasks, breakdown = run(path)
    assert state.is_completed()
    assert tasks[f"2 build-latent-cache [{entry.config_hash}] reused"] == "Completed"
    assert breakdown["cache_reused"] is True
    # Nothing is tried either: where this path is resolved, it is one that can be written.
    assert sorted(config.training.latent_cache_dir.rglob("*")) == written


def test_overwrite_builds_an_entry_again_and_a_retry_takes_what_it_built(
    first_run, flow_config, run, tmp_path, monkeypatch
):
    import flows.train_burgers

    path, cache_dir = flow_config(**first_run.found, **ONE_STEP), first_run.folder / "cache"
    built, load = [], flows.train_burgers.load_latents

    def fail_once(*arguments):
        built.extend(manifest.generation for manifest in list_entries(cache_dir))
        if len(built) == 1:
            raise RuntimeError("at the first attempt")
        return load(*arguments)

    monkeypatch.setattr(flows.train_burgers, "load_latents", fail_once)
    before = [manifest.generation for manifest in list_entries(cache_dir)]
    state, _, retried = run(path, train_burgers.with_options(retries=1), overwrite_cache=True)
    assert state.is_completed(), state.message
    assert before[0] != built[0] == built[1]
    assert RunInfo.load(tmp_path / "runs" / retried["run"]).attempt == 2
    assert retried["cache_reused"] is True


def test_another_cache_directory_never_answers_but_its_own_entry_which_spares_all_but_test(
    first_run, flow_config, run, task_states, tmp_path
):
    path = flow_config(**ONE_STEP)
    _, _, first = run(path)
    assert first["config_hash"] == first_run.breakdown["config_hash"]
    assert first["cache_reused"] is False
    key, staged = first["config_hash"], tmp_path / "staged"
    shutil.rmtree(staged)
    state, tasks, again = run(path)
    assert state.is_completed(), state.message
    assert again["cache_reused"] is True
    assert tasks[f"2 build-latent-cache [{key}] reused"] == "Cached"
    assert [file.name for file in staged.rglob("*.h5")] == [TINY_FILE.format("test")]
    said = {name: of.message for name, of in task_states(state).items()}
    for split in ("train", "val"):
        why = f"nothing to fetch: the latents are in the cache, {key}"
        assert said[f"1 download [{split}]"] == why
    assert not said["1 download [test]"]
