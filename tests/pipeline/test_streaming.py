"""A streaming start: the same operator as without, whatever happens on the way."""

import pytest
import torch

from ups.latents import store
from ups.pipeline.local_run import LocalRun
from ups.progress import progress_shown
from ups.training import checkpoint


@pytest.fixture
def run(tiny_config, bucket_sources, store_env, tmp_path):
    """`run(folder, **overrides)`: train in a folder of its own; the run, which may have failed."""

    def make(folder, run_id=None, **overrides):
        place = tmp_path / folder
        config = tiny_config(
            runs_dir=str(place / "runs"),
            training__latent_cache_dir=str(place / "cache"),
            data__root=str(place / "data"),
            data__sources=bucket_sources,
            **overrides,
        )
        run = LocalRun(config, run_id, None)
        with progress_shown() as show:
            run.run(show)
        return run

    return make


def weights(run):
    return checkpoint.load(run.run_dir / "checkpoints" / "last.pt")


def test_a_streamed_run_a_warm_one_and_one_without_streaming_have_the_same_weights(
    run, monkeypatch, caplog
):
    monkeypatch.delenv("PDEBENCH_ROOT", raising=False)
    caplog.set_level("INFO", "ups")
    streamed = run("streamed", features__stream="on")
    assert "training on what is there" in caplog.text
    warm = run("streamed", features__stream="auto")
    plain = run("plain", features__stream="off")
    for other in (warm, plain):
        for part in ("model", "ema", "optimizer"):
            torch.testing.assert_close(
                weights(streamed)[part], weights(other)[part], rtol=0, atol=0
            )
    assert store.valid_generation(
        streamed.config.training.latent_cache_dir, *[streamed._state.config_hash]
    )
