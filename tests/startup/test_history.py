"""The history file: what is put in comes out, and nothing that was added is ever lost."""

import csv
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ups.errors import HistoryError
from ups.startup import schema
from ups.startup.history import History
from ups.startup.records import BenchmarkRecord, RunRecord
from ups.startup.verdict import Verdict
from ups.telemetry.phases import Span

ROOT = Path(__file__).parents[2]

WRITER = """
import sys
from pathlib import Path
from ups.startup.history import History
from ups.startup.records import BenchmarkRecord, RunRecord

path, id, num = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
sys.stdin.readline()  # everybody at once
history = History(path)
history.begin(BenchmarkRecord(
    id=id, started_at=1.0, machine_id="m", machine={}, versions={}, commit="c", settings={}))
for repeat in range(num):
    history.add_run(id, RunRecord(
        scenario="cold", repeat=repeat, flow_run_id="f", triggered_at=float(repeat), ttfs_s=4.0,
        phases={f"phase {n}": float(n) for n in range(40)}))
    print(repeat, flush=True)
assert "pyarrow" not in sys.modules, "only the export to Parquet may import it"
"""


def run_of(repeat=0, **fields):
    values = {
        "scenario": "cold",
        "repeat": repeat,
        "flow_run_id": f"flow-{repeat}",
        "triggered_at": 100.0 + repeat,
        "ttfs_s": 4.1,
        "phases": {"queue": 0.3, "boot": 1.0, "download": 1.2, "unaccounted": 0.05},
    }
    return RunRecord(**{**values, **fields})


def benchmark_of(id="b1", started_at=100.0, **fields):
    values = {
        "machine_id": "m1",
        "machine": {"cpu": "a processor", "cores": 2},
        "versions": {"torch": "2.13.0"},
        "commit": "2cf4672-dirty",
        "settings": {"num_trajectories": 64, "page_cache": "dropped"},
    }
    return BenchmarkRecord(id=id, started_at=started_at, **{**values, **fields})


def with_runs(history, benchmark, runs):
    history.begin(benchmark)
    for run in runs:
        history.add_run(benchmark.id, run)
    return benchmark


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "deep" / "history.sqlite")


@pytest.fixture
def writer():
    """`writer(path, id, num)`: a real process that waits for a line, then adds runs."""
    started = []

    def start(path, id, num):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, path, id, str(num)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_what_was_added_comes_back_to_the_last_digit(history):
    full = run_of(
        1,
        ttfs_s=1 / 3,
        bounds={"download": "the network"},
        bounds_s={"download": 0.1 + 0.2},
        spans=(Span(phase="boot", name="boot", start=100.1, end=101.2, state="Failed"),),
        busy_cores=0.1 + 0.7,
        start_mode="cold",
        cache_reused=False,
    )
    benchmark = benchmark_of(flow_run_id="flow")
    with_runs(history, benchmark, [run_of(0), full])
    found = history.benchmark("b1")
    assert found == benchmark.model_copy(update={"runs": (run_of(0), full)})
    assert list(found.runs[0].phases) == ["queue", "boot", "download", "unaccounted"]


def test_another_process_with_the_same_file_finds_what_was_added(history):
    with_runs(history, benchmark_of(), [run_of()])
    assert History(history.path).benchmark("b1").runs == (run_of(),)


def test_verdicts_come_back_and_complete_the_benchmark(history):
    with_runs(history, benchmark_of(), [run_of()])
    verdicts = [
        Verdict(scenario="warm", kind="no verdict yet", num_before=0, num_now=1),
        Verdict(scenario="cold", kind="worse", phase="download", num_before=9, num_now=1),
    ]
    assert not history.is_complete("b1")
    history.finish("b1", verdicts)
    assert history.is_complete("b1")
    assert history.verdicts("b1") == tuple(verdicts)


def test_verdicts_are_kept_all_or_none(history):
    with_runs(history, benchmark_of(), [run_of()])
    twice = [Verdict(scenario="cold", kind="unchanged", num_before=9, num_now=1)] * 2
    with pytest.raises(HistoryError, match="UNIQUE"):
        history.finish("b1", twice)
    assert history.verdicts("b1") == ()
    assert not history.is_complete("b1")


def test_benchmarks_are_listed_newest_first(history):
    for id, started_at in ("b1", 1.0), ("b3", 3.0), ("b2", 2.0):
        with_runs(history, benchmark_of(id, started_at), [run_of()])
    assert [b.id for b in history.benchmarks()] == ["b3", "b2", "b1"]
    assert [b.id for b in history.benchmarks(limit=2)] == ["b3", "b2"]


