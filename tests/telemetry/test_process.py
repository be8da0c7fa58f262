import subprocess
import sys
import time

from ups.telemetry.process import process_started_at


def test_a_process_knows_when_it_was_started():
    before = time.time()
    script = "from ups.telemetry.process import process_started_at as f; print(f())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert before - 0.02 <= float(done.stdout) <= before + 0.5


def test_the_start_does_not_move():
    first = process_started_at()
    time.sleep(0.05)
    assert abs(process_started_at() - first) < 0.005
