"""What a thread gives to a GPU beside training; only a real one can show it."""

import threading

import pytest
import torch

from ups.background import Background
from ups.machine.devices import own_stream


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_copy_on_a_stream_of_its_own_waits_for_no_step_that_is_queued():
    large, rows = torch.randn(8192, 8192, device="cuda"), torch.ones(1 << 20)
    arrived, steps_done = torch.zeros(1 << 20, device="cuda"), torch.cuda.Event()
    is_open, is_queued = threading.Event(), threading.Event()

    def copy():
        with own_stream("cuda"):
            torch.cuda.current_stream().synchronize()
            is_open.set()
            assert is_queued.wait(10)
            arrived.copy_(rows)
            torch.cuda.current_stream().synchronize()
            return steps_done.query()

    copying = Background(copy, "copy")
    assert is_open.wait(10)
    for _ in range(500):
        torch.mm(large, large)
    steps_done.record()
    is_queued.set()
    assert not copying.result(), "the steps were done before"
    assert arrived.sum().item() == len(rows)
