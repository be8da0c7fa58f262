"""Files whose values lie elsewhere, were never written, are packed or damaged."""

import h5py
import numpy as np
import pytest

from ups.data.pdebench import TrajectoryFile
from ups.errors import DataError

N, T, X = 6, 5, 32
TIMES = np.arange(T) * 0.1


@pytest.fixture
def array():
    return np.random.default_rng(0).normal(size=(N, T, X)).astype("<f4")


@pytest.fixture
def begun(tmp_path):
    """`begun(name="a.h5")`: an open file with the parameter and the times, to be filled."""

    def begin(name="a.h5", **options):
        file = h5py.File(tmp_path / name, "w", **options)
        file.attrs["Nu"], file["t-coordinate"] = 0.05, TIMES
        return file

    return begin


def refused(path, message, **options):
    with pytest.raises(DataError, match=message) as caught:
        TrajectoryFile(path, **options)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_link_into_another_file_is_refused_however_large_the_file_is(tmp_path, begun, array):
    with begun("real.h5") as file:
        file["tensor"] = array
    for name, target in (("a.h5", "real.h5"), ("b.h5", "gone.h5")):
        with begun(name) as file:
            file["scratch"] = np.full(40_000, 7, "f4")  # bytes at the offset that is of real.h5
            file["tensor"] = h5py.ExternalLink(target, "tensor")
    refused(tmp_path / "a.h5", r"'tensor' is a link into another file, its values lie in real\.h5;")
    refused(tmp_path / "b.h5", r"lie in gone\.h5 \(missing\); expected them in this file")
    with begun("c.h5") as file:
        file["all"] = h5py.ExternalLink("real.h5", "/")
        file["tensor"] = h5py.SoftLink("/all/tensor")
    refused(tmp_path / "c.h5", r"'tensor' is a link into another file, .*real\.h5")
    with begun("d.h5") as file:
        file["kept/here"] = array
        file["tensor"] = h5py.SoftLink("/kept/here")
    with TrajectoryFile(tmp_path / "d.h5") as file:
        np.testing.assert_array_equal(file.read(0, N), array)


def test_a_virtual_data_set_is_refused_and_its_sources_are_named(tmp_path, begun, array):
    with begun("parts.h5") as file:
        file["tensor"] = array
    layout = h5py.VirtualLayout((2 * N, T, X), "<f4")
    layout[:N] = h5py.VirtualSource("parts.h5", "tensor", shape=(N, T, X))
    layout[N:] = h5py.VirtualSource("gone.h5", "tensor", shape=(N, T, X))
    with begun() as file:
        file.create_virtual_dataset("tensor", layout)
    refused(
        tmp_path / "a.h5",
        r"is a virtual data set, its values lie in gone\.h5 \(missing\), parts\.h5;",
    )


@pytest.mark.parametrize("name", ["tensor", "t-coordinate", "params"])
def test_external_storage_is_refused_in_all_that_is_read(tmp_path, begun, array, name):
    given = {"tensor": array, "t-coordinate": TIMES, "params": np.full(N, 0.05)}
    with begun() as file:
        del file.attrs["Nu"], file["t-coordinate"]
        for key, values in given.items():
            stored = [(str(tmp_path / "raw"), 0, h5py.h5f.UNLIMITED)] if key == name else None
            file.create_dataset(key, data=values, external=stored)
    refused(tmp_path / "a.h5", f"'{name}' is a data set with external storage, .*raw")


def test_rows_that_were_never_written_are_refused_and_the_others_are_read(tmp_path, begun, array):
    with begun() as file:
        tensor = file.create_dataset("tensor", (N, T, X), "<f4", chunks=(2, T, 16))
        tensor[:3] = array[:3]  # and so the chunks of row 3
        tensor[4:6, :, :16] = array[4:6, :, :16]
    path = tmp_path / "a.h5"
    refused(path, r"'tensor' was never written from trajectory 4 on \(chunk \(4, 0, 16\)\)")
    refused(path, "from trajectory 5 on", rows=(5, 6))
    with TrajectoryFile(path, rows=(0, 3)) as file:
        np.testing.assert_array_equal(file.read(0, 3), array[:3])


