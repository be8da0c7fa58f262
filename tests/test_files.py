import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ups import files
from ups.errors import Interrupted
from ups.files import (
    LEFTOVER_AGE_S,
    exclusive_lock,
    is_locked,
    link_or_copy,
    lock_holder,
    lock_now,
    read_json,
    start_writeback,
    write_atomically,
    write_json,
)

WITHOUT_LOCKS = """
#include <errno.h>
#include <stdlib.h>
int flock(int fd, int how) { (void)fd; (void)how; errno = atoi(getenv("NO_FLOCK")); return -1; }
"""
LOCK_TWICE = """
import sys
from pathlib import Path
from ups.files import exclusive_lock, is_locked
folder = Path(sys.argv[1])
for _ in range(2):
    with exclusive_lock(folder / "lock"):
        print(is_locked(folder / "lock"))
"""

LOCK_AND_WAIT = """
import sys
from pathlib import Path
from ups.files import exclusive_lock
with exclusive_lock(Path(sys.argv[1]) / "lock"):
    print("held", flush=True)
    input()
"""


def python(*arguments, before=(), **env):
    command = [*before, sys.executable, "-c", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="session")
def without_locks(tmp_path_factory):
    """A library to preload, with which no file can be locked."""
    if not shutil.which("gcc"):
        pytest.skip("needs gcc, to make a file system without locks")
    folder = tmp_path_factory.mktemp("noflock")
    (folder / "noflock.c").write_text(WITHOUT_LOCKS)
    library = folder / "noflock.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, folder / "noflock.c"], check=True)
    return str(library)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF])
def test_a_file_system_without_locks_is_used_without_and_said_once(without_locks, tmp_path, number):
    env = {"LD_PRELOAD": without_locks, "NO_FLOCK": str(number)}
    output, errors = python(LOCK_TWICE, tmp_path, **env)
    assert output.split() == ["False", "False"]
    assert errors.count("going on without locks") == 1
    assert f"{tmp_path}/lock cannot be locked" in errors


def test_data_that_are_only_read_need_no_lock(without_locks, tiny_data):
    script = "import sys; from ups.data.pdebench import TrajectoryFile\n"
    script += "print(TrajectoryFile(sys.argv[1]).num_trajectories)"
    env = {"LD_PRELOAD": without_locks, "NO_FLOCK": str(errno.ENOLCK)}
    output, _ = python(script, tiny_data / "burgers1d_test.h5", **env)
    assert int(output) > 0


