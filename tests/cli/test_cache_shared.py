"""`ups cache push | pull`, `list --remote` and `prune --remote`, as typed."""

import json

import pytest

from tests.documented import commands_run_by
from ups.latents import store


@pytest.fixture
def ups(ups_on, store_env, bucket_sources, tiny_config, tmp_path, monkeypatch):
    """`ups("list", …)`: exit code, output, errors; with the tiny bucket and what is shared."""
    monkeypatch.delenv("PDEBENCH_ROOT", raising=False)
    call = ups_on(
        tiny_config(
            data__sources=bucket_sources,
            data__root=str(tmp_path / "data"),
            cache__remote=f"s3://tiny/{tmp_path.name}",
        )
    )
    return lambda *arguments: call("cache", *arguments)


def test_what_is_built_here_is_listed_there_and_pulled_elsewhere_without_the_data(
    ups, tmp_path, examples_that_need, request
):
    code, _, said = ups("build", "CONFIG")
    assert code == 0, said
    assert "pushed, 271 KB" in said
    (pointer,) = (tmp_path / "cache").glob("*/CURRENT")
    key = pointer.parent.name
    code, shown, _ = ups("push", "CONFIG")
    assert (code, shown.startswith(f"{key} is there already: s3://tiny/")) == (0, True)
    code, shown, _ = ups("list", "--remote", "--config", "CONFIG")
    assert code == 0
    row = " ".join(shown.split())
    assert f"{key} complete, current burgers1d ν 0.02, 8 tokens × 16, float16" in row
    code, shown, _ = ups("prune", "--remote", "--config", "CONFIG", "--older-than", "0s", "--json")
    assert (code, json.loads(shown)) == (0, [])
    for path in (tmp_path / "data").rglob("*.h5"):
        path.unlink()
    other = tmp_path / "other"
    places = ("--set", f"training.latent_cache_dir={other}")
    code, shown, _ = ups("pull", "CONFIG", key[:5], *places, "--json")
    assert code == 0
    assert json.loads(shown) == [{"config_hash": key, "num_bytes": 262400, "was_there": False}]
    assert store.valid_generation(other, key)
    assert not [*(tmp_path / "data").rglob("*.h5")]
    examples = examples_that_need("a shared cache").values()
    for line in (*examples, *commands_run_by(request.node.nodeid)):
        remote = f"s3://tiny/{tmp_path.name}"
        line = line.replace("smoke", "CONFIG").replace("s3://latents/team", remote)
        code, shown, said = ups(*line.split()[2:])
        assert code == 0, said


def test_what_is_not_there_and_a_config_that_shares_nothing_are_refused_with_the_remedy(ups):
    code, _, said = ups("pull", "CONFIG", "--set", "cache.remote=s3://tiny/nothing")
    assert code == 1
    assert "in s3://tiny/nothing/latents/: the first run that builds it pushes it" in said
    code, _, said = ups("push", "CONFIG")
    assert code == 1
    assert "build it, by `ups cache build` or a run" in said
    code, _, said = ups("pull", "CONFIG", "--set", "cache.remote=")
    assert code == 1
    assert "cache.remote: found none, expected s3://bucket/prefix" in said
    code, _, said = ups("pull", "CONFIG", "--set", "cache.remote=s3://key:secret@tiny/x")
    assert code == 1
    assert "holds credentials" in said
    assert "secret@" not in said
    code, _, said = ups("list", "--remote")
    assert code == 2
    assert "by --config" in said
