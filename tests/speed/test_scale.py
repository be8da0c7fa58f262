"""The simulation of many GPUs: its arithmetic, and that the page shows its figures."""

from dataclasses import replace

import pytest

from speed import scale
from speed.scale import GBIT, Machines, simulate
from ups import PROJECT_DIR
from ups.config import load_config


@pytest.fixture(scope="module")
def config():
    return load_config(scale.CONFIG)


def test_a_first_epoch_is_what_a_clock_that_goes_from_window_to_window_says(config):
    slow = Machines(link_bytes_s=0.4 * GBIT, num_gpus=2)
    found = simulate(config, slow, 3e9, from_latents=False)
    row_bytes = scale.FRAMES * scale.POINTS * scale.FIELD_BYTES
    num = round(3e9 / row_bytes)
    sizes, last_turns = scale.windows(num, config.training.seed)
    assert sizes.sum() == num
    row_s = scale.step(config, slow)[0] * scale.pairs_of_a_row(config) / 512
    clock_s = worked_s = 0.0
    for size, turn in zip(sizes, last_turns, strict=True):
        chunk_s = scale.CHUNK_ROWS * row_bytes / slow.link_bytes_s
        clock_s = max(clock_s, slow.first_batch_s + (turn + 1) * chunk_s) + size * row_s
        worked_s += size * row_s
    assert found.first_epoch_s == pytest.approx(clock_s)
    assert found.idle_gpu_s == pytest.approx(2 * (clock_s - worked_s))
    assert found.fetched_bytes == num * row_bytes
    assert found.bound == "link"


def test_the_first_step_waits_for_no_size_until_memory_has_no_room(config):
    machine = Machines(link_bytes_s=GBIT)
    small, large, too_large = (
        simulate(config, machine, num_bytes, from_latents=False).ttfs_s
        for num_bytes in (2e9, 1e12, 1e13)
    )
    assert small == pytest.approx(large)
    assert small == pytest.approx(2.1, abs=0.1), "as measured through the deployment, near enough"
    assert too_large > 1e13 / GBIT


def test_more_machines_help_only_where_gradients_cross_faster_than_steps_end(config):
    def later_epoch_s(num_gpus, between):
        machines = replace(Machines(), num_gpus=num_gpus, between_bytes_s=between * GBIT)
        return simulate(config, machines, 1e11, from_latents=True).later_epoch_s

    assert later_epoch_s(64, 10) > later_epoch_s(8, 10)
    assert later_epoch_s(64, 400) < later_epoch_s(8, 400), "a little, at eight times the price"


def test_the_page_shows_what_the_simulation_says(monkeypatch, capsys):
    page = (PROJECT_DIR / "docs" / "scale.md").read_text()
    monkeypatch.setattr(scale, "SIZES", {k: v for k, v in scale.SIZES.items() if v < 1e12})
    for arguments, num_gpus in (([], ""), (["--between", "400"], "64")):
        scale.main(arguments)
        rows = [r for r in capsys.readouterr().out.splitlines() if f"| {num_gpus}" in r]
        assert len(rows) == (4 if num_gpus else 13)
        assert all(row in page for row in rows)
