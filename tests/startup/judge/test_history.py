"""The history: what is put in comes out, and nothing that was added is ever lost."""

import json
import logging
import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
from pydantic import ValidationError

from ups.errors import HistoryError
from ups.files import read_json, write_json
from ups.runs.breakdown import Span
from ups.startup.judge.history import History, write_csv
from ups.startup.judge.verdict import MovedPhase, Verdict
from ups.startup.measure.records import RunRecord

ROOT = Path(__file__).parents[3]

WRITER = """
import sys
from pathlib import Path
from ups.startup.judge.history import History, JudgedBenchmark

history, benchmark = History(Path(sys.argv[1])), JudgedBenchmark.model_validate_json(sys.argv[2])
(run,), runs = benchmark.runs, []
sys.stdin.readline()  # everybody at once
for repeat in range(int(sys.argv[3])):
    runs.append(run.model_copy(update={"repeat": repeat}))
    history.save(benchmark.model_copy(update={"runs": tuple(runs)}))
    print(repeat, flush=True)
"""

MANY_PHASES = {f"phase {n}": float(n) for n in range(40)}
WORSE = Verdict(scenario="cold", kind="worse", phase="download", num_before=9, num_now=1)


@pytest.fixture
def full(benchmark):
    """A judged benchmark of two runs; the second has all that a run can have."""
    first, second = benchmark({"cold": (2.0, 2.5)}).runs
    more = {
        "ttfs_s": 1 / 3,
        "bounds_s": {"download": 0.1 + 0.2},
        "spans": (Span(phase="boot", name="boot", start=100.1, end=101.2, state="Failed"),),
        "busy_cores": 0.1 + 0.7,
        "start_mode": "cold",
        "cache_reused": False,
    }
    return benchmark(runs=(first, second.model_copy(update=more)), verdicts=(WORSE,))


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "deep" / "benchmarks")


@pytest.fixture
def writer(benchmark):
    """`writer(folder, id, num)`: a real process that waits for a line, then adds runs."""
    started = []

    def start(folder, id, num):
        (run,) = benchmark({"cold": (2.0,)}).runs
        record = benchmark(id=id, runs=(run.model_copy(update={"phases": MANY_PHASES}),))
        command = [sys.executable, "-c", WRITER, folder, record.model_dump_json(), str(num)]
        process = Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_what_was_saved_is_text_and_comes_back_to_the_last_digit_elsewhere_too(history, full):
    moved = MovedPhase(phase="download", before_s=0.1 + 0.2, after_s=2.0, limit_s=1 / 3)
    no_verdict = Verdict(scenario="warm", kind="no verdict yet", num_before=0, num_now=1)
    verdicts = (no_verdict, WORSE.model_copy(update={"moved_phases": (moved,)}))
    saved = history.save(full, verdicts)
    assert saved == full.model_copy(update={"verdicts": verdicts})
    (found,) = History(history.folder.parent).benchmarks()
    assert found == saved
    assert list(found.runs[0].phases) == list(full.runs[0].phases)
    (path,) = history.folder.iterdir()
    assert path.name == "b1.json"
    assert '\n "commit": "2cf4672a1b2c-dirty",\n' in path.read_text()  # for a person to read


def test_a_benchmark_that_was_cut_short_has_its_runs_and_no_verdicts(history, benchmark):
    for num in range(3):
        record = benchmark({"cold": (2.0, 2.5)[:num]})
        history.save(record)
    assert history.benchmark("b1") == record
    history.save(record, [WORSE])
    assert history.benchmark("b1").verdicts == (WORSE,)


def test_a_file_is_read_again_only_where_it_has_changed(history, benchmark, monkeypatch):
    opened, read = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: opened.append(path.stem) or read(path))
    for name in ("b0", "b1"):
        history.save(benchmark({"cold": (2.0,)}, id=name))
    assert len(history.benchmarks()) == len(history.benchmarks()) == 2
    assert sorted(opened) == ["b0", "b1"]
    History(history.folder.parent).save(benchmark({"cold": (2.0, 3.0)}, id="b1"))
    assert len(history.benchmark("b1").runs) == 2
    assert sorted(opened) == ["b0", "b1", "b1"]


