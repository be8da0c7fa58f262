"""The sampler with NVML where it is absent, and with a stand-in for the GPU that is not here."""

import ctypes.util
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.live import wait_until
from ups.machine.gpu import FIRST_EPOCH, GpuSample, GpuUse, GpuWatch, by_phase, in_words, summary

HAS_NVML = ctypes.util.find_library("nvidia-ml") is not None


def sample(at, busy=50.0, memory_mb=1000.0, power_w=100.0):
    return GpuSample(at, busy, memory_mb, power_w)


def watched(nvml, num=3, **options):
    """A watch that took some samples, or gave up."""
    with GpuWatch(10, nvml=nvml, **options) as watch:
        wait_until(lambda: len(watch.samples) >= num or watch.note)
    return watch


@pytest.mark.skipif(HAS_NVML, reason="NVML is here")
def test_a_machine_without_the_library_is_told_in_a_note():
    with GpuWatch() as watch:
        time.sleep(0.05)
    assert watch.samples == []
    assert watch.note == "no GPU here (NVML library not found)"


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_NVML, reason="needs a GPU")
def test_a_real_gpu_is_sampled():
    watch = watched(None, num=5)
    assert watch.note == ""
    assert all(0 <= s.utilisation_pct <= 100 and s.memory_mb > 0 for s in watch.samples)
    assert watch.cpu_s < 0.005 * 5 / 10


def test_samples_carry_time_percent_megabytes_and_watts(make_nvml):
    before = time.time()
    watch = watched(make_nvml(busy=(0, 80)))
    first, second = watch.samples[:2]
    assert before < first.at < second.at < time.time()
    assert (first.utilisation_pct, second.utilisation_pct) == (0, 80)
    assert (first.memory_mb, first.power_w) == (3000, 250)
    assert watch.note == ""


def test_the_rate_is_kept_and_costs_under_half_a_percent_of_a_core(make_nvml):
    started = time.monotonic()
    with GpuWatch(10, nvml=make_nvml()) as watch:
        time.sleep(1.05)
    seconds = time.monotonic() - started
    assert 5 <= len(watch.samples) <= 10 * seconds
    assert 0 < watch.cpu_s < 0.005 * seconds


def test_a_driver_that_is_slow_to_answer_holds_up_nobody(make_nvml, monkeypatch):
    monkeypatch.setattr("ups.machine.gpu.JOIN_S", 0.05)
    nvml = make_nvml()
    nvml.answers.clear()
    with GpuWatch(nvml=nvml) as watch:
        pass
    assert "NVML did not answer" in watch.note
    nvml.answers.set()
    for thread in threading.enumerate():
        if thread.name == "gpu-watch":
            thread.join(5)


def test_a_gpu_that_is_lost_leaves_its_samples_and_the_reason(make_nvml):
    nvml = make_nvml()
    nvml.fails_after = 2
    watch = watched(nvml)
    assert len(watch.samples) == 2
    assert watch.note == "GPU not sampled after 2 samples (NVML: GPU is lost)"


def test_a_gpu_that_does_not_say_its_power_is_sampled_without(make_nvml):
    watch = watched(make_nvml(power_mw=None))
    assert [s.power_w for s in watch.samples] == [None] * len(watch.samples)
    use = summary(watch.samples, 0, time.time())
    assert use.mean_power_w is None
    assert not str(use).endswith("W")


@pytest.mark.parametrize(
    ("visible", "index"), [(None, 0), ("1", 1), ("1,0", 1), ("GPU-bb", 1), ("GPU-aa01", 0)]
)
def test_the_gpu_is_the_first_that_cuda_may_use(make_nvml, monkeypatch, visible, index):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvml = make_nvml()
    watched(nvml, num=1)
    assert set(nvml.asked) == {index}


@pytest.mark.parametrize(
    ("visible", "num", "indices"),
    [
        (None, 2, [0, 1]),
        (None, 4, [0, 1, 2]),
        ("2, 0", 2, [2, 0]),
        ("2,0,1", 2, [2, 0]),
        ("1,7,0", 3, [1]),
        ("GPU-cc,GPU-aa", 2, [2, 0]),
    ],
)
def test_each_rank_has_its_gpu_sampled(make_nvml, monkeypatch, visible, num, indices):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvml = make_nvml(uuids=("GPU-aa01", "GPU-bb02", "GPU-cc03"))
    watch = GpuWatch(10, nvml=nvml)
    watch.num_gpus = num
    with watch:
        wait_until(lambda: watch.samples)
    assert nvml.asked[: len(indices)] == indices
    at_once = [s.gpu for s in watch.samples if s.at == watch.samples[0].at]
    assert at_once == list(range(len(indices)))


