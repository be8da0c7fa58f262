import math
import shutil

import h5py
import numpy as np
import pytest
import torch

from ups.data.pdebench import TrajectoryFile
from ups.errors import ShapeError
from ups.latents.encode import PatchEncoder, fit_encoder


@pytest.fixture
def train_file(tiny_data):
    with TrajectoryFile(tiny_data / "burgers1d_train.h5") as file:
        yield file


@pytest.fixture
def fitted(tiny_config, train_file):
    """`fitted(**overrides)`: the encoder that the train file gives."""
    return lambda **overrides: fit_encoder(tiny_config(**overrides), [train_file])


@pytest.mark.parametrize("dim", [32, 48])
def test_from_as_many_channels_as_points_the_basis_is_orthonormal_and_nothing_lost(
    fitted, train_file, dim
):
    encoder = fitted(latent__dim=dim)  # a patch has 32 points
    frames = torch.from_numpy(train_file.read(0, 3))
    latents = encoder.encode(frames)
    assert latents.shape == (3, 41, 8, dim)
    assert torch.allclose(encoder.decode(latents), frames, atol=1e-5)
    assert torch.allclose(encoder.weight_PD @ encoder.weight_PD.T, torch.eye(32), atol=1e-5)


def test_encoding_into_a_buffer_gives_the_same_latents_there(fitted, train_file):
    encoder = fitted()
    frames = torch.from_numpy(train_file.read(0, 3))
    latents = encoder.encode(frames)
    buffer = torch.full_like(latents, torch.nan)
    assert encoder.encode(frames, out=buffer).data_ptr() == buffer.data_ptr()
    assert torch.equal(buffer, latents)


def test_fewer_orthonormal_channels_keep_the_mean_and_what_no_others_could_keep_better(
    fitted, train_file
):
    encoder = fitted(latent__dim=3, encoder__fit_trajectories=20)
    assert torch.allclose(encoder.weight_PD.T @ encoder.weight_PD, torch.eye(3), atol=1e-5)
    frames = torch.from_numpy(train_file.read(0, 20)[:, ::8])  # what it was fitted on
    patches = ((frames - encoder.mean) / encoder.std).reshape(-1, 32).double()
    left = torch.linalg.svdvals(patches - patches.mean(1, keepdim=True))[2:].square().sum()
    lost = ((encoder.decode(encoder.encode(frames)) - frames) / encoder.std).double().square().sum()
    assert lost.item() == pytest.approx(left.item(), rel=1e-3)


@pytest.mark.parametrize("dim", [1, 3, 32, 40])
def test_the_first_channel_is_the_mean_of_the_patch(fitted, train_file, dim):
    encoder = fitted(latent__dim=dim)
    frames = torch.from_numpy(train_file.read(0, 2))
    means = (frames.unflatten(-1, (-1, 32)).mean(-1) - encoder.mean) / encoder.std
    assert torch.allclose(encoder.encode(frames)[..., 0], means * 32**0.5, atol=1e-5)


def test_identity_keeps_the_fields_to_the_bit(fitted, train_file):
    frames = torch.from_numpy(train_file.read(0, 2))
    for tokens, dim in ((8, 32), (256, 1)):
        encoder = fitted(encoder__kind="identity", latent__tokens=tokens, latent__dim=dim)
        latents = encoder.encode(frames)
        assert torch.equal(latents, frames.unflatten(-1, (tokens, dim)))
        assert torch.equal(encoder.decode(latents), frames)


def test_the_fit_is_the_same_every_time_and_the_manifest_holds_it_to_the_bit(fitted):
    encoder, again = (fitted() for _ in range(2))
    for other in (again, PatchEncoder.from_manifest(encoder.to_manifest())):
        assert torch.equal(other.weight_PD, encoder.weight_PD)
        assert (other.mean, other.std) == (encoder.mean, encoder.std)


def test_the_fit_takes_the_same_saved_frames_whatever_is_encoded(tiny_config, tiny_data, fitted):
    strides = {"encoder__t_stride": 4}
    with TrajectoryFile(tiny_data / "burgers1d_train.h5", strides=(4, 1)) as every_fourth:
        encoder = fit_encoder(tiny_config(**strides), [every_fourth])
    assert torch.equal(encoder.weight_PD, fitted().weight_PD)


def test_the_seed_chooses_what_is_fitted(fitted):
    few = {"encoder__fit_trajectories": 3}
    stds = [fitted(**few, encoder__fit_seed=seed).std for seed in (0, 0, 1)]
    assert stds[0] == stds[1] != stds[2]


def test_normalised_latents_have_unit_mean_square(fitted, train_file):
    encoder = fitted(latent__dim=32, encoder__fit_trajectories=20)
    latents = encoder.encode(torch.from_numpy(train_file.read(0, 20)[:, ::8]))
    assert latents.square().mean().item() == pytest.approx(1, abs=1e-3)


def test_a_grid_that_patches_do_not_fill_is_refused(fitted):
    with pytest.raises(ShapeError, match="100 points, not a multiple of 32"):
        fitted().encode(torch.from_numpy(np.zeros((1, 100), np.float32)))


def test_every_shard_of_train_has_its_part_in_the_fit(tiny_config, tiny_data, train_file, tmp_path):
    path = tmp_path / "scaled.h5"
    shutil.copy(tiny_data / "burgers1d_train.h5", path)
    with h5py.File(path, "r+") as file:
        file["tensor"][...] *= 3
    with TrajectoryFile(path) as scaled:
        alone = fit_encoder(tiny_config(), [train_file])
        together = fit_encoder(tiny_config(), [train_file, scaled])
    assert together.mean == pytest.approx(2 * alone.mean, rel=1e-3)
    assert together.std == pytest.approx(math.sqrt(5 * alone.std**2 + alone.mean**2), rel=1e-3)