def test_a_benchmark_is_found_by_the_beginning_of_its_id(history, benchmark):
    for started_at, id in enumerate(["abc-1", "xyz%", "abc-12"]):
        history.save(benchmark({}, id=id, started_at=started_at))
    assert history.benchmark("x").id == "xyz%"
    assert history.benchmark("abc-1").id == "abc-1"
    several = r"2 benchmarks .* begin with 'ab' \(abc-12, abc-1\): give more"
    for prefix, fault in ("ab", several), ("%", "begins with '%'"):
        with pytest.raises(HistoryError, match=fault):
            history.benchmark(prefix)


def test_benchmarks_are_listed_newest_first_and_an_unknown_one_answered_with_the_latest(
    history, benchmark
):
    with pytest.raises(HistoryError, match="'b1': it holds none yet"):
        history.benchmark("b1")
    assert not history.folder.parent.exists()  # to look into a history makes nothing
    for number in 3, 1, 7, 2, 5, 4, 6:
        history.save(benchmark({}, id=f"b{number}", started_at=number))
    assert [b.id for b in history.benchmarks()] == [f"b{number}" for number in range(7, 0, -1)]
    with pytest.raises(HistoryError, match="'q': the latest are b7, b6, b5, b4, b3$"):
        history.benchmark("q")


@pytest.mark.parametrize("wrong", [{"ttfs_s": float("nan")}, {"phases": {"boot": float("inf")}}])
def test_a_time_that_json_cannot_hold_is_no_time_of_a_run(full, wrong):
    with pytest.raises(ValidationError, match="finite number"):
        RunRecord(**{**dict(full.runs[0]), **wrong})


def assert_runs_are_whole(benchmark):
    assert [run.repeat for run in benchmark.runs] == list(range(len(benchmark.runs)))
    assert all(run.phases == MANY_PHASES for run in benchmark.runs)


@pytest.mark.parametrize("after", [1, 4])
def test_a_killed_process_loses_no_run_that_it_was_done_with(tmp_path, writer, after):
    process = writer(tmp_path, "b", 100_000)
    print("go", file=process.stdin, flush=True)
    for _ in range(after):
        assert process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    done = after + len(process.stdout.readlines())
    assert process.wait() == -signal.SIGKILL

    (found,) = History(tmp_path).benchmarks()
    assert len(found.runs) in (done, done + 1)  # the last may be in, and not yet announced
    assert_runs_are_whole(found)
    saved = History(tmp_path).save(found.model_copy(update={"runs": found.runs[:1]}))
    assert History(tmp_path).benchmarks() == (saved,)


def test_a_save_that_fails_half_way_leaves_the_runs_before_it(history, full, monkeypatch):
    saved = history.save(full.model_copy(update={"runs": full.runs[:1]}))
    monkeypatch.setattr(os, "fsync", lambda _: os.write(-1, b""))
    with pytest.raises(HistoryError, match=r"b1\.json cannot be written: .*Expected a folder"):
        history.save(full)
    assert history.benchmarks() == (saved,)