@pytest.mark.parametrize("hidden", ["", "-1", "7", "GPU-cc"])
def test_a_gpu_that_cuda_may_not_use_is_not_sampled(make_nvml, monkeypatch, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    watch = watched(make_nvml())
    assert watch.samples == []
    assert watch.note == f"no GPU here (NVML lists 2, CUDA_VISIBLE_DEVICES is {hidden!r})"


def test_a_uuid_goes_before_what_cuda_may_use(make_nvml, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    nvml = make_nvml()
    watched(nvml, num=1, uuid="GPU-bb02")
    assert set(nvml.asked) == {1}
    assert "the GPU asked for is 'GPU-x'" in watched(nvml, uuid="GPU-x").note


def test_a_driver_without_gpus_and_what_is_over_before_the_first_sample_say_so(make_nvml):
    assert watched(make_nvml(uuids=())).note == "no GPU here (NVML lists 0)"
    with GpuWatch(nvml=make_nvml()) as watch:
        pass
    assert watch.note == "GPU not sampled (it was over before the first sample)"


@pytest.mark.parametrize("hz", [0.5, 20])
def test_a_rate_that_nvml_cannot_tell_apart_is_refused(hz):
    with pytest.raises(ValueError, match="expected 1 to 10"):
        GpuWatch(hz)


def test_a_stretch_is_summed_up_as_computed_by_hand():
    busy = [0, 0, 10, 20, 30, 40, 50, 60, 70, 80, 90]
    samples = [sample(at, b, 1000 + at, 100 + at) for at, b in enumerate(busy)]
    use = summary(samples, 1, 10)
    assert use.num_samples == 10
    assert use.mean_pct == 45
    assert use.p10_pct == 0
    assert use.idle_share == 0.1
    assert use.max_memory_mb == 1010
    assert use.mean_power_w == 105.5
    assert summary(samples, 2, 10).p10_pct == 10
    assert summary(samples, 10.5, 20) is None
    assert summary([], 0, 1) is None


def test_several_gpus_are_summed_up_as_their_mean_and_the_most_idle_one():
    samples = [
        sample(0, 100, 2000, 300),
        GpuSample(0, 0, 1000, 100, gpu=1),
        sample(1, 80, 1500, 300),
        GpuSample(1, 60, 3000, None, gpu=1),
    ]
    use = summary(samples, 0, 1)
    assert (use.num_gpus, use.num_samples) == (2, 2)
    assert use.mean_pct == 60
    assert (use.p10_pct, use.idle_share) == (0, 0.5)
    assert (use.max_memory_mb, use.mean_power_w) == (3000, 200)
    assert str(use) == (
        "2 GPUs 60 % busy (the most idle: p10 0 %, idle 50% of the time), 3,000 MB at most, "
        "200 W each"
    )


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_at_most_a_tenth_of_the_samples_is_below_p10(busy):
    use = summary([sample(at, b) for at, b in enumerate(busy)], 0, len(busy))
    assert sum(b < use.p10_pct for b in busy) <= len(busy) / 10
    assert sum(b <= use.p10_pct for b in busy) >= len(busy) / 10


def test_a_phase_reaches_from_its_first_start_to_its_last_end():
    samples = [sample(at, 10.0 * at) for at in range(10)]
    stretches = [("download", 1, 2), ("queue", -5, -1), ("download", 1.5, 4), ("train", 5, 9)]
    found = by_phase(samples, stretches)
    assert found.keys() == {"download", "train"}
    assert found["download"].mean_pct == 25
    assert found["train"].mean_pct == 70


def test_the_line_says_the_first_epoch_or_why_there_is_none():
    use = GpuUse(
        num_samples=9, mean_pct=97.2, p10_pct=95, idle_share=0.02, max_memory_mb=2345.6,
        mean_power_w=311.4,
    )  # fmt: skip
    line = in_words({FIRST_EPOCH: use}, "")
    assert line == (
        "first epoch 97 % busy (p10 95 %, idle 2% of the time), 2,346 MB at most, 311 W"
    )
    assert in_words(None, "no GPU here (why)") == "no GPU here (why)"
    assert "no sample fell into the first epoch; sampled in load" in in_words({"load": use}, "")
    assert in_words(None, "") == ""
