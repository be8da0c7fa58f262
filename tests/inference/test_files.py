"""A file is predicted from and written in PDEBench's layout."""

import h5py
import numpy as np
import pytest
import torch

import ups
from ups.errors import DataError, InputError, ShapeError
from ups.inference.files import predict_file


@pytest.fixture
def operator(tiny_config, saved):
    return ups.load(saved(tiny_config()), "cpu")


@pytest.fixture
def write(tmp_path):
    """`write(u, **attributes)`: trajectories as somebody else's tool would write them."""

    def make(u, dt=0.01, **attributes):
        path = tmp_path / "given.h5"
        with h5py.File(path, "w") as file:
            file["tensor"] = u
            file["x-coordinate"] = np.linspace(0, 1, u.shape[2], endpoint=False, dtype="f4")
            file["t-coordinate"] = 0.5 + dt * np.arange(u.shape[1] + 1, dtype="f4")
            file.attrs.update(attributes)
        return path

    return make


@pytest.fixture
def u(tiny_data):
    with h5py.File(tiny_data / "burgers1d_test.h5") as file:
        return file["tensor"][()]


def read_as_pdebench(path):
    """What `FNODatasetSingle` of PDEBench makes of a file: (N, X, T, 1) and the grid."""
    with h5py.File(path, "r") as file:
        keys = sorted(file.keys())
        assert "tensor" in keys
        data = np.transpose(np.array(file["tensor"], dtype=np.float32)[:, :, :], (0, 2, 1))
        return data[:, :, :, None], np.array(file["x-coordinate"], dtype=np.float32)


def predict(operator, path, tmp_path, given=None, **more):
    return predict_file(operator, path, tmp_path / "out.h5", parameter=given or {}, **more)


def test_a_file_is_predicted_to_its_end_and_compared(operator, write, u, tmp_path):
    done, seen = write(u, Nu=0.02), []
    done = predict(operator, done, tmp_path, progress=lambda *at: seen.append(at))
    expected = operator.predict(u[:, 0], nu=0.02, steps=10)
    data, grid = read_as_pdebench(done.output)
    assert data.shape == (6, 256, 11, 1)
    assert np.array_equal(data[:, :, 0, 0], u[:, 0])
    assert data[:, :, 1:, 0].transpose(0, 2, 1) == pytest.approx(expected, abs=1e-6)
    assert grid == pytest.approx(np.arange(256) / 256)
    with h5py.File(done.output) as file:
        assert file["t-coordinate"][()] == pytest.approx(0.5 + 0.04 * np.arange(12))
        assert file.attrs["Nu"] == 0.02
    truth = u[:, 4::4]
    error = np.linalg.norm(expected - truth, axis=2) / np.linalg.norm(truth, axis=2)
    assert done.nrmse == pytest.approx(error.mean(), rel=1e-4)
    assert (done.num_steps, done.step_dt, done.given_frames) == (10, 0.04, 1)
    assert seen == [(6, 6)]


def test_what_was_written_is_predicted_from_again(operator, write, u, tmp_path):
    first = predict(operator, write(u[:, :1], Nu=0.02), tmp_path, steps=2)
    assert first.nrmse is None
    again = predict_file(operator, first.output, tmp_path / "again.h5", parameter={})
    assert again.num_steps == 2
    assert again.nrmse == pytest.approx(0, abs=1e-5)


def test_given_frames_are_taken_a_step_apart(tiny_config, saved, write, u, tmp_path):
    operator = ups.load(saved(tiny_config(operator__history=3, encoder__x_stride=2)), "cpu")
    done = predict(operator, write(u), tmp_path, {"nu": 0.02}, steps=2, picture=tmp_path / "p.png")
    with h5py.File(done.output) as file:
        assert np.array_equal(file["tensor"][:, :3], u[:, :12:4, ::2])
        expected = operator.predict(u[:, :12:4], nu=0.02, steps=2)
        assert file["tensor"][:, 3:] == pytest.approx(expected, abs=1e-6)
        assert file["x-coordinate"][()] == pytest.approx(np.arange(128) / 128)
    assert done.picture.stat().st_size > 10_000
    with pytest.raises(ShapeError, match=r"given.h5: found 2 frames of each .* expected 3 or more"):
        predict(operator, write(u[:, :5]), tmp_path, {"nu": 1}, steps=1, overwrite=True)
    with pytest.raises(InputError, match="found frames 0.03 apart, expected a whole part of the"):
        predict(operator, write(u, dt=0.03), tmp_path, {"nu": 1}, steps=1, overwrite=True)


