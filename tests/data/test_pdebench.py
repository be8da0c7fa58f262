import logging
import os
import struct
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from ups.data.generate import generate
from ups.data.header import find_offset
from ups.data.pdebench import TrajectoryFile, find_files
from ups.errors import DataError, ShapeError

N, T, X = 6, 5, 32


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "burgers1d_train.h5"
    generate(path, N, "burgers1d", 0.05, seed=0, grid_points=X, num_frames=T, t_end=0.4)
    with h5py.File(path) as file:
        return path, file["tensor"][()]


def write(path, array, key="tensor", attrs=None, t=None, **options):
    with h5py.File(path, "w") as file:
        file.attrs.update({"Nu": 0.05} if attrs is None else attrs)
        if t is not None:
            file["t-coordinate"] = t
        file.create_dataset(key, data=array, **options)
    return path


@pytest.fixture
def array():
    return np.random.default_rng(0).normal(size=(N, T, X)).astype(np.float32)


def test_the_generators_file_is_read_as_written_without_h5py(generated):
    path, expected = generated
    with TrajectoryFile(path, grid_points=X) as file:
        assert file._fd is not None  # without h5py
        assert (file.num_trajectories, file.num_frames, file.grid_points) == (N, T, X)
        assert (file.parameter, file.dt, file.num_bytes) == (0.05, 0.1, expected.nbytes)
        u = file.read(0, N)
        assert u.dtype == np.float32
        np.testing.assert_array_equal(u, expected)
        np.testing.assert_array_equal(file.read(2, 3), expected[2:3])


@pytest.mark.parametrize("key", ["tensor", "data"])
@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"chunks": True}, {"compression": "gzip"}, {"dtype": ">f4"}, {"dtype": "<f8"}]
)
def test_every_layout_reads_the_same(tmp_path, array, key, channel, options):
    shaped = array[..., None] if channel else array
    path = write(tmp_path / "a.h5", shaped, key, t=np.arange(T) * 0.01, **options)
    with TrajectoryFile(path, rows=(1, 5)) as file:
        assert (file._fd is None) == bool(options)  # with h5py
        np.testing.assert_array_equal(file.read(1, 4), array[2:5])
        np.testing.assert_array_equal(file.read_frames(1, 2), array[2, ::2])


def test_rows_restrict_what_is_there_or_are_refused_and_out_is_filled_in_place(generated):
    path, expected = generated
    for rows in ((0, N + 1), (3, 3), (-1, 2)):
        with pytest.raises(DataError, match=r"rows \[.*\) asked for, the file has 6 trajectories"):
            TrajectoryFile(path, rows=rows)
    with TrajectoryFile(path, rows=(2, 5)) as file:
        assert file.num_trajectories == 3
        out = np.zeros((2, T, X), np.float32)
        assert file.read(1, 3, out) is out
        np.testing.assert_array_equal(out, expected[3:5])
        with pytest.raises(DataError, match=r"trajectories \[2, 4\) asked for, there are 3"):
            file.read(2, 4)
        with pytest.raises(ShapeError, match="expected contiguous float32"):
            file.read(0, 1, out)


@pytest.mark.parametrize("options", [{}, {"compression": "gzip"}])
def test_threads_that_share_a_file_read_the_same(tmp_path, array, options):
    path = write(tmp_path / "a.h5", array, **options, t=np.arange(T))
    rows = np.random.default_rng(0).integers(0, N, 400)
    with TrajectoryFile(path) as file, ThreadPoolExecutor(4) as pool:
        read = list(pool.map(lambda row: file.read(row, row + 1)[0], rows))
    np.testing.assert_array_equal(read, array[rows])


def test_dt_is_that_of_the_times_else_the_attribute_else_of_pdebenchs_span(tmp_path, array, caplog):
    for extra in (0, 1):  # the times may have one entry more than there are frames
        t = (np.arange(T + extra) * 0.01).astype(np.float32)
        with TrajectoryFile(write(tmp_path / "a.h5", array, t=t)) as file:
            assert file.dt == 0.01
    with TrajectoryFile(write(tmp_path / "a.h5", array, attrs={"Nu": 1, "dt": 0.25})) as file:
        assert file.dt == 0.25
    with TrajectoryFile(write(tmp_path / "b.h5", array)) as file:
        assert file.dt == 2 / (T - 1)
    assert "b.h5: no t-coordinate and no attribute dt; took 0.5" in caplog.text


