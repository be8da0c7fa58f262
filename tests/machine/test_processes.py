import subprocess
import sys
import time

from ups.machine.processes import process_started_at


def test_a_process_knows_when_it_was_started_and_the_start_does_not_move():
    script = "from ups.machine.processes import process_started_at as f; print(f())"
    before = time.time()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert before - 0.02 <= float(done.stdout) <= before + 0.5, done.stderr
    first = process_started_at()
    time.sleep(0.05)
    assert abs(process_started_at() - first) < 0.005