def test_a_benchmark_is_found_by_the_beginning_of_its_id(history):
    for started_at, id in enumerate(["abc-1", "xyz%", "abc-12"]):
        history.begin(benchmark_of(id, float(started_at)))
    assert history.benchmark("x").id == "xyz%"
    assert history.benchmark("abc-1").id == "abc-1"
    with pytest.raises(
        HistoryError, match=r"2 benchmarks .* begin with 'ab' \(abc-12, abc-1\): give more"
    ):
        history.benchmark("ab")
    with pytest.raises(HistoryError, match="begins with '%'"):
        history.benchmark("%")


def test_an_unknown_benchmark_is_answered_with_the_latest_ones(history):
    with pytest.raises(HistoryError, match="'b1': it holds none yet"):
        history.benchmark("b1")
    for number in range(1, 8):
        history.begin(benchmark_of(f"b{number}", float(number)))
    with pytest.raises(HistoryError, match="'q': the latest are b7, b6, b5, b4, b3$"):
        history.benchmark("q")


@pytest.mark.parametrize(
    "other",
    [
        {"machine_id": "m2"},
        {"settings": {"num_trajectories": 65, "page_cache": "dropped"}},
        {"settings": {"num_trajectories": 64}},
        {"started_at": 201.0},
        {"started_at": 200.0},
    ],
)
def test_another_machine_other_settings_or_later_is_no_benchmark_before(history, other):
    with_runs(history, benchmark_of(**{"id": "other", "started_at": 100.0, **other}), [run_of()])
    assert history.benchmarks_before(benchmark_of("now", 200.0), "cold", 10) == ()


def test_benchmarks_before_come_newest_first_whatever_the_order_of_the_settings(history):
    reordered = {"page_cache": "dropped", "num_trajectories": 64}
    for night in 1, 2, 3:
        runs = [run_of(repeat, triggered_at=100.0 * night + repeat) for repeat in range(3)]
        runs.append(run_of(0, scenario="warm"))
        with_runs(history, benchmark_of(f"b{night}", 100.0 * night, settings=reordered), runs)
    with_runs(history, benchmark_of("other", 350.0), [run_of(0, scenario="warm")])
    now = with_runs(history, benchmark_of("now", 400.0), [run_of(triggered_at=400.0)])
    found = history.benchmarks_before(now, "cold", 2)
    assert [[run.triggered_at for run in runs] for runs in found] == [
        [300.0, 301.0, 302.0],
        [200.0, 201.0, 202.0],
    ]
    assert found[0][2] == run_of(2, triggered_at=302.0)


def test_the_runs_of_a_benchmark_that_was_cut_short_count(history):
    with_runs(history, benchmark_of("cut", 1.0), [run_of()])
    assert history.benchmarks_before(benchmark_of("now", 2.0), "cold", 10) == ((run_of(),),)


def test_the_trend_has_a_point_per_benchmark_and_marks_what_was_worse(history):
    for night, times in enumerate([(4.0, 4.2, 1 / 3), (7.0, 7.1, 7.2)]):
        runs = [run_of(n, ttfs_s=seconds) for n, seconds in enumerate(times)]
        runs.append(run_of(0, scenario="warm"))
        with_runs(history, benchmark_of(f"b{night}", float(night)), runs)
    history.finish("b1", [Verdict(scenario="cold", kind="worse", num_before=9, num_now=3)])
    with_runs(history, benchmark_of("other", 5.0, machine_id="m2"), [run_of()])
    first, second = history.trend("m1", benchmark_of().settings, "cold")
    assert (first.at, first.ttfs.median, first.ttfs.smallest, first.worse) == (0, 4.0, 1 / 3, False)
    assert (second.at, second.ttfs.median, second.ttfs.num, second.worse) == (1, 7.1, 3, True)
    assert history.trend("m1", {}, "cold") == ()


def test_a_run_of_a_benchmark_that_was_not_begun_is_refused(history):
    with pytest.raises(HistoryError, match=r"FOREIGN KEY.*begun once, before its runs"):
        history.add_run("b1", run_of())


def test_a_benchmark_and_a_repeat_are_added_once(history):
    with_runs(history, benchmark_of(), [run_of()])
    with pytest.raises(HistoryError, match=r"benchmarks\.id"):
        history.begin(benchmark_of())
    with pytest.raises(HistoryError, match=r"runs\.repeat"):
        history.add_run("b1", run_of(phases={"boot": 2.0}))
    assert history.benchmark("b1").runs == (run_of(),)


def test_verdicts_of_a_benchmark_that_was_not_begun_are_refused(history):
    with pytest.raises(HistoryError, match="has no benchmark b1: begin it first"):
        history.finish("b1", [])


