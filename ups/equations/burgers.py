"""Viscous Burgers: u_t + (u²/2)_x = (ν/π) u_xx on [0, 1], periodic.

The data follow PDEBench's description (Takamoto et al. 2022): the same equation, grid, saved times
and random initial conditions. The method is another one: Fourier modes, 2/3 de-aliased, classical
Runge–Kutta with the diffusion integrated exactly, float32. On PDEBench's finite-volume grid that is
more accurate and faster.

Grid: u is the value at the cell centres x_i = (i + 1/2) / X.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ups.equations.equation import Equation

if TYPE_CHECKING:
    from torch import Tensor

CFL = 2.6  # RK4 is stable up to 2√2 for h · max|u| · (largest wave number kept)


def scale(nu_N: Tensor) -> Tensor:
    """ν from 0.001 to 1 → a feature of order one."""
    return nu_N.log10() / 2 + 1


def choose_internal_points(nu: float, grid_points: int) -> int:
    """Points that resolve the shocks, whose width goes with ν; 512 (ν = 0.01) to 2048 (ν ≤ 0.002).

    A power of two below the grid, else a multiple of it.
    """
    needed = max(512.0, min(4 / nu, max(2048.0, 2 / nu)))
    points = 1 << math.ceil(math.log2(needed))
    return points if points <= grid_points else grid_points * math.ceil(points / grid_points)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@_one_thread()
def solve(
    u0_NX: Tensor,
    nu: float,
    t_T: Tensor,
    *,
    internal_points: int | None = None,
    device: str = "cpu",
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """Integrate each trajectory from t_T[0] and save it at the times t_T.

    Each trajectory takes its own number of steps from one saved time to the next, from its own
    max|u| (which never grows), so its result does not depend on what else is in the batch. On the
    CPU it takes one core: the arrays are too small for more to pay, and on a busy machine torch's
    threads, waiting for each other at each operation, made it 20 times slower.

    Args:
        u0_NX: (N, X), at the cell centres.
        nu: ν > 0; the diffusion coefficient is ν/π.
        t_T: (T,), increasing.
        internal_points: M; default from ν. Up to X, or a multiple of X.
        progress: takes the share that is done, after each saved time; what it raises stops.
    Returns:
        (N, T, X) float32 on `device`; [:, 0] is u0.
    Raises:
        ValueError: u0 is not 2-D or t not 1-D, or M does not go with X.
    Accuracy:
        Mean relative L2 against Cole–Hopf, at 1024 points: 3e-6 at ν = 0.01, where float32 is
        the larger part, 1e-5 at 0.002, 8e-5 at 0.001 (single frames up to 1e-3).
    """
    import torch

    if u0_NX.ndim != 2 or t_T.ndim != 1:
        raise ValueError(
            f"found u0 {tuple(u0_NX.shape)} and t {tuple(t_T.shape)}, expected (N, X) and (T,)"
        )
    num, grid = u0_NX.shape
    points = internal_points or choose_internal_points(nu, grid)
    if points > grid and points % grid:
        raise ValueError(
            f"internal_points {points}: expected at most the grid's {grid}, or a multiple of it"
        )
    spectral = _Spectral(points, nu, device)
    u_NX = u0_NX.to(device)
    uhat_NK = spectral.from_grid(u_NX.double())
    out_NTX = torch.empty(num, len(t_T), grid, dtype=torch.float32, device=device)
    out_NTX[:, 0] = u_NX
    times = t_T.tolist()
    peak_N = u_NX.abs().amax(dim=1).double().cpu()
    for frame in range(1, len(times)):
        interval = round(times[frame] - times[frame - 1], 12)
        steps_N = [_round_up(s) for s in (interval * spectral.k_max * peak_N / CFL).tolist()]
        for count in sorted(set(steps_N)):
            rows = torch.tensor([i for i, n in enumerate(steps_N) if n == count], device=device)
            uhat_NK[rows] = spectral.advance(uhat_NK[rows], interval, count)
        out_NTX[:, frame] = u_NX = spectral.to_grid(uhat_NK, grid)
        peak_N = torch.minimum(peak_N, u_NX.abs().amax(dim=1).double().cpu())
        if progress is not None:
            progress(frame / (len(times) - 1))
    return out_NTX


def solve_draws(
    draws: Tensor,
    nu: float,
    t_T: Tensor,
    grid_points: int,
    *,
    device: str = "cpu",
    progress: Callable[[float], None] | None = None,
) -> Tensor:
    """`solve` from random initial conditions: see `Solve`."""
    from ups.equations.initial_conditions import cell_centres, evaluate

    u0_NX = evaluate(draws, cell_centres(grid_points))
    return solve(u0_NX, nu, t_T, device=device, progress=progress)


class _Spectral:
    """The equation for the Fourier coefficients of M points, of which K = M/3 are kept.

    Source: integrating-factor RK4 as in Trefethen, Spectral Methods in MATLAB (2000), ch. 10.
    """

    def __init__(self, points: int, nu: float, device: str) -> None:
        import torch

        self.points, self.device = points, device
        self.num_modes = (points - 1) // 3 + 1
        self.k = 2 * math.pi * torch.arange(self.num_modes, dtype=torch.float64, device=device)
        self.k_max = 2 * math.pi * (self.num_modes - 1)
        self.decay = nu / math.pi * self.k**2
        self._factors: dict[float, tuple[Tensor, Tensor, Tensor]] = {}

    def from_grid(self, u_NX: Tensor) -> Tensor:
        """(N, X) float64 -> (N, K) complex64; the sawtooth of period 2/X is dropped."""
        import torch

        grid = u_NX.shape[1]
        uhat_NK = torch.zeros(len(u_NX), self.num_modes, dtype=torch.complex64, device=self.device)
        common = min(self.num_modes, (grid + 1) // 2)
        uhat_NK[:, :common] = torch.fft.rfft(u_NX)[:, :common] * (self.points / grid)
        return uhat_NK

    def to_grid(self, uhat_NK: Tensor, grid: int) -> Tensor:
        """Values at the grid's points, which are also internal points where those are more."""
        import torch

        fine = max(grid, self.points)
        u: Tensor = torch.fft.irfft(uhat_NK, n=fine)[:, :: fine // grid] * (fine / self.points)
        return u

    def advance(self, uhat_NK: Tensor, interval: float, num_steps: int) -> Tensor:
        """`interval` further, in steps of equal length."""
        import torch

        half_2K, whole_2K, convect_K = self._factors_of(interval / num_steps)

        def slope(v_N2K: Tensor) -> Tensor:
            """h · (−u u_x), from and to coefficients seen as pairs of reals."""
            uhat_NK = torch.view_as_complex(v_N2K.view(len(v_N2K), -1, 2))
            u_NM = torch.fft.irfft(uhat_NK, n=self.points)
            square_NK = torch.fft.rfft(u_NM.square_())[:, : self.num_modes]
            return torch.view_as_real(square_NK * convect_K).flatten(1)

        v = torch.view_as_real(uhat_NK).flatten(1)
        for _ in range(num_steps):
            at_half, at_whole = v * half_2K, v * whole_2K
            a = slope(v)
            b = slope(torch.addcmul(at_half, a, half_2K, value=0.5))
            c = slope(torch.add(at_half, b, alpha=0.5))
            d = slope(torch.addcmul(at_whole, c, half_2K))
            v = at_whole.addcmul_(a, whole_2K, value=1 / 6)
            v.addcmul_(b.add_(c), half_2K, value=1 / 3).add_(d, alpha=1 / 6)
        return torch.view_as_complex(v.view(len(v), -1, 2))

    def _factors_of(self, h: float) -> tuple[Tensor, Tensor, Tensor]:
        """exp(−decay h/2) and exp(−decay h), twice each for pairs; −i k h / 2 of (u²/2)_x."""
        import torch

        if h not in self._factors:
            half, whole = (torch.exp(-self.decay * x).repeat_interleave(2) for x in (h / 2, h))
            convect = torch.complex(torch.zeros_like(self.k), -self.k * h / 2)
            self._factors[h] = (half.float(), whole.float(), convect.to(torch.complex64))
        return self._factors[h]


def _round_up(steps: float) -> int:
    """To 1, 2, 3, 4, 6, 8, 12, 16, …: few distinct counts, so trajectories advance in groups."""
    power = 1 << max(0, math.ceil(steps) - 1).bit_length()
    return power * 3 // 4 if power >= 4 and steps <= power * 3 // 4 else power


BURGERS = Equation(
    name="burgers1d",
    formula="u_t + (u²/2)_x = (ν/π) u_xx",
    parameter="nu",
    symbol="ν",
    attribute="Nu",
    conserves_mean=True,
    scale=scale,
    solve=solve_draws,
)
