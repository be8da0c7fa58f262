"""What a killed download finds of what has arrived, was let go, and had to come again."""

from __future__ import annotations

import os
from contextlib import closing

import pytest

from ups.data.answers import Version
from ups.data.fetch_journal import AGAIN, GONE, FetchJournal, line
from ups.data.objectstore import ObjectInfo

INFO = ObjectInfo("b", "x", 1000, Version('"e"', ""), "0" * 64, None)


@pytest.mark.parametrize(
    ("lines", "there", "gone"),
    [
        ([(0, 300), (0, 500)], [(0, 500)], {}),
        ([(0, 300), (100, 100, GONE), (0, 500)], [(0, 100), (200, 500)], {100: 100}),
        ([(0, 100), (100, 90), (100, 90, GONE), (100, 90, AGAIN)], [(0, 100)], {}),
        ([(0, 100), (100, 90), (100, 90, GONE), (100, 90, AGAIN), (100, 40)], [(0, 140)], {}),
    ],
)
def test_bytes_that_were_let_go_are_not_there_and_those_that_come_again_once_they_have(
    tmp_path, lines, there, gone
):
    partial = tmp_path / "x.part"
    partial.write_bytes(bytes(1000))
    writing = FetchJournal(tmp_path / "x.journal", INFO)
    writing.write([])
    fd = writing.open()
    with closing(os.fdopen(fd, "wb", buffering=0)) as file:
        for each in lines:
            file.write(line(*each))
    reading = FetchJournal(tmp_path / "x.journal", INFO)
    assert (reading.read(partial), reading.gone) == (there, gone)
    assert reading.token == writing.token


def test_after_a_power_cut_nothing_counts_as_arrived_of_what_was_let_go_in_part(
    tmp_path, monkeypatch
):
    partial = tmp_path / "x.part"
    partial.write_bytes(bytes(1000))
    writing = FetchJournal(tmp_path / "x.journal", INFO)
    for lets_go in (False, True):  # the line of a hole may be lost, and the hole be there
        writing.lets_go = lets_go
        writing.write([(0, 300)])
        there = FetchJournal(tmp_path / "x.journal", INFO).read(partial)
        assert there == [(0, 300)]
        with monkeypatch.context() as patched:
            patched.setattr("ups.data.fetch_journal.boot_id", lambda: "another")
            there = FetchJournal(tmp_path / "x.journal", INFO).read(partial)
        assert there == ([] if lets_go else [(0, 300)])