def test_a_run_that_cannot_be_kept_whole_is_not_kept_at_all(history):
    history.begin(benchmark_of())
    nan = float("nan")  # SQLite has none, and a phase must have a time
    with pytest.raises(HistoryError, match=r"phases\.seconds"):
        history.add_run("b1", run_of(phases={"boot": 1.0, "download": nan}))
    assert history.benchmark("b1").runs == ()
    history.add_run("b1", run_of())
    assert history.benchmark("b1").runs == (run_of(),)


def test_a_thread_may_use_the_history_of_another(history):
    history.begin(benchmark_of())
    thread = threading.Thread(target=history.add_run, args=("b1", run_of()))
    thread.start()
    thread.join()
    assert history.benchmark("b1").runs == (run_of(),)


@pytest.mark.parametrize("after", [1, 4])
def test_a_killed_process_loses_no_run_that_it_was_done_with(tmp_path, writer, after):
    process = writer(tmp_path / "h.sqlite", "b", 100_000)
    process.stdin.write("go\n")
    process.stdin.flush()
    for _ in range(after):
        assert process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    done = after + len(process.stdout.readlines())
    assert process.wait() == -signal.SIGKILL

    history = History(tmp_path / "h.sqlite")
    found = history.benchmark("b").runs
    assert len(found) in (done, done + 1)  # the last may be in, and not yet announced
    assert [run.repeat for run in found] == list(range(len(found)))
    assert all(len(run.phases) == 40 for run in found)
    history.add_run("b", run_of(repeat=len(found)))


def test_a_power_loss_at_any_point_of_the_log_leaves_the_runs_before_it(history, tmp_path):
    reader = sqlite3.connect(history.path)  # keeps SQLite from moving the log into the file
    history.begin(benchmark_of())
    log = history.path.with_name("history.sqlite-wal")
    sizes = []
    reader.execute("SELECT * FROM runs").fetchall()
    for repeat in range(5):
        history.add_run("b1", run_of(repeat))
        sizes.append(log.stat().st_size)
    assert sizes == sorted(set(sizes)), "each run lengthens the log"

    def runs_after_a_cut_at(num_bytes):
        cut = tmp_path / f"cut-{num_bytes}" / "history.sqlite"
        cut.parent.mkdir()
        shutil.copy(history.path, cut)
        cut.with_name(log.name).write_bytes(log.read_bytes()[:num_bytes])
        return History(cut).benchmark("b1").runs

    everything = tuple(run_of(repeat) for repeat in range(5))
    for repeat in range(1, 5):
        start, end = sizes[repeat - 1], sizes[repeat]
        for num_bytes in (start, start + 1, (start + end) // 2, end - 1):
            assert runs_after_a_cut_at(num_bytes) == everything[:repeat]
    assert runs_after_a_cut_at(sizes[-1]) == everything
    reader.close()


def test_every_write_waits_for_the_disk(history):
    with history._transaction() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        assert connection.execute("PRAGMA foreign_keys").fetchone()[0] == 1
        assert connection.execute("PRAGMA busy_timeout").fetchone()[0] == 30_000


def test_two_processes_that_start_at_once_lose_nothing(tmp_path, writer):
    path = tmp_path / "new" / "history.sqlite"
    processes = {id: writer(path, id, 15) for id in ("one", "two")}
    for process in processes.values():
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes.values():
        process.communicate(timeout=30)
        assert process.returncode == 0
    history = History(path)
    for id in processes:
        runs = history.benchmark(id).runs
        assert [run.repeat for run in runs] == list(range(15))
        assert all(len(run.phases) == 40 for run in runs)


def test_threads_that_open_a_new_file_at_once_make_it_once(tmp_path):
    num = 6
    for attempt in range(2):
        path, start = tmp_path / f"{attempt}.sqlite", threading.Barrier(num)
        failures = []

        def open_it(path=path, start=start, failures=failures):
            start.wait()
            try:
                History(path)
            except HistoryError as error:
                failures.append(error)

        threads = [threading.Thread(target=open_it) for _ in range(num)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []


def test_an_older_file_is_migrated_and_keeps_what_it_holds(history, monkeypatch):
    with_runs(history, benchmark_of(), [run_of()])
    monkeypatch.setattr(
        schema,
        "MIGRATIONS",
        (
            *schema.MIGRATIONS,
            "ALTER TABLE runs ADD COLUMN note TEXT NOT NULL DEFAULT 'none; as yet'",
            "UPDATE runs SET note = 'seen';",
        ),
    )
    newer = History(history.path)
    assert newer.benchmark("b1").runs == (run_of(),)
    with newer._connection() as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(schema.MIGRATIONS)
        assert [row["note"] for row in connection.execute("SELECT note FROM runs")] == ["seen"]
    History(history.path)  # and is not migrated twice


def test_a_file_of_the_first_version_keeps_its_runs(tmp_path, monkeypatch):
    path = tmp_path / "history.sqlite"
    with monkeypatch.context() as patched:
        patched.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        old = History(path)
        old.begin(benchmark_of())
        with old._transaction() as connection:
            connection.execute(
                "INSERT INTO runs VALUES (1, 'b1', 'cold', 0, 'flow-0', 100.0, 4.1, 'warm', NULL, "
                "'{}', '{}', '[]')"
            )
    (run,) = History(path).benchmark("b1").runs
    assert (run.ttfs_s, run.busy_cores) == (4.1, None)


def test_a_table_can_be_rebuilt_without_losing_what_refers_to_it(history, monkeypatch):
    with_runs(history, benchmark_of(), [run_of()])
    rebuild = """
        CREATE TABLE anew AS SELECT * FROM runs;
        DROP TABLE runs;
        ALTER TABLE anew RENAME TO runs;
    """
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, rebuild))
    assert History(history.path).benchmark("b1").runs == (run_of(),)


