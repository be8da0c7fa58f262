import os

from ups.files import start_writeback


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
