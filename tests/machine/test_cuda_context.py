"""The CUDA context that is made before torch is there; its driver is a stand-in."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from ups.machine.cuda_context import make_context_beside, retain_primary_context

MADE = """
import sys
from ups.machine.cuda_context import make_context_beside

make_context_beside().join()
assert "torch" not in sys.modules
"""
IS_ACTIVE = """
import ctypes
flags, active = ctypes.c_uint(), ctypes.c_int()
driver = ctypes.CDLL("libcuda.so.1")
assert driver.cuDevicePrimaryCtxGetState(0, ctypes.byref(flags), ctypes.byref(active)) == 0
assert active.value == 1
import torch
assert not torch.cuda.is_initialized()
assert torch.ones(3, device="cuda").sum().item() == 3
"""
CALLS = ["cuInit", "cuDeviceGet", "cuDevicePrimaryCtxRetain"]


def test_the_driver_is_asked_for_the_primary_context_of_the_first_gpu_without_torch(
    cuda_driver, tmp_path
):
    if cuda_driver is None:
        pytest.skip("needs a C compiler, and no driver of CUDA")
    calls = tmp_path / "calls"
    env = {**os.environ, "LD_LIBRARY_PATH": str(cuda_driver), "CUDA_CALLS": str(calls)}
    done = subprocess.run([sys.executable, "-c", MADE], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert calls.read_text().split() == CALLS


@pytest.mark.parametrize("fails", CALLS)
def test_what_the_driver_refuses_is_said_and_left_to_torch(fails, caplog):
    caplog.set_level("INFO", "ups")
    called = []

    def answer(name):
        return lambda *_: called.append(name) or (100 if name == fails else 0)

    retain_primary_context(SimpleNamespace(**{name: answer(name) for name in CALLS}))
    assert called == CALLS[: CALLS.index(fails) + 1]
    (line,) = caplog.messages
    assert f"{fails}: error 100" in line


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a driver")
def test_without_a_driver_nothing_happens(caplog):
    caplog.set_level("INFO", "ups")
    make_context_beside().join()  # a thread that fails is an error of the test
    assert not caplog.messages


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_torch_takes_the_context_that_was_made():
    done = subprocess.run([sys.executable, "-c", MADE + IS_ACTIVE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
