"""The script of a rented machine from the clone to the finished run, on a real server and store."""

import json
import re
import sys
import time

import httpx
import pytest


def test_the_script_clones_installs_trains_and_stops_the_instance(
    machine, repository, image, package_env, bytecode, prefect_server, s3, bucket
):
    machine.images = (image,)
    packages = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    compiled = bytecode(image.parent / packages, machine.work / "env" / packages)
    machine.env = {**package_env, **s3.env, **compiled, "OMP_NUM_THREADS": "1"}
    settings = {
        "training.device": "cpu",
        "training.latent_cache_dir": f"{machine.mount}/data/latent_cache",
        "runs_dir": f"{machine.mount}/runs",
    }
    onstart = machine.onstart(
        repo=str(repository.bare),
        commit=repository.commit,
        parameters={"config": "tiny", "overrides": settings},
        api_url=prefect_server,
        auto_shutdown=True,
    )
    began = time.time()
    returncode = machine.start(onstart).wait(timeout=200)
    machine.wait_for(lambda: machine.vastai.stops)
    log = machine.log
    assert returncode == 0, log
    assert [call["argv"] for call in machine.vastai.calls] == [["stop", "instance", "4711"]]
    assert machine.canaries == []
    assert not [name for name in (s3.secret_key, machine.vastai.calls[0]["key"]) if name in log]

    # The image's torch, and no second one.
    packages = machine.work / "env" / "lib"
    assert list(packages.glob("*/site-packages/prefect"))
    assert not list(packages.glob("*/site-packages/torch*"))
    assert "torch 2.13.0 is the image's" in log

    (run_dir,) = (machine.mount / "runs").glob("*-*")
    record = json.loads((run_dir / "run.json").read_text())
    assert record["state"] == "completed"
    assert record["versions"]["torch"].startswith("2.13.0")
    assert list((machine.mount / "data" / "pdebench").rglob("*.h5"))
    assert list((machine.mount / "data" / "latent_cache").rglob("*.safetensors"))

    breakdown = json.loads((run_dir / "breakdown.json").read_text())
    rows = {row["phase"]: row for row in breakdown["phases"]}
    names = ["provision/clone", "provision/install", "provision/worker", "provision/deploy"]
    names_of_sums = ["provision", "provision/to_first_step"]
    assert [row["phase"] for row in breakdown["phases"]][:6] == [*names, *names_of_sums]
    # The worker starts while `prefect deploy` registers the flow.
    spans = {span["phase"]: span for span in breakdown["provision"]}
    worker, deploy = spans["provision/worker"], spans["provision/deploy"]
    assert worker["start"] < deploy["start"] < min(worker["end"], deploy["end"])
    covered = max(worker["end"], deploy["end"]) - spans["provision/clone"]["start"]
    assert rows["provision"]["seconds"] == pytest.approx(covered, abs=0.01)
    assert rows["provision"]["share"] is None
    assert rows["provision/install"]["seconds"] > 0.1
    begin = breakdown["provision"][0]["start"]
    end = max(span["end"] for span in breakdown["provision"])
    assert began < begin < end < breakdown["triggered_at"]
    assert breakdown["metrics"]["provision/clone_s"] == rows["provision/clone"]["seconds"]
    assert breakdown["start_mode"] == "warm"

    # What is paid for begins before the trigger.
    launched_s = rows["provision"]["seconds"] + breakdown["ttfs_s"]
    total_min = breakdown["metrics"]["startup/total_startup_time_min"]
    assert total_min * 60 == pytest.approx(launched_s)
    assert breakdown["cost_usd"] == pytest.approx(launched_s / 3600 * 1.89)
    assert breakdown["metrics"]["startup/cost_usd"] == breakdown["cost_usd"]
    assert f"(${breakdown['cost_usd']:.4f} with its provisioning at the config's price" in log

    # Script start to the end of the first optimizer step; printed with `pytest -s`.
    to_first_step_s = breakdown["metrics"]["provision/to_first_step_s"]
    first_step_at = breakdown["triggered_at"] + breakdown["ttfs_s"]
    assert to_first_step_s == rows["provision/to_first_step"]["seconds"]
    assert to_first_step_s == pytest.approx(first_step_at - begin)
    metrics = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["provision/to_first_step_s"] == to_first_step_s
    assert re.search(rf"of a rented machine +{to_first_step_s:.2f} s from its script's start", log)
    parts = ", ".join(f"{name} {rows[name]['seconds']:.2f}" for name in names)
    print(f"\nscript start → first step {to_first_step_s:.2f} s: {parts}, "
          f"then trigger → first step {breakdown['ttfs_s']:.2f}")  # fmt: skip

    with httpx.Client(base_url=prefect_server) as client:
        only = {"flow_runs": {"deployment_id": {"any_": [record["deployment"]]}}}
        (run,) = client.post("/flow_runs/filter", json=only).json()
        assert run["id"] == record["flow_run_id"]
        assert run["work_queue_name"] == "rented-4711"
        assert run["work_pool_name"] == "gpu"
        artifacts = {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}}
        assert "provision/install" in client.post("/artifacts/filter", json=artifacts).text
