"""What stands beside the trajectories is compared with what it has to be."""

import h5py
import numpy as np
import pytest

from ups.data.pdebench import TrajectoryFile
from ups.equations import EQUATIONS
from ups.errors import DataError

N, T, X = 6, 5, 32
TIMES = np.arange(T) * 0.1


@pytest.fixture
def written(tmp_path):
    """`written(attrs, data_attrs, **data_sets)`: the path of a file with them and trajectories."""

    def write(attrs, data_attrs=None, name="a.h5", times=TIMES, **data_sets):
        with h5py.File(tmp_path / name, "w") as file:
            file["tensor"] = np.zeros((N, T, X), "<f4")
            file.attrs.update(attrs)
            file["tensor"].attrs.update(data_attrs or {})
            for key, values in {"t-coordinate": times, **data_sets}.items():
                if values is not None:
                    file[key] = values
        return tmp_path / name

    return write


def refused(path, message):
    with pytest.raises(DataError, match=message) as caught:
        TrajectoryFile(path)
    assert str(path) in str(caught.value)


BAD = {
    "text": ("nu=0.01", "'nu=0.01'"),
    "zero": (0.0, "0.0"),
    "negative": (-0.01, "-0.01"),
    "NaN": (np.nan, "nan"),
    "infinite": (np.inf, "inf"),
    "empty": (h5py.Empty("f4"), "Empty"),
    "no entry": (np.zeros(0), r"\[\]"),
    "bool": (True, "True"),
    "complex": (1j, "1j"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", ["Nu", "dt"])
def test_an_attribute_that_is_no_number_above_0_is_refused(written, name, bad):
    value, shown = BAD[bad]
    attrs = {"Nu": 0.05, name: value}
    message = f"the attribute '{name}' is .*{shown}.*, expected a number above 0"
    refused(written(attrs, times=None), message)


@pytest.mark.parametrize("value", [0.05, "0.05", np.bytes_("0.05"), [0.05, 0.05], np.float32(0.05)])
def test_one_number_is_read_however_it_is_written(written, value):
    with TrajectoryFile(written({"Nu": value}, {"nu": 0.05})) as file:
        assert file.parameter == pytest.approx(0.05)


def test_a_parameter_for_each_trajectory_and_two_that_differ_are_refused(written):
    several = np.linspace(0.01, 0.06, N)
    wanted = "has 6 values, from 0.01 to 0.06, expected one for all trajectories"
    refused(written({"Nu": several}), f"the attribute 'Nu' {wanted}")
    for key in ("params", "nu"):
        path = written({}, name="1D_Burgers_Sols_Nu0.01.h5", **{key: several[:, None]})
        refused(path, f"the data set '{key}' {wanted}")
    refused(written({"Nu": 0.01}, {"Nu": 0.1}), "found 0.01 and 0.1 as the attribute 'Nu'")
    refused(written({}, params=np.zeros(N)), "the data set 'params' is .*expected a number above 0")
    of_initial_conditions = np.arange(2 * N).reshape(N, 2)
    path = written({}, name="1D_Burgers_Sols_Nu0.01.h5", params=of_initial_conditions)
    with TrajectoryFile(path) as file:
        assert file.parameter == 0.01


@pytest.mark.parametrize(
    ("name", "of"), [("rho", "ReacDiff"), ("eta", "CFD"), ("beta", "advection1d")]
)
def test_data_of_another_equation_are_refused(written, name, of):
    for attrs, data_attrs in (({name: 1.0}, {}), ({}, {name.capitalize(): 0})):
        message = f"found the attribute '{name}' of {of}, expected 'Nu' of burgers1d and no other"
        refused(written({"Nu": 0.5, **attrs}, data_attrs), message)


def test_the_name_of_another_equations_file_is_refused_too(written):
    path = written({}, name="ReacDiff_Nu0.5_Rho1.0.hdf5")
    refused(path, "its name is that of ReacDiff data, for its rho, expected data of burgers1d")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("1D_Burgers_Sols_Nu0.001", 0.001),
        ("1D_Burgers_Sols_Nu1e-3", 0.001),
        ("Nu2.5E-2_train", 0.025),
        ("Nu4_part.1", 4),
        ("Nu0.01.v2", 0.01),
        ("Nu0p01", None),
        ("Nu-0.1", None),
        ("Nu", None),
    ],
)
def test_the_value_in_a_files_name_is_read_whole_or_not_at_all(name, value):
    assert EQUATIONS["burgers1d"].value_in(name) == value


def test_whether_the_name_alone_tells_the_parameter_is_known(written):
    for attrs, is_named in (({"Nu": 0.002}, False), ({}, True)):
        with TrajectoryFile(written(attrs, name="Sols_Nu2e-3.h5")) as file:
            assert (file.parameter, file.is_named) == (0.002, is_named)
    refused(written({}, name="Sols_Nu0.h5"), "ν in the file's name is 0.0, expected a number above")


@pytest.mark.parametrize(
    ("name", "attrs", "data_sets", "is_named"),
    [
        ("a.h5", {}, {}, True),
        ("Sols_Nu2e-3.h5", {}, {}, True),
        ("Sols_Nu0.1.h5", {"Nu": np.float32(0.002)}, {}, False),
        ("a.h5", {}, {"params": np.full((N, 1), 0.002)}, False),
    ],
)
def test_the_expected_parameter_is_taken_where_the_file_does_not_hold_it(
    written, name, attrs, data_sets, is_named
):
    path = written(attrs, name=name, **data_sets)
    with TrajectoryFile(path, expected_parameter=0.002) as file:
        assert (file.parameter, file.is_named) == (pytest.approx(0.002, rel=1e-6), is_named)


@pytest.mark.parametrize(
    ("name", "attrs", "data_sets", "where"),
    [
        ("a.h5", {"Nu": 0.02}, {}, "its attribute"),
        ("a.h5", {}, {"params": np.full(N, 0.02)}, "the data set params"),
        ("Sols_Nu0.02.h5", {}, {}, "the file's name"),
    ],
)
def test_a_parameter_other_than_the_expected_one_is_refused(written, name, attrs, data_sets, where):
    path = written(attrs, name=name, **data_sets)
    wanted = rf"{name}: found ν = 0.02 by {where}, and 0.01 as parameter.nu in the config"
    with pytest.raises(DataError, match=wanted):
        TrajectoryFile(path, expected_parameter=0.01)
    path = written({"Nu": 0.01, "rho": 1})
    with pytest.raises(DataError, match="found the attribute 'rho' of ReacDiff"):
        TrajectoryFile(path, expected_parameter=0.01)


@pytest.mark.parametrize("times", [["a"] * T, np.full(T, np.nan), np.arange(T) * 0.0])
def test_times_that_are_no_times_are_refused(written, times):
    refused(written({"Nu": 1}, times=times), "t-coordinate (holds object|is not evenly)")
