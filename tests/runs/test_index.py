"""Folders of runs, as the library writes them, read back."""

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
import yaml

from ups.config import dump_config
from ups.errors import ConfigError, Interrupted
from ups.runs.breakdown import STOPPED, Breakdown, Span, tabulate
from ups.runs.compare import compare
from ups.runs.folder import open_run_dir
from ups.runs.index import find_run, find_runs, read_run, short_ids
from ups.runs.record import recorded


@pytest.fixture
def make_run(tiny_config):
    """`make_run(id, …)`: the folder of a run that ended, the later the greater `second`."""

    def make(run_id, second=0, *, flow_run_id=None, ttfs_s=2.0, nrmse=0.1, error=None, **overrides):
        config = tiny_config(**overrides)
        folder = config.runs_dir / f"20260101-1200{second:02d}-{config.name}-{run_id}"
        folder.mkdir(parents=True)
        assert open_run_dir(config, UUID(flow_run_id) if flow_run_id else run_id) == folder
        breakdown(folder, ttfs_s, nrmse).save(folder)
        rows = [{"epoch": epoch, "step": 4 * epoch} for epoch in (1, 2)]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        try:
            with recorded(folder, flow_run_id=flow_run_id):
                if error:
                    raise error
        except type(error or Exception()):
            pass
        return folder

    return make


def breakdown(folder, ttfs_s, nrmse, failed=None):
    spans = [
        Span(phase="queue", name="queue", start=0, end=0.5),
        Span(phase="first step", name="4 first step", start=0.5, end=ttfs_s),
    ]
    return Breakdown(
        run=folder.name, config="smoke", config_hash="0123", start_mode="warm", triggered_at=0,
        ttfs_s=ttfs_s, until_s=ttfs_s, unaccounted_s=0, cost_usd=0, cache_reused=True,
        failed=failed, phases=tabulate(spans, {}, 0, ttfs_s), spans=tuple(spans), metrics={},
        nrmse_rollout=nrmse,
    )  # fmt: skip


def test_a_run_is_summed_up_from_its_folder_which_has_the_config_that_ran(make_run, tiny_config):
    folder = make_run("abcd", training__seed=5)
    assert read_run(folder).config == yaml.safe_load(dump_config(tiny_config(training__seed=5)))
    run = find_runs(folder.parent)[0]
    assert (run.id, run.folder, run.name, run.state) == ("abcd", folder, "smoke", "completed")
    assert (run.ttfs_s, run.cache_reused, run.num_epochs) == (2.0, True, 2)
    assert run.nrmse_rollout == 0.1
    assert run.commit == read_run(folder).info.commit
    assert f"{datetime.now(UTC):%Y%m%d-%H}" in open_run_dir(tiny_config(), "efgh").name
    (folder / "run.json").unlink()  # then the name of the folder says when
    assert read_run(folder).summary().started_at == 1_767_268_800  # 12:00 UTC


def test_a_list_reads_the_runs_that_it_shows_alone_and_no_config(make_run, monkeypatch):
    for second in range(5):
        folder = make_run(f"run{second}", second)
    opened, read = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path) or read(path))
    assert [run.id for run in find_runs(folder.parent, 2)] == ["run4", "run3"]
    assert {path.parent.name.rpartition("-")[2] for path in opened} == {"run3", "run4"}
    assert "config.yaml" not in {path.name for path in opened}


def test_the_newest_runs_come_first_and_only_so_many_and_no_other_folders(make_run):
    folder = make_run("old", 1)
    make_run("new", 3)
    make_run("mid", 2)
    for other in ("notes", "99999999-999999-x-cc"):  # the second has a date that is none
        (folder.parent / other).mkdir()
    assert [run.id for run in find_runs(folder.parent)] == ["new", "mid", "old"]
    assert [run.id for run in find_runs(folder.parent, 2)] == ["new", "mid"]


def test_the_state_is_the_one_that_the_run_ended_in(make_run, tiny_config):
    failed = make_run("f", error=ValueError("no"))
    stopped = make_run("s", error=Interrupted("enough"))
    assert read_run(failed).summary().state == "failed"
    assert read_run(stopped).summary().state == "stopped"
    going_on = open_run_dir(tiny_config(), "r")
    with recorded(going_on):
        assert read_run(going_on).summary().state == "running"
    assert read_run(going_on).summary().state == "completed"