def test_a_migration_that_fails_leaves_the_file_as_it_was(history, monkeypatch):
    with_runs(history, benchmark_of(), [run_of()])
    with monkeypatch.context() as patched:
        broken = "ALTER TABLE runs ADD COLUMN note TEXT; DELETE FROM runs; INSERT INTO nowhere"
        patched.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, broken))
        with pytest.raises(HistoryError, match="syntax error|incomplete|nowhere"):
            History(history.path)
    same = History(history.path)
    assert same.benchmark("b1").runs == (run_of(),)
    with same._connection() as connection:
        columns = [row["name"] for row in connection.execute("PRAGMA table_info(runs)")]
        assert connection.execute("PRAGMA user_version").fetchone()[0] == len(schema.MIGRATIONS)
    assert "note" not in columns


def test_a_file_of_newer_code_is_refused_and_left_alone(history, monkeypatch):
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, "SELECT 1"))
    History(history.path)
    monkeypatch.undo()
    before = history.path.read_bytes()
    with pytest.raises(HistoryError, match=r"version \d+, .* up to \d+: update the code, or name"):
        History(history.path)
    assert history.path.read_bytes() == before


def test_a_file_that_is_no_history_is_named_and_left_alone(tmp_path):
    path = tmp_path / "history.sqlite"
    path.write_text("these are not the bytes of a data base\n" * 200)
    with pytest.raises(HistoryError, match=r"history\.sqlite: file is not a database.*move it"):
        History(path)
    assert path.read_text().startswith("these are not")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(HistoryError, match="expected a folder that is writable"):
        History(tmp_path / "file" / "history.sqlite")


EXPORTED = {
    "benchmark": "b1",
    "started_at": 100.0,
    "commit": "2cf4672-dirty",
    "machine_id": "m1",
    "scenario": "cold",
    "repeat": 0,
    "flow_run_id": "flow, with a comma",
    "triggered_at": 100.0,
    "start_mode": "warm",
    "cache_reused": None,
    "ttfs_s": 1 / 3,
    "phase": "queue",
    "phase_s": 0.3,
}


@pytest.fixture
def exported(history):
    first = run_of(0, flow_run_id="flow, with a comma", ttfs_s=1 / 3)
    with_runs(history, benchmark_of(), [first, run_of(1, cache_reused=True)])
    return history


def test_csv_has_a_row_per_run_and_phase(exported, tmp_path):
    exported.export_csv(tmp_path / "out" / "h.csv")
    with (tmp_path / "out" / "h.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert rows[0] == {k: "" if v is None else str(v) for k, v in EXPORTED.items()}
    assert rows[4]["cache_reused"] == "True"
    assert [row["phase"] for row in rows[4:]] == ["queue", "boot", "download", "unaccounted"]


def test_parquet_has_the_same_rows_with_their_types(exported, tmp_path):
    from pyarrow import parquet

    exported.export_parquet(tmp_path / "h.parquet")
    rows = parquet.read_table(tmp_path / "h.parquet").to_pylist()
    assert len(rows) == 8
    assert rows[0] == EXPORTED
    assert rows[4]["cache_reused"] is True


def test_an_empty_history_exports_its_columns(history, tmp_path):
    from pyarrow import parquet

    history.export_csv(tmp_path / "h.csv")
    history.export_parquet(tmp_path / "h.parquet")
    assert (tmp_path / "h.csv").read_text() == ",".join(EXPORTED) + "\n"
    table = parquet.read_table(tmp_path / "h.parquet")
    assert (table.num_rows, table.column_names) == (0, list(EXPORTED))
    assert str(table.schema.field("ttfs_s").type) == "double"


def test_without_pyarrow_the_error_names_the_extra(exported, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(HistoryError, match=r"pyarrow is not installed.*extra `parquet`.*CSV"):
        exported.export_parquet(tmp_path / "h.parquet")
    assert not (tmp_path / "h.parquet").exists()
