"""What else the machine is doing, in cores."""

from collections import namedtuple

import psutil
import pytest

from ups.machine import host

Times = namedtuple("Times", "user nice system idle iowait irq softirq steal guest guest_nice")


@pytest.fixture
def spent(monkeypatch):
    """`spent(user=…, idle=…)`: seconds that the cores spend so during the next look."""

    def make(num_cores=2, **seconds):
        nothing = Times(*[100.0] * 10)
        after = nothing._replace(**{name: 100.0 + s for name, s in seconds.items()})
        moments = iter((nothing, after))
        monkeypatch.setattr(psutil, "cpu_times", lambda: next(moments))
        monkeypatch.setattr(psutil, "cpu_count", lambda: num_cores)
        return host.busy_cores(0.0)

    return make


def test_an_idle_machine_keeps_no_core_busy(spent):
    assert spent(idle=1.0) == 0.0
    assert spent(idle=0.5, iowait=0.5) == 0.0
    assert spent() == 0.0  # no tick of the clock went by


def test_work_and_what_the_host_takes_keep_cores_busy(spent):
    assert spent(user=0.5, idle=0.5) == 1.0
    assert spent(user=0.25, system=0.25, steal=0.25, idle=0.25) == 1.5
    assert spent(user=0.5, guest=0.5, idle=0.5) == 1.0  # `user` has `guest` in it