def test_a_process_that_is_gone_leaves_its_run_unknown(make_run):
    folder = make_run("k")
    with subprocess.Popen(["true"]) as gone:
        pass
    read_run(folder).info.model_copy(update={"state": None, "pid": gone.pid}).save(folder)
    assert read_run(folder).summary().state == "unknown"


@pytest.mark.parametrize(
    ("failed", "state"), [(None, "completed"), (STOPPED, "stopped"), ("ValueError: no", "failed")]
)
def test_a_folder_without_a_record_is_read_by_its_breakdown(make_run, failed, state):
    folder = make_run("earlier")
    (folder / "run.json").unlink()
    breakdown(folder, 2.0, None, failed).save(folder)
    run = read_run(folder).summary()
    assert run.state == state
    assert run.commit is None
    (folder / "breakdown.json").unlink()
    assert read_run(folder).summary().state == "unknown"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.yaml", "a: ["),
        ("config.yaml", "- 1"),
        ("config.yaml", "\0"),
        ("run.json", "[]"),
        ("breakdown.json", "[1]"),
        ("breakdown.json", '{"ttfs_s": "soon"}'),
        ("scores.json", '{"rollout": 1}'),
        ("metrics.jsonl", '{"epoch": "last"}'),
    ],
)
def test_a_broken_file_spoils_neither_the_list_nor_a_comparison(make_run, caplog, name, text):
    broken, whole = make_run("broken", 1), make_run("whole", 2)
    (broken / name).write_text(text)
    assert [run.id for run in find_runs(broken.parent)] == ["whole", "broken"]
    assert compare(broken, whole).after.ttfs_s == 2.0
    assert str(broken) in caplog.text