@pytest.mark.parametrize(("equation", "name"), [("burgers1d", "Nu"), ("advection1d", "beta")])
def test_the_parameter_is_an_attribute_of_file_or_data_set_or_in_params_or_in_the_files_name(
    tmp_path, array, caplog, equation, name
):
    caplog.set_level(logging.INFO)
    write(tmp_path / "on_file.h5", array, attrs={name: 0.05}, t=np.arange(T))
    for path in ("on_data.h5", "in_params.h5", f"1D_Sols_{name}0.05.hdf5"):
        write(tmp_path / path, array, attrs={}, t=np.arange(T))
    with h5py.File(tmp_path / "on_data.h5", "a") as file:
        file["tensor"].attrs[name] = np.array([0.05])
    with h5py.File(tmp_path / "in_params.h5", "a") as file:
        file["params"] = np.full((N, 1), 0.05)
    for path in [*tmp_path.iterdir()] * 2:
        with TrajectoryFile(path, equation=equation) as file:
            assert (file.equation.attribute, file.parameter) == (name, 0.05)
    symbol = {"Nu": "ν", "beta": "β"}[name]
    found = [(r.levelname, r.getMessage().partition("; ")[2]) for r in caplog.records]
    assert sorted(found) == [
        ("INFO", f"{symbol} = 0.05 from the data set params"),
        ("WARNING", f"{symbol} = 0.05 from the file's name"),
    ], "each once, however often the file is opened"


def test_a_file_that_may_not_be_read_is_not_called_something_else(open_to_all, as_nobody):
    (path := open_to_all / "a.h5").touch(0)
    refused = pytest.raises(DataError, match=r"a\.h5 cannot be read: Permission denied; change")
    with as_nobody(), refused:
        TrajectoryFile(path)


def test_what_is_not_hdf5_is_refused(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"<html>404 not found</html>")
    with pytest.raises(DataError, match="found 26 bytes that are not HDF5, expected an HDF5 file"):
        TrajectoryFile(tmp_path / "a.h5")
    with pytest.raises(DataError, match="no such file"):
        TrajectoryFile(tmp_path / "b.h5")


def test_a_truncated_file_is_refused_even_where_its_header_agrees_with_its_size(
    tmp_path, generated
):
    path, whole = tmp_path / "a.h5", bytearray(generated[0].read_bytes())
    path.write_bytes(whole[:-1000])
    expected = f"truncated: found {len(whole) - 1000} bytes, expected at least {len(whole)}"
    with pytest.raises(DataError, match=expected):
        TrajectoryFile(path)
    assert struct.unpack_from("<Q", whole, 40) == (len(whole),)  # the superblock's end of file
    struct.pack_into("<Q", whole, 40, len(whole) - 1000)
    path.write_bytes(whole[:-1000])
    with pytest.raises(DataError, match="'tensor' cannot be opened, the file is truncated"):
        TrajectoryFile(path)


def test_a_data_set_beyond_the_end_is_refused_where_hdf5_does_not_look(tmp_path, array):
    path = write(tmp_path / "a.h5", array, t=np.arange(T))
    size = path.stat().st_size
    with h5py.File(path) as file:
        os.truncate(path, size - 100)
        with pytest.raises(DataError, match=f"found {size - 100} bytes, expected at least {size}"):
            find_offset(file["tensor"], path, path.stat().st_size)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path, array):
    path = write(tmp_path / "a.h5", array, t=np.arange(T))
    with TrajectoryFile(path) as file:
        with path.open("r+b") as raw:
            raw.truncate(path.stat().st_size - 100)
        with pytest.raises(DataError, match="100 bytes early"):
            file.read(0, N)


def test_a_data_set_that_is_missing_or_was_never_written_is_refused(tmp_path, array):
    path = write(tmp_path / "a.h5", array, "density", t=np.arange(T))
    with pytest.raises(DataError, match="no data set 'tensor' or 'data', found density, t-coord"):
        TrajectoryFile(path)
    with h5py.File(path, "a") as file:
        file.create_dataset("tensor", (N, T, X), "<f4")
    with pytest.raises(DataError, match="'tensor' was never written"):
        TrajectoryFile(path)


@pytest.mark.parametrize("shape", [(T, X), (N, T, X, 2), (N, T, 4, 8, 1), ()])
def test_a_wrong_rank_is_refused(tmp_path, shape):
    path = write(tmp_path / "a.h5", np.zeros(shape, np.float32))
    with pytest.raises(
        DataError, match=r"has shape \(.*\), expected \(trajectories, times, points"
    ):
        TrajectoryFile(path)


