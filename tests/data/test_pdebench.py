import logging
import os
import struct
import threading

import h5py
import numpy as np
import pytest

from ups.data import burgers
from ups.data.pdebench import TrajectoryFile, _raw_offset, check_finite, find_files
from ups.errors import DataError, ShapeError

N, T, X = 6, 5, 32


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "burgers1d_train.h5"
    burgers.generate(path, N, nu=0.05, seed=0, grid_points=X, num_frames=T, t_end=0.4)
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


def uses_h5py(file):
    return file._fd is None


def test_the_generators_file_is_read_as_written_without_h5py(generated):
    path, expected = generated
    with TrajectoryFile(path, grid_points=X) as file:
        assert not uses_h5py(file)
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
        assert uses_h5py(file) == bool(options)
        np.testing.assert_array_equal(file.read(1, 4), array[2:5])


def test_rows_restrict_what_is_there_and_out_is_filled_in_place(generated):
    path, expected = generated
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
    wrong = []
    with TrajectoryFile(path) as file:

        def read_often(seed):
            for row in np.random.default_rng(seed).integers(0, N, 100):
                if not np.array_equal(file.read(row, row + 1)[0], array[row]):
                    wrong.append(row)

        threads = [threading.Thread(target=read_often, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("extra", [0, 1])
def test_times_may_have_one_entry_more_than_there_are_frames(tmp_path, array, extra):
    t = (np.arange(T + extra) * 0.01).astype(np.float32)
    with TrajectoryFile(write(tmp_path / "a.h5", array, t=t)) as file:
        assert file.dt == 0.01


def test_dt_falls_back_to_the_attribute_then_to_pdebenchs_span(tmp_path, array, caplog):
    with TrajectoryFile(write(tmp_path / "a.h5", array, attrs={"Nu": 1, "dt": 0.25})) as file:
        assert file.dt == 0.25
    with TrajectoryFile(write(tmp_path / "b.h5", array)) as file:
        assert file.dt == 2 / (T - 1)
    assert "b.h5: no t-coordinate and no attribute dt; took 0.5" in caplog.text


def test_nu_is_found_on_the_data_set_in_params_and_in_the_name(tmp_path, array, caplog):
    caplog.set_level(logging.INFO)
    t = np.arange(T)
    for name in ("on_data.h5", "in_params.h5", "1D_Burgers_Sols_Nu0.05.h5"):
        write(tmp_path / name, array, attrs={}, t=t)
    with h5py.File(tmp_path / "on_data.h5", "a") as file:
        file["tensor"].attrs["Nu"] = np.array([0.05])
    with h5py.File(tmp_path / "in_params.h5", "a") as file:
        file["params"] = np.full((N, 1), 0.05)
    for path in tmp_path.iterdir():
        with TrajectoryFile(path) as file:
            assert file.parameter == 0.05
    assert "from the data set params" in caplog.text
    assert "from the file's name" in caplog.text


def test_a_missing_nu_is_refused(tmp_path, array):
    with pytest.raises(DataError, match=r"no attribute 'Nu'.*add the attribute"):
        TrajectoryFile(write(tmp_path / "a.h5", array, attrs={}, t=np.arange(T)))


def test_what_is_not_hdf5_is_refused(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"<html>404 not found</html>")
    with pytest.raises(DataError, match="found 26 bytes that are not HDF5, expected an HDF5 file"):
        TrajectoryFile(tmp_path / "a.h5")
    with pytest.raises(DataError, match="no such file"):
        TrajectoryFile(tmp_path / "b.h5")


def test_a_truncated_file_is_refused(tmp_path, generated):
    whole = generated[0].read_bytes()
    path = tmp_path / "a.h5"
    path.write_bytes(whole[:-1000])
    expected = f"truncated: found {len(whole) - 1000} bytes, expected at least {len(whole)}"
    with pytest.raises(DataError, match=expected):
        TrajectoryFile(path)


def test_a_data_set_beyond_the_end_is_refused_though_the_header_agrees_with_the_size(
    tmp_path, generated
):
    whole = bytearray(generated[0].read_bytes())
    assert struct.unpack_from("<Q", whole, 40) == (len(whole),)  # the superblock's end of file
    struct.pack_into("<Q", whole, 40, len(whole) - 1000)
    path = tmp_path / "a.h5"
    path.write_bytes(whole[:-1000])
    with pytest.raises(DataError, match="'tensor' cannot be opened, the file is truncated"):
        TrajectoryFile(path)


def test_a_data_set_beyond_the_end_is_refused_where_hdf5_does_not_look(tmp_path, array):
    path = write(tmp_path / "a.h5", array, t=np.arange(T))
    size = path.stat().st_size
    with h5py.File(path) as file:
        os.truncate(path, size - 100)
        with pytest.raises(DataError, match=f"found {size - 100} bytes, expected at least {size}"):
            _raw_offset(file["tensor"], path)


def test_a_file_that_shrinks_while_it_is_read_is_noticed(tmp_path, array):
    path = write(tmp_path / "a.h5", array, t=np.arange(T))
    with TrajectoryFile(path) as file:
        with path.open("r+b") as raw:
            raw.truncate(path.stat().st_size - 100)
        with pytest.raises(DataError, match="100 bytes early"):
            file.read(0, N)


def test_a_missing_data_set_is_refused_with_a_list_of_what_is_there(tmp_path, array):
    path = write(tmp_path / "a.h5", array, "density", t=np.arange(T))
    with pytest.raises(DataError, match="no data set 'tensor' or 'data', found density, t-coord"):
        TrajectoryFile(path)


def test_a_data_set_never_written_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs["Nu"] = 0.1
        file["t-coordinate"] = np.arange(T)
        file.create_dataset("tensor", (N, T, X), "<f4")
    with pytest.raises(DataError, match="'tensor' was never written"):
        TrajectoryFile(tmp_path / "a.h5")


@pytest.mark.parametrize("shape", [(T, X), (N, T, X, 2), (N, T, 4, 8, 1), ()])
def test_a_wrong_rank_is_refused(tmp_path, shape):
    path = write(tmp_path / "a.h5", np.zeros(shape, np.float32))
    with pytest.raises(
        DataError, match=r"has shape \(.*\), expected \(trajectories, times, points"
    ):
        TrajectoryFile(path)


def test_a_wrong_grid_type_and_number_of_frames_are_refused(tmp_path, array):
    with pytest.raises(DataError, match=r"has 32 grid points, expected 64; set data\.grid_points"):
        TrajectoryFile(write(tmp_path / "a.h5", array), grid_points=64)
    with pytest.raises(DataError, match="holds complex64, expected real numbers"):
        TrajectoryFile(write(tmp_path / "a.h5", array.astype(np.complex64)))
    with pytest.raises(DataError, match="6 trajectories of 1 frames"):
        TrajectoryFile(write(tmp_path / "a.h5", array[:, :1]))


def test_wrong_times_are_refused(tmp_path, array):
    with pytest.raises(DataError, match="t-coordinate has 9 entries, expected 5 or 6"):
        TrajectoryFile(write(tmp_path / "a.h5", array, t=np.arange(9)))
    with pytest.raises(DataError, match="not evenly spaced"):
        TrajectoryFile(write(tmp_path / "a.h5", array, t=np.arange(T) ** 2))


@pytest.mark.parametrize("rows", [(0, N + 1), (3, 3), (-1, 2)])
def test_rows_that_are_not_there_are_refused(generated, rows):
    with pytest.raises(DataError, match=r"rows \[.*\) asked for, the file has 6 trajectories"):
        TrajectoryFile(generated[0], rows=rows)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_first_trajectory_that_is_not_finite_is_named(tmp_path, array, bad):
    check_finite(array, tmp_path, 100)
    check_finite(np.full((1, 2, 4), 3e38, np.float32), tmp_path, 0)  # their sum overflows
    array[3, 1, 7], array[5, 0, 0] = bad, -bad
    with pytest.raises(DataError, match=r"trajectory 103 has NaN or infinite values \(2 of the 6"):
        check_finite(array, tmp_path, 100)


def touch(root, *names):
    for name in names:
        (root / name).touch()


def found(root, split):
    return [p.name for p in find_files(root, "burgers1d", split)]


def test_one_file_comes_before_shards_and_shards_come_in_order(tmp_path):
    touch(tmp_path, "burgers1d_train_001.h5", "burgers1d_train_000.hdf5", "burgers1d_test_0.h5")
    assert found(tmp_path, "train") == ["burgers1d_train_000.hdf5", "burgers1d_train_001.h5"]
    (tmp_path / "burgers1d_train.h5").symlink_to("burgers1d_train_001.h5")
    assert found(tmp_path, "train") == ["burgers1d_train.h5"]


def test_valid_stands_for_val(tmp_path):
    touch(tmp_path, "burgers1d_valid_0.h5", "burgers1d_valid_1.h5")
    assert found(tmp_path, "val") == ["burgers1d_valid_0.h5", "burgers1d_valid_1.h5"]
    touch(tmp_path, "burgers1d_valid.h5")
    assert found(tmp_path, "val") == ["burgers1d_valid.h5"]
    touch(tmp_path, "burgers1d_val.hdf5")
    assert found(tmp_path, "val") == ["burgers1d_val.hdf5"]


def test_no_file_is_refused_with_what_was_looked_for(tmp_path):
    touch(tmp_path, "burgers1d_train.h5")
    wanted = (
        r"looked for burgers1d_test.h5 or burgers1d_test_\*.h5 .*found burgers1d_train.h5; stage"
    )
    with pytest.raises(DataError, match=wanted):
        find_files(tmp_path, "burgers1d", "test")
    with pytest.raises(DataError, match="no such folder"):
        find_files(tmp_path / "nowhere", "burgers1d", "test")


@pytest.mark.parametrize("storage", [{}, {"chunks": (1, 3, 8), "compression": "gzip"}])
def test_single_frames_are_those_of_the_whole(tmp_path, storage):
    path = tmp_path / "x.h5"
    values = np.random.default_rng(0).standard_normal((5, 9, 16)).astype(np.float32)
    with h5py.File(path, "w") as file:
        file.create_dataset("tensor", data=values, **storage)
        file["t-coordinate"] = np.arange(9) * 0.01
        file.attrs["Nu"] = 0.01
    with TrajectoryFile(path, (2, 5)) as reader:
        assert np.array_equal(reader.read_frames(1, 4), values[3, ::4])


@pytest.mark.parametrize("holder", ["file", "tensor"])
def test_beta_is_read_from_an_attribute(tmp_path, array, holder):
    path = write(tmp_path / "a.h5", array, attrs={})
    with h5py.File(path, "r+") as file:
        (file if holder == "file" else file["tensor"]).attrs["beta"] = 0.4
    with TrajectoryFile(path, equation="advection1d") as file:
        assert (file.equation.parameter, file.parameter) == ("beta", 0.4)


def test_beta_is_read_from_the_name_of_a_file_of_pdebench(tmp_path, array, caplog):
    path = write(tmp_path / "1D_Advection_Sols_beta0.4.hdf5", array, attrs={})
    with TrajectoryFile(path, equation="advection1d") as file:
        assert file.parameter == 0.4
    assert "no attribute beta; β = 0.4 from the file's name" in caplog.text


def test_a_file_of_another_equation_is_refused(tmp_path, array):
    path = write(tmp_path / "a.h5", array, attrs={"Nu": 0.01})
    with pytest.raises(DataError, match=r"'Nu' of burgers1d, expected 'beta' of advection1d"):
        TrajectoryFile(path, equation="advection1d")
    path = write(tmp_path / "b.h5", array, attrs={})
    with pytest.raises(DataError, match=r"no attribute 'beta'.*add the attribute"):
        TrajectoryFile(path, equation="advection1d")