def test_a_lock_is_had_on_a_disk_that_can_only_be_read(tmp_path):
    (tmp_path / "lock").touch()
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && ! touch "$0/x" && exec "$@"'
    before = ["unshare", "-rm", "sh", "-c", mount, tmp_path]
    if subprocess.run([*before, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount, to make a disk read-only")
    output, _ = python(LOCK_TWICE, tmp_path, before=before)
    assert output.split() == ["True", "True"]


def test_a_record_that_is_written_in_place_holds_nothing_of_the_longer_one_before(tmp_path):
    write_json(tmp_path / "record", {"state": "x" * 100})
    write_json(tmp_path / "record", {"state": "failed"}, in_place=True)
    assert read_json(tmp_path / "record") == {"state": "failed"}


def test_a_lock_that_cannot_be_made_is_an_error_and_not_waited_for(tmp_path, read_only):
    with pytest.raises(OSError, match="Read-only"):
        lock_now(read_only(tmp_path) / "lock")


def test_a_lock_is_had_on_a_file_that_may_only_be_read(open_to_all, as_nobody):
    (open_to_all / "lock").touch(0o444)
    with as_nobody(), exclusive_lock(open_to_all / "lock"):
        assert is_locked(open_to_all / "lock")


def test_who_waits_for_a_lock_is_told_whose_it_is_and_again_ever_more_rarely(
    tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", "ups.files")
    monkeypatch.setattr(files, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(files, "LOCK_POLL_S", 0.005)
    path = tmp_path / "lock"
    own, stop = lock_now(path), threading.Event()
    threading.Timer(0.5, stop.set).start()
    with pytest.raises(Interrupted, match="stopped while waiting"), exclusive_lock(path, stop):
        pass
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == f"waiting for this process, which holds {path}"
    assert all(line.endswith("s so far") for line in lines[1:])
    assert len(lines) == 3  # at 0, 0.05 and 0.25 s; the next at 1.05
    os.close(own)
    holder = [sys.executable, "-c", LOCK_AND_WAIT, tmp_path]
    with subprocess.Popen(holder, stdin=-1, stdout=-1, text=True) as process:
        process.stdout.readline()
        assert lock_holder(path) == f"process {process.pid}"
        process.communicate("\n")
    assert lock_holder(path) == "another process"  # nobody's, or not to be seen from here


def test_there_is_no_lock_in_a_folder_that_was_just_removed(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path / "folder")
    (tmp_path / "folder").rmdir()
    assert lock_now(Path("lock")) is None


def test_the_kernel_takes_the_wish_to_write_what_is_dirty(tmp_path):
    with (tmp_path / "latents").open("wb", buffering=0) as file:
        file.write(bytes(1 << 20))
        assert start_writeback(file.fileno(), 0, 1 << 20)
        assert start_writeback(file.fileno(), 4 << 40, 1 << 20)  # beyond 4 GB, where nothing is


def test_what_cannot_be_written_back_is_no_error():
    read_end, write_end = os.pipe()
    try:
        assert not start_writeback(write_end, 0, 1)
    finally:
        os.close(read_end)
        os.close(write_end)


def test_what_killed_writers_left_aside_goes_with_the_next_write_of_the_same_file(tmp_path):
    old, young, others = (
        tmp_path / name for name in (".[1].json.1234-5", ".[1].json.99-5", ".[1].json.bak.12-3")
    )
    for path in (old, young, others):
        path.touch()
    for path in (old, others):
        os.utime(path, (time.time() - 2 * LEFTOVER_AGE_S,) * 2)
    write_atomically(tmp_path / "[1].json", b"{}")
    assert set(tmp_path.iterdir()) == {tmp_path / "[1].json", young, others}


def test_who_waits_for_a_removed_entry_locks_the_file_that_others_see(tmp_path):
    path = tmp_path / "entry" / ".lock"
    fd = lock_now(path)
    taken = threading.Event()
    done = threading.Event()

    def wait():
        with exclusive_lock(path):
            taken.set()
            done.wait(5)

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.1)
    assert not taken.is_set()
    path.parent.rename(tmp_path / "removed")  # in one go: the waiter makes the folder anew
    os.close(fd)
    assert taken.wait(5)
    assert lock_now(path) is None
    done.set()
    waiter.join()
    os.close(lock_now(path))


@pytest.mark.parametrize("made_anew", [False, True])
def test_a_lock_on_a_file_deleted_since_it_was_opened_is_not_taken(
    tmp_path, monkeypatch, made_anew
):
    path, real = tmp_path / ".lock", files.try_lock

    def deleted_meanwhile(fd):
        path.unlink()
        if made_anew:
            path.touch()
        return real(fd)

    with monkeypatch.context() as patch:
        patch.setattr(files, "try_lock", deleted_meanwhile)
        assert lock_now(path) is None
    os.close(lock_now(path))


def test_a_file_has_another_name_too_or_is_copied_where_there_are_no_links(tmp_path, monkeypatch):
    path, other = tmp_path / "best.pt", tmp_path / "last.pt"
    other.write_bytes(b"old")
    path.write_bytes(b"new")
    link_or_copy(path, other)
    assert path.samefile(other)

    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    path.unlink()
    path.write_bytes(b"newer")
    link_or_copy(path, other)
    assert not path.samefile(other)
    assert other.read_bytes() == b"newer"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["best.pt", "last.pt"]