def test_a_fill_value_is_refused_with_its_row_and_an_ordinary_value_is_none(tmp_path, begun, array):
    path, array[4, 2:, 3] = tmp_path / "a.h5", 9.96921e36
    with begun() as file:
        file["tensor"] = array
    with TrajectoryFile(path, rows=(1, N)) as file:
        wanted = r"a\.h5: trajectory 4 has values that no field has, such as 9\.96921e\+36 \(1 of"
        with pytest.raises(DataError, match=wanted):
            file.check_finite(file.read(0, 5), 0)
    array[4, 2:, 3] = -9999
    with begun() as file:
        file["tensor"] = array
        file["tensor"].attrs["_FillValue"] = np.float32(-9999)
    with TrajectoryFile(path, rows=(1, N)) as file:
        file.read(0, 3)
        for read in (lambda: file.read(0, 5), lambda: file.read_frames(3, 1)):
            with pytest.raises(DataError, match="trajectory 4 has values .* such as -9999"):
                read()
    array[4, 2:, 3] = 1
    with begun() as file:
        file.create_dataset("tensor", (N, T, X), "<f4", fillvalue=1)[:5] = array[:5]
    with TrajectoryFile(path) as file:
        np.testing.assert_array_equal(file.read(0, 5), array[:5])
        with pytest.raises(DataError, match="trajectory 5 has values .* such as 1 "):
            file.read(0, N)


def test_axes_that_are_transposed_show_in_the_x_coordinate(tmp_path, begun, array):
    path = tmp_path / "a.h5"
    for entries in (X, X + 1):
        with begun() as file:
            file["tensor"], file["x-coordinate"] = array, np.arange(entries)
        TrajectoryFile(path).close()
    with begun() as file:
        del file["t-coordinate"]
        file["tensor"], file["x-coordinate"] = array.transpose(0, 2, 1), np.arange(X)
    refused(path, f"x-coordinate has {X} entries, and the last axis of the data set {T} points")


def test_packed_values_are_refused(tmp_path, begun, array):
    path = tmp_path / "a.h5"
    with begun() as file:
        file["tensor"] = (array * 100).astype("<i2")
    refused(path, "'tensor' holds int16, expected real numbers in floating point")
    with begun() as file:
        file["tensor"] = array
        file["tensor"].attrs.update({"scale_factor": 0.01, "add_offset": 0.0})
    refused(path, "'tensor' holds float32 with scale_factor, expected")
    with h5py.File(path, "a") as file:
        file["tensor"].attrs["scale_factor"] = 1.0
    TrajectoryFile(path).close()


def test_a_filter_that_is_not_installed_is_named_with_a_remedy(tmp_path, begun, array):
    def write(*masks):
        with begun() as file:
            plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            plist.set_chunk((1, T, X))
            plist.set_filter(32001, h5py.h5z.FLAG_OPTIONAL, (0,))
            space = h5py.h5s.create_simple((N, T, X))
            data = h5py.h5d.create(file.id, b"tensor", h5py.h5t.IEEE_F32LE, space, plist)
            for row, mask in enumerate(masks):
                data.write_direct_chunk((row, 0, 0), array[row].tobytes(), mask)

    write(*[0] * N)
    wanted = r"rows \[0, 1\) cannot be read, they are compressed by .*32001.*plugin\.PLUGIN_PATH"
    refused(tmp_path / "a.h5", wanted)
    write(*[1] * N)  # none went through the filter: whoever wrote them did not have it, either
    with TrajectoryFile(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file.read(0, N), array)


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"fletcher32": True}])
def test_a_damaged_chunk_is_refused_with_its_rows(tmp_path, begun, array, options):
    with begun() as file:
        data = file.create_dataset("tensor", data=array, chunks=(1, T, X), **options)
        place = data.id.get_chunk_info_by_coord((4, 0, 0))
    with (tmp_path / "a.h5").open("r+b") as raw:
        raw.seek(place.byte_offset + place.size // 2)
        raw.write(b"\xff\x00\xff")
    with TrajectoryFile(tmp_path / "a.h5", rows=(1, N)) as file:
        file.read(0, 3)
        wanted = r"a\.h5: rows \[3, 6\) cannot be read, the file is damaged .*fetch or generate"
        with pytest.raises(DataError, match=wanted):
            file.read(2, 5)
        with pytest.raises(DataError, match=r"rows \[4, 5\) cannot be read"):
            file.read_frames(3, 1)


def test_damage_in_the_header_is_one_line_whatever_h5py_makes_of_it(tmp_path, begun, array):
    with begun() as file:
        file.create_dataset("tensor", data=array, chunks=(1, T, X), compression="gzip")
    whole, path, rng = (tmp_path / "a.h5").read_bytes(), tmp_path / "b.h5", np.random.default_rng(0)
    messages = []
    for offset in rng.integers(0, 4096, 120):
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            with TrajectoryFile(path) as file:
                file.read(0, file.num_trajectories)
        except DataError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(str(path) in message and "\n" not in message for message in messages)
