"""Stamps: what was verified about a file, until the file is another."""

import hashlib
import os

from ups.data.stamps import read_stamp, write_stamp


def test_a_file_put_in_the_place_of_another_with_its_size_and_time_has_no_stamp(tmp_path):
    path, other = tmp_path / "x.h5", tmp_path / "other"
    path.write_bytes(b"one")
    write_stamp(path, path.stat(), hashlib.sha256(b"one").hexdigest(), "etag")
    assert read_stamp(path) is not None
    other.write_bytes(b"two")
    stat = path.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)
    assert read_stamp(path) is None