def test_a_file_that_is_half_written_or_a_folder_or_no_text_is_left_out_and_logged(
    make_run, caplog
):
    folder = make_run("odd")
    for name in ("breakdown.json", "metrics.jsonl"):
        text = (folder / name).read_text()
        (folder / name).write_text(text[: len(text) // 2 + 3])
    run = read_run(folder).summary()
    assert (run.ttfs_s, run.num_epochs, run.state) == (None, 0, "completed")
    assert "breakdown.json is left out" in caplog.text
    assert "metrics.jsonl is left out" in caplog.text
    for name in ("config.yaml", "run.json", "breakdown.json", "metrics.jsonl"):
        (folder / name).unlink()
    (folder / "config.yaml").mkdir()
    for name in ("run.json", "breakdown.json", "metrics.jsonl"):
        (folder / name).write_bytes(b"\xff\xfe{")
    (run,) = find_runs(folder.parent)
    assert (run.id, run.state) == ("odd", "unknown")


def test_the_config_of_a_run_is_never_half_there(tiny_config, monkeypatch):
    folder = open_run_dir(tiny_config(), "a")
    before = (folder / "config.yaml").read_text()

    def killed(*_):
        raise KeyboardInterrupt("while it was written")

    monkeypatch.setattr("pathlib.Path.replace", killed)
    with pytest.raises(KeyboardInterrupt, match="while"):
        open_run_dir(tiny_config(training__seed=7), "a")
    assert (folder / "config.yaml").read_text() == before


def test_a_run_is_found_by_the_beginning_of_its_id_or_folder(make_run):
    first, second = make_run("abcd", 1), make_run("abxy", 2)
    runs_dir = first.parent
    for text in ("abc", "cd"):
        assert find_run(runs_dir, text) == first
    for text in ("20260101-120002", second.name, "xy"):
        assert find_run(runs_dir, text) == second
    third = make_run("ab", 3)
    assert find_run(runs_dir, "ab") == third  # a whole id goes before the beginning of others


SCHEDULED = (
    "0199d3a1-7c40-7a52-9f0e-6f2f5b7e9a10",
    "0199d3a1-7c40-7c3f-b21d-52d0e97f4c11",
    "0199d3a1-7c41-7b18-8e0e-0c4e6a1d2b30",
)


def test_a_flow_run_is_found_by_any_piece_of_its_id_that_is_its_own(make_run):
    folders = [
        make_run(flow_run_id.replace("-", ""), second, flow_run_id=flow_run_id)
        for second, flow_run_id in enumerate(SCHEDULED)
    ]
    runs_dir = folders[0].parent
    for folder, flow_run_id in zip(folders, SCHEDULED, strict=True):
        digits = flow_run_id.replace("-", "")
        for text in (flow_run_id, digits, digits[-8:], digits[-12:], flow_run_id[-17:],
                     flow_run_id[:18], digits[:16], folder.name):  # fmt: skip
            assert find_run(runs_dir, text) == folder, text
    for num in (8, 12):
        with pytest.raises(ConfigError, match=r"runs begin or end so.*latest: (6a1d2b30, )?e97f"):
            find_run(runs_dir, SCHEDULED[0].replace("-", "")[:num])
    assert [run.id for run in find_runs(runs_dir)] == [
        flow_run_id.replace("-", "") for flow_run_id in reversed(SCHEDULED)
    ]


def test_an_earlier_versions_folder_is_found_by_its_flow_runs_whole_id_alone(make_run):
    flow_run_id, other, _ = SCHEDULED
    folder = make_run(flow_run_id.replace("-", ""), flow_run_id=flow_run_id)
    folder = folder.rename(folder.with_name(f"20260101-120000-smoke-{flow_run_id[:8]}"))
    assert find_run(folder.parent, flow_run_id) == folder
    with pytest.raises(ConfigError, match="none in .* begins or ends so"):
        find_run(folder.parent, other)
    assert find_run(folder.parent, flow_run_id[:8]) == folder
    (folder / "run.json").unlink()  # an even earlier version left none
    assert find_run(folder.parent, flow_run_id) == folder


def test_the_short_form_of_an_id_is_one_that_finds_the_run(make_run):
    ids = [
        "0199d3a17c407a529f0e6f2f5b7e9a10",
        "0199d3a17c407c3fb21d52d05b7e9a10",  # the same 8 at the end
        "0199d3a17c417b188e0e0c4e20260101",  # the end as the folders' dates begin
        "0199d3a17c427b188e0e0c4e6a1dabcd",  # as another run's id
        "0199d3a17c437b188e0e0c4e0199d3a1",  # as others begin
        "6a1dabcd",
        "mine",
    ]
    folders = [make_run(run_id, second) for second, run_id in enumerate(ids)]
    runs_dir = folders[0].parent
    short = short_ids(runs_dir, ids)
    assert list(short.values()) == [
        "6f2f5b7e9a10", "52d05b7e9a10", "0c4e20260101", "0c4e6a1dabcd", "0c4e0199d3a1",
        "6a1dabcd", "mine",
    ]  # fmt: skip
    for run_id, text in short.items():
        assert find_run(runs_dir, text).name.endswith(f"-{run_id}")


def test_what_fits_no_run_or_several_names_the_latest_ids_or_that_there_is_none(make_run, tmp_path):
    runs_dir = make_run("abcd", 1).parent
    make_run("abxy", 2)
    make_run("zz", 3)
    with pytest.raises(ConfigError, match="2 runs begin or end so, .*; the latest: abxy, abcd"):
        find_run(runs_dir, "ab")
    with pytest.raises(ConfigError, match="none in .* ends so; the latest: zz, abxy, abcd"):
        find_run(runs_dir, "q")
    with pytest.raises(ConfigError, match="begins or ends so"):
        find_run(runs_dir, "")
    assert find_runs(tmp_path / "nowhere") == []
    with pytest.raises(ConfigError, match="nowhere holds no run"):
        find_run(tmp_path / "nowhere", "a")


def test_only_what_differs_is_compared(make_run):
    before = make_run("a", 1)
    after = make_run("b", 2, ttfs_s=1.25, nrmse=0.04, training__seed=7, operator__depths=[2, 1, 2])
    found = compare(before, after)
    assert found.config == {"operator.depths": ([1, 1, 1], [2, 1, 2]), "training.seed": (0, 7)}
    assert found.startup["time to first step"].difference == -0.75
    assert found.startup["first step"].before == 1.5
    assert found.startup["first step"].difference == -0.75
    assert found.startup["queue"].difference == 0
    assert found.nrmse.difference == pytest.approx(-0.06)


def test_a_key_that_one_config_lacks_differs_and_a_missing_figure_has_no_difference(make_run):
    before, after = make_run("a", 1), make_run("b", 2, nrmse=None)
    tree = yaml.safe_load((before / "config.yaml").read_text())
    del tree["startup"]["price_per_hour"]
    (before / "config.yaml").write_text(yaml.safe_dump(tree))
    found = compare(before, after)
    assert found.config == {"startup.price_per_hour": (None, 1.89)}
    assert found.nrmse.before == 0.1
    assert found.nrmse.difference is None
    assert compare(after, after).config == {}
