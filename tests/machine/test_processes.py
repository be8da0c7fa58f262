import signal
import subprocess
import sys
import time

from ups.machine.processes import DeferredSignals, process_started_at


def test_a_process_knows_when_it_was_started_and_the_start_does_not_move():
    script = (
        "from ups.machine.processes import DeferredSignals, process_started_at as f; print(f())"
    )
    before = time.time()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert before - 0.02 <= float(done.stdout) <= before + 0.5, done.stderr
    first = process_started_at()
    time.sleep(0.05)
    assert abs(process_started_at() - first) < 0.005


def test_a_signal_that_was_ignored_before_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with DeferredSignals() as signals:
            signal.raise_signal(signal.SIGINT)
            assert signals.pending is None
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
