"""Files in the layout of The Well, with one dimension of space."""

import h5py
import numpy as np
import pytest

from ups.data.header import check_own_values
from ups.data.inspect import inspect_file
from ups.data.pdebench import TrajectoryFile
from ups.errors import DataError

N, T, X = 6, 5, 32


@pytest.fixture
def fields():
    return np.random.default_rng(0).normal(size=(N, T, X)).astype(np.float32)


@pytest.fixture
def write(tmp_path, fields):
    """`write(change)`: the path of a file as The Well's specification has it, then changed."""

    def make(change=lambda file: None):
        path = tmp_path / "well.hdf5"
        with h5py.File(path, "w") as file:
            file.attrs.update(dataset_name="burgers", grid_type="cartesian", n_spatial_dims=1)
            file.attrs.update(n_trajectories=N, simulation_parameters=["nu"], nu=0.02)
            dimensions = file.create_group("dimensions")
            dimensions.attrs["spatial_dims"] = ["x"]
            for name, values in (("time", np.arange(T) * 0.1), ("x", np.arange(X) / X)):
                dimensions.create_dataset(name, data=values.astype("<f4"))
                dimensions[name].attrs["sample_varying"] = False
            boundary = file.create_group("boundary_conditions/x_periodic")
            boundary.attrs["bc_type"] = "PERIODIC"
            scalars = file.create_group("scalars")
            scalars["nu"] = np.float32(0.02)
            group = file.create_group("t0_fields")
            group.attrs["field_names"] = ["u"]
            group["u"] = fields
            group["u"].attrs.update(dim_varying=[True], sample_varying=True, time_varying=True)
            for name in ("t1_fields", "t2_fields"):
                file.create_group(name).attrs["field_names"] = np.zeros(0, "S1")
            change(file)
        return path

    return make


def without_attribute(file):
    del file.attrs["nu"]


def with_a_constant_field(file):
    file["t0_fields/forcing"] = np.zeros((N, X), "<f4")
    file["t0_fields/forcing"].attrs["time_varying"] = False


@pytest.mark.parametrize("change", [lambda file: None, without_attribute, with_a_constant_field])
def test_the_field_is_read_with_its_times_points_and_parameter(write, fields, change):
    path = write(change)
    check_own_values(path)
    with TrajectoryFile(path, rows=(1, 4), grid_points=X) as file:
        assert (file.num_frames, file.grid_points, file.is_contiguous) == (T, X, True)
        assert (file.parameter, file.dt) == (pytest.approx(0.02), 0.1)
        assert not file.is_named
        np.testing.assert_array_equal(file.read(0, 3), fields[1:4])


@pytest.mark.parametrize("change", [lambda file: None, without_attribute])
def test_inspect_says_what_the_reader_takes_of_it(write, fields, change):
    facts = inspect_file(write(change))
    assert (facts.shape, facts.data_set, facts.streams) == ((N, T, X), "t0_fields/u", True)
    assert (facts.times, facts.dt) == (pytest.approx((0, 0.4)), 0.1)
    assert facts.points == pytest.approx((0, 1 - 1 / X))
    assert (facts.equation, facts.parameter) == ("burgers1d", pytest.approx(0.02))
    assert (facts.parameter_from, facts.sampled) == ("by the file", N)
    assert (facts.largest, facts.faults, facts.notes) == (fields.max(), (), ())


def with_another_field(file):
    file["t0_fields/v"] = file["t0_fields/u"][()]


def with_a_vector(file):
    file["t1_fields/velocity"] = np.zeros((N, T, X, 1), "<f4")


def of_space(file):
    file.attrs["n_spatial_dims"] = 2


def of_uneven_times(file):
    file["dimensions/time"][-1] = 9


def of_other_points(file):
    del file["dimensions/x"]
    file["dimensions/x"] = np.arange(X // 2)


def of_no_field(file):
    del file["t0_fields/u"]


def of_another_file(file):
    del file["t0_fields/u"]
    file["t0_fields/u"] = h5py.ExternalLink("other.h5", "u")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (with_another_field, "found the fields u, v, expected one that changes with time; write"),
        (with_a_vector, "found the fields u, velocity, expected one"),
        (of_no_field, "found the fields nothing, expected one"),
        (of_space, "found fields of 2 dimensions of space, expected 1"),
        (of_uneven_times, "dimensions/time is not evenly spaced"),
        (of_other_points, "dimensions/x has 16 entries, and the last axis .* 32 points"),
        (of_another_file, "'t0_fields/u' is a link into another file"),
    ],
)
def test_what_is_not_one_field_of_one_dimension_is_refused(write, change, message):
    with pytest.raises(DataError, match=f"well.hdf5: {message}"):
        TrajectoryFile(write(change))
