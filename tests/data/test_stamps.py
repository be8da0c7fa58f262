"""Stamps: what was verified about a file, until the file is another."""

import hashlib
import os
import random

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


def test_a_damaged_stamp_is_none(tmp_path):
    path, stamp = tmp_path / "x.h5", tmp_path / ".x.h5.stamp"
    path.write_bytes(b"content")
    sha256 = hashlib.sha256(b"content").hexdigest()
    write_stamp(path, path.stat(), sha256, etag='"1"')
    text = stamp.read_bytes()
    assert read_stamp(path).sha256 == sha256
    rng = random.Random(0)
    for _ in range(300):
        at, bit = rng.randrange(len(text)), 1 << rng.randrange(8)
        stamp.write_bytes(text[:at] + bytes([text[at] ^ bit]) + text[at + 1 :])
        assert read_stamp(path) is None
    stamp.write_bytes(text[: len(text) // 2])
    assert read_stamp(path) is None