def test_a_wrong_grid_type_number_of_frames_or_time_is_refused(tmp_path, array):
    def check(message, array=array, t=None, **options):
        with pytest.raises(DataError, match=message):
            TrajectoryFile(write(tmp_path / "a.h5", array, t=t), **options)

    check(r"has 32 grid points, expected 64; set data\.grid_points", grid_points=64)
    check("holds complex64, expected real numbers", array.astype(np.complex64))
    check("6 trajectories of 1 frames", array[:, :1])
    check("t-coordinate has 9 entries, expected 5 or 6", t=np.arange(9))
    check("not evenly spaced", t=np.arange(T) ** 2)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_trajectory_that_is_not_finite_is_named(tmp_path, array, bad):
    with TrajectoryFile(write(tmp_path / "a.h5", array), rows=(1, N)) as file:
        file.check_finite(array, 2)
        file.check_finite(np.full((1, 2, 4), 9e14, np.float32), 0)
        array[3, 1, 7], array[5, 0, 0] = bad, -bad
        found = r"a.h5: trajectory 6 has NaN or infinite values \(2 of the 6"  # 1 + 2 + 3
        with pytest.raises(DataError, match=found):
            file.check_finite(array, 2)


def touch(root, *names):
    for name in names:
        (root / name).touch()


def test_one_file_comes_before_shards_in_order_and_valid_stands_for_val(tmp_path):
    def check(split, *expected):
        assert [p.name for p in find_files(tmp_path, "burgers1d", split)] == list(expected)

    touch(tmp_path, "burgers1d_train_001.h5", "burgers1d_train_000.hdf5", "burgers1d_test_0.h5")
    check("train", "burgers1d_train_000.hdf5", "burgers1d_train_001.h5")
    (tmp_path / "burgers1d_train.h5").symlink_to("burgers1d_train_001.h5")
    check("train", "burgers1d_train.h5")
    touch(tmp_path, "burgers1d_valid_0.h5", "burgers1d_valid_1.h5")
    check("val", "burgers1d_valid_0.h5", "burgers1d_valid_1.h5")
    touch(tmp_path, "burgers1d_valid.h5")
    check("val", "burgers1d_valid.h5")
    touch(tmp_path, "burgers1d_val.hdf5")
    check("val", "burgers1d_val.hdf5")


def test_no_file_is_refused_with_what_was_looked_for(tmp_path):
    touch(tmp_path, "burgers1d_train.h5")
    wanted = (
        r"looked for burgers1d_test.h5 or burgers1d_test_\*.h5 .*found burgers1d_train.h5; stage"
    )
    with pytest.raises(DataError, match=wanted):
        find_files(tmp_path, "burgers1d", "test")
    with pytest.raises(DataError, match="no such folder"):
        find_files(tmp_path / "nowhere", "burgers1d", "test")


def test_a_file_without_a_parameter_or_with_that_of_another_equation_is_refused(tmp_path, array):
    burgers = write(tmp_path / "a.h5", array, attrs={"Nu": 0.01})
    with pytest.raises(DataError, match=r"'Nu' of burgers1d, expected 'beta' of advection1d"):
        TrajectoryFile(burgers, equation="advection1d")
    path = write(tmp_path / "b.h5", array, attrs={}, t=np.arange(T))
    for equation, name in (("burgers1d", "Nu"), ("advection1d", "beta")):
        with pytest.raises(DataError, match=rf"no attribute '{name}'.*add the attribute"):
            TrajectoryFile(path, equation=equation)


@pytest.mark.parametrize("options", [{}, {"chunks": (2, T, X), "compression": "gzip"}])
@pytest.mark.parametrize("strides", [(2, 1), (1, 4), (2, 4)])
def test_of_frames_and_points_only_every_so_many_th_is_read(tmp_path, array, options, strides):
    every_t, every_x = strides
    path = write(tmp_path / "a.h5", array, t=0.1 * np.arange(T), **options)
    expected = array[2:, ::every_t, ::every_x]
    with TrajectoryFile(path, (2, N), grid_points=X, strides=strides) as file:
        assert (file.num_frames, file.grid_points) == expected.shape[1:]
        assert file.num_bytes == expected.nbytes
        assert file.dt == pytest.approx(0.1 * every_t)
        assert np.array_equal(file.read(0, N - 2), expected)
        assert np.array_equal(file.read_frames(1, 2), expected[1, ::2])
