"""What is found out about a file that somebody brings: all of it, whatever is wrong."""

import h5py
import numpy as np
import pytest

from tests.data.objects import BUCKET
from ups.data.inspect import Facts, Given, files_in, inspect_file, inspect_object, objects_in
from ups.errors import DataError

N, T, X = 12, 9, 48


@pytest.fixture
def write(tmp_path):
    """`write(name, …)`: a file of waves, as somebody else lays it out."""

    def make(name="a.h5", key="tensor", attrs=None, t=True, values=None, **options):
        u = np.sin(np.arange(N * T * X)).reshape(N, T, X) if values is None else values
        with h5py.File(tmp_path / name, "w") as file:
            file.attrs.update({"Nu": 0.05} if attrs is None else attrs)
            if t:
                file["t-coordinate"] = np.linspace(0, 2, T)
            file.create_dataset(key, data=u, **{"dtype": "<f4", **options})
        return tmp_path / name

    return make


def test_a_good_file_is_described_in_full(write):
    path = write()
    facts = inspect_file(path)
    assert (facts.shape, facts.dtype, facts.storage) == ((N, T, X), "float32", "contiguous")
    assert (facts.equation, facts.parameter) == ("burgers1d", 0.05)
    assert (facts.times, facts.dt, facts.streams) == ((0, 2), 0.25, True)
    assert (facts.sampled, facts.faults, facts.notes) == (N, (), ())
    assert -1 <= facts.smallest < -0.99 < 0.99 < facts.largest <= 1
    assert (len(facts.sha256), facts.digest) == (64, "of its bytes")
    assert not list(path.parent.glob(".*"))  # nothing is left beside it
    assert Facts.model_validate_json(facts.model_dump_json()) == facts


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "<f8"}, {"dtype": "float64"}),
        ({"dtype": ">f4"}, {"dtype": "float32, big-endian"}),
        ({"chunks": (4, T, X)}, {"storage": f"chunks of (4, {T}, {X})"}),
        ({"compression": "gzip"}, {"compression": ("deflate",)}),
        ({"key": "data", "values": np.ones((N, T, X, 1))}, {"data_set": "data"}),
        ({"attrs": {"beta": 0.4}}, {"equation": "advection1d", "parameter": 0.4}),
        ({"attrs": {}, "name": "x_Nu0.002.h5"}, {"parameter": 0.002, "equation": "burgers1d"}),
        ({"attrs": {}, "name": "burgers_beta0.4.h5"}, {"equation": "advection1d"}),
    ],
)
def test_other_layouts_train_as_well(write, options, said):
    facts = inspect_file(write(**options))
    assert said == {name: getattr(facts, name) for name in said}
    assert (facts.shape, facts.faults) == ((N, T, X), ())


def test_all_that_is_wrong_is_said_at_once_with_what_to_do(write):
    values = np.ones((N, T, X))
    values[3, 2, 1], values[5] = np.nan, 0
    path = write(attrs={}, t=False, values=values)
    with h5py.File(path, "a") as file:
        file["x-coordinate"] = np.arange(T)
    facts = inspect_file(path)
    axes, parameter, bad = facts.faults
    assert "the axes are transposed" in axes
    assert "give --nu VALUE or --beta VALUE here, and as data.parameter in the config" in parameter
    assert "1 of 12 sampled trajectories hold NaN, infinity or fill values (row 3)" in bad
    assert (facts.bad, facts.zero, facts.largest) == ((3,), (5,), 1)
    assert [note[:9] for note in facts.notes] == ["no t-coor", "1 of 12 s"]


def test_a_data_set_tells_the_equation_and_its_parameter(write):
    path = write(attrs={})
    with h5py.File(path, "a") as file:
        file["beta"] = np.full(N, 0.7)
    facts = inspect_file(path)
    assert (facts.equation, facts.parameter, facts.faults) == ("advection1d", 0.7, ())


def test_a_parameter_that_is_missing_is_given(write):
    path = write(attrs={}, name="burgers.h5")
    (fault,) = inspect_file(path).faults
    assert "ν of burgers1d is missing" in fault
    assert "data.parameter: {nu: VALUE} in the config" in fault
    given = Given(equation="burgers1d", parameter=0.3)
    facts = inspect_file(path, given)
    assert (facts.parameter, facts.parameter_from, facts.faults) == (0.3, "as given", ())
    (fault,) = inspect_file(write(), given).faults
    assert "found ν = 0.05 by its attribute, and 0.3 as parameter.nu" in fault


def test_what_is_no_file_of_trajectories_says_what_it_holds(write, tmp_path):
    (tmp_path / "page.h5").write_text("<html>")
    with pytest.raises(DataError, match="found 6 bytes that are not HDF5"):
        inspect_file(tmp_path / "page.h5")
    facts = inspect_file(write(key="u"))
    assert f"u float32[{N}, {T}, {X}]" in facts.members
    assert facts.faults[0].startswith("no data set 'tensor' or 'data', found t-coordinate, u")
    flat = inspect_file(write(values=np.ones((N, T))))
    assert "has shape (12, 9), expected (trajectories, times, points)" in flat.faults[0]


def test_files_of_a_folder_and_objects_of_another(write, tmp_path, store, own_key):
    write("b.h5"), write("a.hdf5"), (tmp_path / "c.txt").touch()
    assert [path.name for path in files_in(tmp_path)] == ["a.hdf5", "b.h5"]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"found nothing, expected files called \.h5 or \.hdf5"):
        files_in(tmp_path / "none")
    folder = own_key.removesuffix("x.h5")
    assert objects_in(store, BUCKET, folder) == [own_key]
    with pytest.raises(DataError, match="found nothing, expected files called"):
        objects_in(store, BUCKET, f"{folder}other/")


def test_an_object_is_looked_at_by_ranges(
    write, connect, store, proxied, proxy, s3_client, request
):
    values = np.random.default_rng(0).normal(size=(64, 40, 512))  # 5 MB
    path, name = write(values=values), request.node.name
    store.upload(path, BUCKET, f"{name}/a.h5")
    facts = inspect_object(proxied, BUCKET, f"{name}/a.h5", num_sampled=4)
    here = inspect_file(path, num_sampled=4)
    same = {"where", "digest", "sha256"}
    assert facts.model_dump(exclude=same) == here.model_dump(exclude=same)
    assert (facts.sha256, facts.digest) == (here.sha256, "by its manifest")
    assert len(proxy.ranges) < 12
    packed = write(values=values, compression="gzip", chunks=(8, 40, 512))
    store.upload(packed, BUCKET, f"{name}/b.h5")
    s3_client.delete_object(Bucket=BUCKET, Key=f"{name}/manifest.json")
    facts = inspect_object(connect(), BUCKET, f"{name}/b.h5", num_sampled=2)
    assert (facts.sampled, facts.sha256, facts.streams) == (2, None, False)
    assert "no manifest has it" in facts.digest
    assert "not contiguous float32: it is fetched whole" in facts.notes[0]