def test_a_field_alone_is_enough_and_is_drawn(operator, write, u, tmp_path):
    path = write(u[:2, :1].astype("f8"))
    done = predict(operator, path, tmp_path, {"nu": 0.02}, steps=2, picture=tmp_path / "p.png")
    assert (done.nrmse, done.parameter) == (None, 0.02)
    assert done.picture.stat().st_size > 10_000
    odd = write(u, dt=0.03, Nu=0.02)  # of frames that fit no step, the first is read alone
    assert predict(operator, odd, tmp_path, steps=1, overwrite=True).nrmse is None
    with pytest.raises(InputError, match=r"found 1 frames .* and none to predict up to: give --st"):
        predict(operator, odd, tmp_path, overwrite=True)


def test_of_several_equations_the_files_attribute_tells(
    mixed_config, saved, mixed_data, write, u, tmp_path
):
    operator = ups.load(saved(mixed_config()), "cpu")
    done = predict(operator, mixed_data / "advection1d_test.h5", tmp_path, steps=1)
    assert (done.equation, done.parameter) == ("advection1d", 0.5)
    with pytest.raises(InputError, match="which equation it is: give --nu or --beta"):
        predict(operator, write(u), tmp_path, steps=1, overwrite=True)


@pytest.mark.parametrize(
    ("change", "given", "error", "message"),
    [
        (lambda u: u[:, :, ::2], {"nu": 0.02}, ShapeError, "found 128 grid points, expected the"),
        (lambda u: u[0], {"nu": 0.02}, DataError, r"has shape \(41, 256\), expected"),
        (lambda u: u.astype(int), {"nu": 0.02}, DataError, "holds int64, expected real numbers"),
        (lambda u: u * np.nan, {"nu": 0.02}, DataError, "trajectory 0 has NaN or infinite values"),
        (lambda u: u, {}, DataError, "no attribute 'Nu' on the file"),
        (lambda u: u, {"beta": 1.0}, InputError, "found beta, expected nu=…"),
    ],
)
def test_a_file_that_cannot_be_predicted_from_leaves_nothing(
    operator, write, u, tmp_path, change, given, error, message
):
    u = change(u)
    path = tmp_path / "given.h5"
    if u.ndim == 3:
        write(u)
    else:
        with h5py.File(path, "w") as file:
            file["tensor"] = u
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=message):
        predict(operator, path, tmp_path, given, steps=1)
    assert sorted(tmp_path.iterdir()) == before


def test_nothing_is_overwritten_unless_told_and_never_what_is_read(operator, write, u, tmp_path):
    path = write(u, Nu=0.02)
    (tmp_path / "out.h5").write_bytes(b"mine")
    with pytest.raises(InputError, match="out.h5 is there already: name another file, or give --f"):
        predict(operator, path, tmp_path)
    assert (tmp_path / "out.h5").read_bytes() == b"mine"
    assert predict(operator, path, tmp_path, overwrite=True).num_steps == 10
    with pytest.raises(InputError, match="given.h5 is the file to predict from"):
        predict_file(operator, path, path, parameter={}, overwrite=True)


def test_a_prediction_that_diverges_is_said(operator, write, u, tmp_path, caplog):
    for weight in operator.model.parameters():
        weight.data *= 1e9
    predict(operator, write(u, Nu=0.02), tmp_path)
    assert "from trajectory 0 on, what is predicted is not finite" in caplog.text
    assert torch.is_tensor(operator.predict(torch.from_numpy(u[:, 0]), nu=0.02, steps=10))
    assert "the prediction is not finite" in caplog.text
