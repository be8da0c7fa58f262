"""A benchmark's record says what its times depend on, and beforehand how long it will take."""

from ups.startup.benchmark import estimate, new_record


def test_the_settings_tell_benchmarks_apart_that_cannot_be_compared(tmp_path):
    few, many = (new_record("benchmark", num, "kept", tmp_path, None) for num in (64, 128))
    assert few.machine_id == many.machine_id
    assert few.settings != many.settings
    assert few.id != many.id
    assert {"torch", "prefect", "Python"} <= few.versions.keys()
    assert few.machine["cores"] >= 1


def test_an_estimate_needs_an_earlier_benchmark(benchmark):
    first = estimate(["cold", "warm"], 3, ())
    assert first == ("6 runs: cold, warm, 3 each; no earlier benchmark to tell how long that takes")
    known = estimate(["cold"], 60, [benchmark({"cold": (2.25, 2.25)})])  # TTFS 5 s, 5 s beside it
    assert known == "60 runs: cold, 60 each; about 10 min, by earlier benchmarks"
