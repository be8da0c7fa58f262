"""The tiniest run of each section that needs no environment of the peers."""

import contextlib
import json

import h5py
import numpy as np
import psutil
import pytest

from speed import __main__ as command
from speed import busy, growth, inputs, link, startup, stream_inputs
from speed.settings import Settings
from speed.worker import Worker, WorkerError

SIZE = 0.008
TINY = ["--frames", "41", "--points", "256", "--solved", "4", "--repeats", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture
def bench(folder, tmp_path):
    """`bench(suite, sections)`: run it; its JSON, phases without a failure first."""

    def run(suite, sections, size=SIZE):
        tiny = ["--size", str(size), *TINY]
        places = ["--folder", str(folder), "--out", str(tmp_path), "--peers", "none/of/them"]
        code = command.main([suite, "--device", "cpu", "--sections", sections, *tiny, *places])
        (path,) = tmp_path.glob("*.json")
        record = json.loads(path.read_text())
        assert code == 0, [r for c in record["comparisons"] for r in c["results"]]
        return record

    return run


def names_with_values(record):
    return {r["name"] for c in record["comparisons"] for r in c["results"] if r["values"]}


def test_tiles_are_shifted_copies_of_solved_trajectories(folder):
    settings = Settings(folder, size=SIZE, num_solved=4, num_frames=41, grid_points=256)
    with h5py.File(inputs.tiled_set(settings)) as file:
        u = file["tensor"][()]
    assert len(u) == 33 + inputs.NUM_VAL
    first, fifth = u[0], u[4]
    assert not np.array_equal(first, fifth)
    shifts = [np.array_equal(np.roll(first, s, -1), fifth) for s in range(256)]
    assert sum(shifts) == 1


def test_cache_load_and_batches_on_a_cpu(bench):
    record = bench("cpu", "cache,load,batches")
    assert {"legacy mode", "write + fsync", "preadv", ".pt from disk"} <= names_with_values(record)
    assert record["kind"].endswith("-trial"), "a small run must not pass for a full one"
    assert "commit" in record["machine"]
    assert record["measured"]["cache"]["commit"]


def test_a_step_is_timed_beside_busy_processes_which_end(bench, monkeypatch):
    monkeypatch.setattr(busy, "STEPS", 2)
    monkeypatch.setattr(busy, "WAYS", {"no spin": busy.WAYS["no spin"]})
    (row,) = bench("cpu", "busy")["comparisons"]
    (found,) = row["results"]
    times = found["median"] / found["extras"]["idle ms"][0]
    assert found["extras"]["times"] == [pytest.approx(times)]
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if "while True" in " ".join(child.cmdline())]


def test_growth_draws_its_picture(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "SIZES", growth.SIZES[:2])
    record = bench("cpu", "growth", SIZE / 4)
    assert {c["unit"] for c in record["comparisons"]} == {"ms"}
    (picture,) = tmp_path.glob("growth-*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")


@contextlib.contextmanager
def forbidden():
    yield None, "not permitted"


def test_stream_times_what_it_can_and_says_what_it_cannot(bench, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(link, "namespace", forbidden)
    monkeypatch.setattr(stream_inputs, "NUMS", (2000,))
    record = bench("cpu", "stream", SIZE / 2)
    *measured, shaped = record["comparisons"]
    for row in measured:
        of = {r["name"]: r for r in row["results"]}
        assert of["streaming"]["median"] > 0
        assert of["sequential"]["median"] > 0
        assert of["boto3 + h5py"]["median"] > 0
        for peer in ("LitData", "Mosaic Streaming"):
            assert "run `make speed`" in of[peer]["failed"]
    phases = [row["phase"].split(",")[0] for row in measured]
    assert phases == ["first step", "idle to the end of epoch 1"]
    first_step, idle = ({r["name"]: r for r in row["results"]} for row in measured)
    sequential = idle["sequential"]
    assert sequential["extras"]["waited s"] == [0], "all was there"
    assert 0 < sequential["median"] < first_step["sequential"]["median"]
    assert "not permitted" in shaped["results"][0]["failed"]
    (picture,) = tmp_path.glob("stream-*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert not list((folder / "stream").iterdir()), "gigabytes must not stay"


def test_the_gpu_script_runs_small_on_a_cpu(bench):
    record = bench("gpu", "gpu_encode,gpu_load,gpu_train", SIZE / 4)
    assert {"eager", "legacy", "disk read", "PCIe", "float32"} <= names_with_values(record)


def test_the_startup_on_a_gpu_runs_small_on_a_cpu_through_a_stack_of_its_own(
    bench, folder, monkeypatch
):
    monkeypatch.setattr(startup, "COMPILER", "off")  # inductor takes 40 s for the same lines
    whole, first_step, with_epochs = bench("gpu", "gpu_startup", SIZE / 4)["comparisons"]
    (ours,) = whole["results"]
    assert ours["median"] >= sum(ours["extras"][name][0] for name in ("queue s", "boot s")) > 0
    assert ours["extras"]["download s"][0] > 0, "it has to be fetched from the store"
    for row in (first_step, with_epochs):
        found = {result["name"]: result["median"] for result in row["results"]}
        assert found.keys() == {"off", "inductor, empty cache", "inductor, kept cache"}
        assert min(found.values()) > 0
    assert not list((folder / startup.FOLDER).iterdir()), "gigabytes must not stay"


def test_an_unknown_section_is_refused(capsys):
    assert command.main(["cpu", "--sections", "nonsense"]) == 2
    assert "nonsense" in capsys.readouterr().out


def test_a_worker_answers_and_passes_on_what_goes_wrong():
    with Worker("math") as worker:
        assert worker.import_s >= 0
        with pytest.raises(WorkerError, match="AttributeError: .* 'nonsense'"):
            worker.call("nonsense")
    with pytest.raises(WorkerError, match="ModuleNotFoundError"):
        Worker("no_such_module")
