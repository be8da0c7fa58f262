"""Ways in which a run of `train-burgers` comes about on a stack of a test's own."""

import json
import os
import re
import subprocess
import time

from deployments.layout import BIN_DIR


def trigger(live, **parameters):
    deployment = live.deployment("train-burgers/train-burgers")["id"]
    body = {"parameters": {"config": str(live.config), **parameters}}
    return live.ask("POST", f"/deployments/{deployment}/create_flow_run", body)["id"]


def trigger_by_name(live, **parameters):
    """`prefect deployment run train-burgers`, as a person types it in the project's folder."""
    command = [BIN_DIR / "prefect", "deployment", "run", "train-burgers"]
    command += ["-p", f"config={live.config}"]
    for key, value in parameters.items():
        command += ["-p", f"{key}={json.dumps(value)}"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_")}
    done = subprocess.run(command, cwd=live.folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return re.search(r"UUID: ([0-9a-f-]{36})", done.stdout)[1]


def schedule(live, name, first_at, count, **parameters):
    """Deploy with `count` runs a second apart; their ids, once the scheduler has made them."""
    same = ("flow_id", "entrypoint", "path", "pull_steps", "work_pool_name", "job_variables")
    like = live.deployment("train-burgers/train-burgers")
    start = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(first_at))
    rule = f"DTSTART:{start}\nRRULE:FREQ=SECONDLY;COUNT={count}"
    body = {key: like[key] for key in same} | {"name": name, "parameters": parameters}
    body["schedules"] = [{"schedule": {"rrule": rule, "timezone": "UTC"}}]
    number = live.ask("POST", "/deployments/", body)["id"]
    only = {"deployments": {"id": {"any_": [number]}}, "sort": "START_TIME_ASC"}

    def made():
        return [run["id"] for run in live.ask("POST", "/flow_runs/filter", only)]

    live.wait(lambda: len(made()) == count)
    return made()