def test_every_save_waits_for_the_disk(history, full, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    history.save(full)
    file, *folders = map(Path, synced)
    assert folders == [file.parent, *file.parents[1:4]]  # each is new: in its folder, too
    assert file.parent == history.folder


def test_two_processes_that_start_at_once_lose_nothing(tmp_path, writer):
    folder = tmp_path / "new"
    processes = {id: writer(folder, id, 15) for id in ("one", "two")}
    for process in processes.values():
        print("go", file=process.stdin, flush=True)
    for process in processes.values():
        process.communicate(timeout=30)
        assert process.returncode == 0
    for id in processes:
        found = History(folder).benchmark(id)
        assert len(found.runs) == 15
        assert_runs_are_whole(found)


def test_fields_of_a_later_version_are_ignored(history, full):
    saved = history.save(full, [WORSE])
    path = history.folder / "b1.json"
    tree = read_json(path)
    for record in (tree, tree["runs"][0], tree["runs"][0]["spans"][0], tree["verdicts"][0]):
        record["added later"] = 3
    write_json(path, tree)
    assert history.benchmark("b1") == saved


@pytest.mark.parametrize("text", ["these are not the bytes of a record", "{}", ""])
def test_a_file_that_is_no_record_is_named_and_left_alone(history, full, text):
    history.save(full)
    path = history.folder / "b1.json"
    path.write_text(text)
    with pytest.raises(HistoryError, match=r"(?s)b1\.json cannot be read: .* or move it away"):
        history.benchmarks()
    assert path.read_text() == text


def test_hidden_files_are_none_of_the_history_and_a_folder_that_cannot_be_read_is_named(
    history, full
):
    saved = history.save(full)
    (history.folder / "._b1.json").write_text("what another system left")
    assert history.benchmarks() == (saved,)
    history.folder.rename(history.folder.with_name("aside"))
    history.folder.touch()
    with pytest.raises(HistoryError, match=r"history cannot be read: .*Not a directory"):
        history.benchmarks()


def test_a_folder_that_cannot_be_made_is_named(tmp_path, full):
    (tmp_path / "file").touch()
    with pytest.raises(HistoryError, match=r"file/.* cannot be written: .* this process may write"):
        History(tmp_path / "file").save(full)


# As the versions before wrote it: the second added busy_cores.
TABLES = """
CREATE TABLE benchmarks (
    id TEXT PRIMARY KEY, started_at REAL, flow_run_id TEXT, machine_id TEXT, machine TEXT,
    versions TEXT, "commit" TEXT, settings TEXT, is_complete INTEGER);
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, benchmark TEXT, scenario TEXT, repeat INTEGER, flow_run_id TEXT,
    triggered_at REAL, ttfs_s REAL, start_mode TEXT, cache_reused INTEGER, bounds TEXT,
    bounds_s TEXT, spans TEXT);
CREATE TABLE phases (run INTEGER, phase TEXT, seconds REAL);
CREATE TABLE verdicts (
    benchmark TEXT, scenario TEXT, kind TEXT, phase TEXT, before_s REAL, after_s REAL,
    verdict TEXT);
"""


@pytest.fixture
def database(tmp_path, full):
    """`database(with_load)`: the file of an earlier version, with a benchmark of two runs."""

    def make(with_load):
        path = tmp_path / "history.sqlite"
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.executescript(TABLES)
            if with_load:
                connection.execute("ALTER TABLE runs ADD COLUMN busy_cores REAL")

            def insert(table, values):
                marks = ", ".join("?" for _ in values)
                names = ", ".join(f'"{name}"' for name in values)
                connection.execute(
                    f"INSERT INTO {table} ({names}) VALUES ({marks})",
                    [json.dumps(v) if isinstance(v, dict | list) else v for v in values.values()],
                )

            tree = full.model_dump(exclude={"runs", "verdicts"})
            insert("benchmarks", {**tree, "is_complete": 1})
            for number, run in enumerate(full.runs):
                later = set() if with_load else {"busy_cores"}
                new = {"phases", "idle_s", "waited_s"}
                values = run.model_dump(exclude=new | later, mode="json")
                insert("runs", {**values, "id": number, "benchmark": "b1"})
                for phase, seconds in run.phases.items():
                    insert("phases", {"run": number, "phase": phase, "seconds": seconds})
            verdict = {"benchmark": "b1", "scenario": "cold", "kind": "worse"}
            insert("verdicts", {**verdict, "verdict": WORSE.model_dump_json()})
        return path

    return make


@pytest.mark.parametrize("with_load", [True, False])
def test_the_sqlite_file_of_an_earlier_version_is_converted_once(
    database, full, with_load, caplog, monkeypatch
):
    caplog.set_level(logging.INFO, "ups")
    path = database(with_load)
    before = path.read_bytes()
    if not with_load:
        runs = tuple(run.model_copy(update={"busy_cores": None}) for run in full.runs)
        full = full.model_copy(update={"runs": runs})
    assert History(path.parent).benchmarks() == (full,)
    assert path.read_bytes() == before
    monkeypatch.delattr(sqlite3, "connect")
    later = full.model_copy(update={"id": "b2", "started_at": full.started_at + 1})
    newer = History(path.parent).save(later)
    assert History(path.parent).benchmarks() == (newer, full)
    assert [r.getMessage() for r in caplog.records] == [
        f"converted {path} into {path.parent}/history; the old file is not read any more"
    ]
    assert {p.name for p in path.parent.iterdir()} == {"history", "history.sqlite"}


def test_a_file_that_cannot_be_converted_is_named_and_leaves_no_half_of_a_history(database):
    path = database(True)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE runs SET bounds = '{' WHERE id = 1")
    with pytest.raises(HistoryError, match=r"history\.sqlite: .*move it away to begin a new"):
        History(path.parent)
    no_database = "these are not the bytes of a data base\n" * 200
    path.write_text(no_database)
    with pytest.raises(HistoryError, match=r"history\.sqlite: file is not a database.*move it"):
        History(path.parent)
    assert path.read_text() == no_database
    assert [p.name for p in path.parent.iterdir()] == ["history.sqlite"]


EXPORTED = """\
benchmark,started_at,commit,machine_id,scenario,repeat,flow_run_id,triggered_at,start_mode,\
cache_reused,ttfs_s,idle_s,waited_s,phase,phase_s
b1,100.0,2cf4672a1b2c-dirty,m1,cold,0,"flow, with a comma",1795475000.0,warm,,0.3333333333333333,\
0.25,0.125,queue,0.3
b1,100.0,2cf4672a1b2c-dirty,m1,cold,0,"flow, with a comma",1795475000.0,warm,,0.3333333333333333,\
0.25,0.125,boot,1.0
b1,100.0,2cf4672a1b2c-dirty,m1,cold,1,cold/1,1795475100.0,warm,True,5.25,,,load,0.5
b0,200.0,2cf4672a1b2c-dirty,m1,cold,0,cold/0,1795475000.0,warm,,4.75,,,load,0.5
"""


def test_csv_has_a_row_per_run_and_phase_in_order_of_time(tmp_path, benchmark):
    other, second = benchmark({"cold": (2.0, 2.5)}).runs
    more = {"flow_run_id": "flow, with a comma", "ttfs_s": 1 / 3, "idle_s": 0.25, "waited_s": 0.125}
    first = other.model_copy(update={**more, "phases": {"queue": 0.3, "boot": 1.0}})
    other = other.model_copy(update={"phases": {"load": 0.5}})
    second = second.model_copy(update={"phases": {"load": 0.5}, "cache_reused": True})
    path = tmp_path / "out" / "h.csv"
    earlier = benchmark(started_at=100.0, runs=(second, first))
    write_csv(path, [benchmark(id="b0", started_at=200.0, runs=(other,)), earlier])
    assert path.read_text() == EXPORTED
    write_csv(path, [])
    assert path.read_text() == EXPORTED.splitlines()[0] + "\n"


def test_a_run_of_an_earlier_version_is_read_without_idle_seconds(history, full):
    text = history.save(full, full.verdicts).model_dump(
        mode="json", exclude={"runs": {"__all__": {"idle_s", "waited_s"}}}
    )
    (history.folder / "b1.json").write_text(json.dumps(text))
    (found,) = History(history.folder.parent).benchmarks()
    assert found == full
    assert {run.idle_s for run in found.runs} == {None}
