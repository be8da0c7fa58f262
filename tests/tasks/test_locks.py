"""Prefect's lock manager, on locks that die with their holder."""

import subprocess
import sys

import pytest

from tasks.locks import FlockManager

HOLDER = """
import sys, time
from pathlib import Path
from tasks.locks import FlockManager
FlockManager(Path(sys.argv[1])).acquire_lock("key", "another")
print("held", flush=True)
time.sleep(60)
"""


def test_one_holder_at_a_time_has_a_key_and_only_it_lets_go(tmp_path):
    ours, theirs = FlockManager(tmp_path), FlockManager(tmp_path)
    assert ours.acquire_lock("key", "us")
    assert ours.acquire_lock("key", "us"), "its holder has it already"
    assert theirs.is_locked("key")
    assert not theirs.acquire_lock("key", "them", acquire_timeout=0.1)
    assert not theirs.wait_for_lock("key", timeout=0.1)
    assert theirs.acquire_lock("another key", "them")
    with pytest.raises(ValueError, match="them holds no lock for key"):
        ours.release_lock("key", "them")
    ours.release_lock("key", "us")
    assert theirs.acquire_lock("key", "them", acquire_timeout=0.1)


def test_a_lock_is_free_once_its_holder_was_killed(tmp_path):
    command = [sys.executable, "-c", HOLDER, tmp_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        manager = FlockManager(tmp_path)
        assert not manager.acquire_lock("key", "us", acquire_timeout=0.1)
        holder.kill()
        assert manager.acquire_lock("key", "us", acquire_timeout=10)
