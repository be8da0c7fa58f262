"""Sweeps: their combinations, their runs on a stand-in of the server, and what comes of them."""

import json
import re
import time
from types import SimpleNamespace
from uuid import UUID, uuid5

import httpx
import pytest

from deployments import sweep
from deployments.cli import sweep as command
from deployments.follow import TRAIN
from ups.errors import ConfigError
from ups.runs.breakdown import Breakdown
from ups.runs.folder import open_run_dir
from ups.runs.record import recorded

NAMESPACE = UUID(int=7)


class Server:
    """Stands in for Prefect's: runs one after the other, a poll to begin and one to end."""

    def __init__(self):
        self.runs, self.bodies, self.fails = {}, {}, ()
        self.on_poll = lambda num: None
        self.num_polls = 0

    def answer(self, request):
        path, body = request.url.path, json.loads(request.content or b"{}")
        if path == f"/api/deployments/name/{TRAIN}":
            return httpx.Response(200, json={"id": "d"})
        if path == "/api/deployments/d/create_flow_run":
            number = str(uuid5(NAMESPACE, body["idempotency_key"]))
            if number not in self.runs:
                self.bodies[number] = body
                self.runs[number] = {"id": number, "state": state("SCHEDULED")}
            return httpx.Response(201, json=self.runs[number])
        if path == "/api/flow_runs/filter":
            (tag,) = body["flow_runs"]["tags"]["all_"]
            found = [run for n, run in self.runs.items() if self.bodies[n]["tags"] == [tag]]
            return httpx.Response(200, json=found)
        (number,) = re.findall(r"^/api/flow_runs/(.+)/set_state$", path)
        assert body["state"]["type"] == "CANCELLING"  # else one that just begins would go on
        is_waiting = self.runs[number]["state"]["type"] == "SCHEDULED"
        self.runs[number]["state"] = state("CANCELLED") if is_waiting else body["state"]
        return httpx.Response(200, json={"status": "REJECT", "state": self.runs[number]["state"]})

    def states(self):
        return [run["state"]["type"] for run in self.runs.values()]

    def poll(self, _seconds):
        """Time goes by: who runs ends, and the next begins."""
        self.num_polls += 1
        self.on_poll(self.num_polls)
        for number, run in self.runs.items():
            if run["state"]["type"] == "RUNNING":
                ends = "FAILED" if number in self.fails else "COMPLETED"
                run["state"] = state(ends, "DataError: not finite" if ends == "FAILED" else "")
                self.leave(number, self.bodies[number]["parameters"]["overrides"])
        if "RUNNING" not in self.states():
            waiting = (r for r in self.runs.values() if r["state"]["type"] == "SCHEDULED")
            if (first := next(waiting, None)) is not None:
                first["state"] = state("RUNNING")


def state(kind, message=None):
    return {"type": kind, "name": kind.capitalize(), "message": message}


@pytest.fixture
def swept(tiny_config, ups_on, monkeypatch):
    """`swept(*words)`: `ups sweep` of the tiny config on `swept.server`."""
    config, server = tiny_config(), Server()

    def leave(number, overrides):
        run_dir = open_run_dir(config, UUID(number))
        with recorded(run_dir, flow_run_id=number, changed=overrides):
            score = 1 / overrides["latent.dim"] + overrides.get("training.seed", 0) / 100
            Breakdown(
                run=run_dir.name, config="smoke", config_hash=None, start_mode="warm",
                triggered_at=0, ttfs_s=1.5, until_s=1.5, unaccounted_s=0, cost_usd=0,
                cache_reused=False, phases=(), spans=(), metrics={}, nrmse_rollout=score,
            ).save(run_dir)  # fmt: skip

    server.leave = leave
    monkeypatch.setattr(command, "bring_up", lambda *_, **__: None)
    clock = SimpleNamespace(**{**vars(time), "sleep": server.poll})
    monkeypatch.setattr(sweep, "time", clock)
    transport = httpx.MockTransport(server.answer)
    monkeypatch.setattr(
        sweep, "_client", lambda _: httpx.Client(transport=transport, base_url="http://test/api")
    )
    run = ups_on(config)

    def sweep_(*words):
        return run("sweep", "CONFIG", "--tag", "one", *words)

    sweep_.server, sweep_.runs_dir = server, config.runs_dir
    return sweep_


def test_values_are_yaml_as_in_a_list():
    given = ["latent.dim=16,32", "a.b=[1, 2],[3]", "c=null, x", "training.seed=1"]
    assert sweep.parse_axes(given) == {
        "latent.dim": [16, 32],
        "a.b": [[1, 2], [3]],
        "c": [None, "x"],
        "training.seed": [1],
    }


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (["latent.dim"], "found 'latent.dim', expected KEY=VALUE"),
        (["=1"], "found '=1', expected KEY=VALUE"),
        (["latent.dim="], "latent.dim: found no value"),
        (["latent.dim=1,2,1"], "latent.dim: 1 stands there twice"),
        (["latent.dim=1", "latent.dim=2"], "latent.dim: given twice"),
        (["latent.dim=[1"], r"latent.dim: found '\[1', expected KEY=VALUE,VALUE"),
    ],
)
def test_settings_that_are_no_lists_of_values_are_refused(given, fault, swept):
    with pytest.raises(ConfigError, match=fault):
        sweep.parse_axes(given)
    code, _, errors = swept(*(word for text in given for word in ("--set", text)))
    assert code == 2, errors
    assert swept.server.runs == {}


def test_a_sweep_is_every_combination_and_each_is_checked_before_one_begins(swept):
    found = sweep.points("smoke", {"latent.dim": [16, 32], "training.seed": [0, 1]})
    assert [point.title for point in found] == [
        f"smoke latent.dim={dim} seed={seed}" for dim in (16, 32) for seed in (0, 1)
    ]
    assert [(point.config.latent.dim, point.config.training.seed) for point in found] == [
        (16, 0), (16, 1), (32, 0), (32, 1),
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"found 102 runs \(51 of a × 2 of b\), expected at most"):
        sweep.points("smoke", {"a": list(range(51)), "b": [0, 1]})
    code, _, errors = swept("--set", "latent.dim=8,-1")
    assert (code, swept.server.runs, "latent.dim" in errors) == (1, {}, True), errors


def test_runs_have_one_tag_and_come_to_a_table_and_a_page(swept):
    words = ("--set", "latent.dim=8,16", "--set", "training.seed=0,1")
    code, output, errors = swept(*words)
    assert code == 0, output + errors
    bodies = list(swept.server.bodies.values())
    assert {tuple(body["tags"]) for body in bodies} == {("one",)}
    assert [body["name"] for body in bodies][:2] == [f"smoke latent.dim=8 seed={s}" for s in "01"]
    assert bodies[3]["parameters"]["overrides"] == {"latent.dim": 16, "training.seed": 1}
    ended = re.findall(r"latent.dim=(\d+) seed=(\d) +Completed +(\d) of 4", output)
    assert ended == [("8", "0", "1"), ("8", "1", "2"), ("16", "0", "3"), ("16", "1", "4")]
    assert re.search(r"\b16 +1 +Completed +1\.50 s +0\.0725 *\n", output), output
    assert re.search(r"\b8 +2 +0\.1300 +0\.1250 +0\.1350 *\n", output), output  # over the seeds
    page = swept.runs_dir / "one.html"
    assert f"the page: {page}" in output
    assert page.read_text().count("smoke latent.dim=16 seed=1") >= 3

    code, output, _ = swept(*words, "--json")  # again: the runs of that tag are found
    found = json.loads(output)
    assert (code, len(swept.server.runs), len(found["runs"])) == (0, 4, 4)
    assert found["runs"][3]["summary"]["nrmse_rollout"] == pytest.approx(0.0725)


def test_ctrl_c_cancels_what_waits_and_leaves_what_runs(swept):
    def interrupt(num):
        if num == 3:
            raise KeyboardInterrupt

    swept.server.on_poll = interrupt
    code, output, errors = swept("--set", "latent.dim=4,8,16,32")
    assert code == 130, output + errors
    assert swept.server.states() == ["COMPLETED", "RUNNING", "CANCELLED", "CANCELLED"]
    assert "cancelled what had not begun: 2 of 4 runs" in errors
    running = list(swept.server.runs)[1]
    assert f"prefect flow-run cancel {running}" in errors
    assert re.search(r"\b4 +Completed +1\.50 s +0\.2500 *\n", output), output
    assert re.search(r"\b32 +Cancelled +– +–", output), output


def test_ctrl_c_while_runs_are_made_leaves_none_waiting(swept, monkeypatch):
    create, made = sweep.api.create_run, []

    def interrupted(*arguments, **options):
        made.append(create(*arguments, **options))
        if len(made) == 2:  # it is made, and nobody here knows its id
            raise KeyboardInterrupt
        return made[-1]

    monkeypatch.setattr(sweep.api, "create_run", interrupted)
    code, output, errors = swept("--set", "latent.dim=4,8,16")
    assert code == 130, output + errors
    assert swept.server.states() == ["CANCELLED", "CANCELLED"]


def test_a_server_that_is_busy_is_asked_again_and_one_that_refuses_is_not(swept, monkeypatch):
    create, asked = sweep.api.create_run, []
    request = httpx.Request("POST", "http://test/api")

    def busy(*arguments, **options):
        asked.append(options["name"])
        if len(asked) in (1, 2, 4):
            answer = httpx.Response(422 if refuses else 503, request=request)
            raise httpx.HTTPStatusError("no", request=request, response=answer)
        return create(*arguments, **options)

    monkeypatch.setattr(sweep.api, "create_run", busy)
    refuses = False
    code, output, errors = swept("--set", "latent.dim=4,8")
    assert (code, len(asked), len(swept.server.runs)) == (0, 5, 2), output + errors
    refuses = True
    asked.clear()
    code, _, errors = swept("--set", "latent.dim=16,32")
    assert (code, len(asked), "could not be made" in errors) == (1, 1, True), errors


def test_a_run_that_fails_does_not_end_the_sweep_and_its_reason_is_said(swept):
    words = ("--set", "latent.dim=8,16")
    key = f"one {json.dumps([str(swept.runs_dir.parent / 'tiny.yaml'), {'latent.dim': 8}])}"
    swept.server.fails = {str(uuid5(NAMESPACE, key))}
    code, output, errors = swept(*words)
    assert swept.server.states() == ["FAILED", "COMPLETED"]
    assert (code, "error: smoke latent.dim=8: DataError: not finite" in errors) == (1, True), errors
    assert re.search(r"\b16 +Completed", output), output


def test_after_the_timeout_the_sweep_goes_on_and_can_be_followed_again(swept):
    code, _, errors = swept("--set", "latent.dim=8,16", "--timeout", "0")
    assert (code, "same command and --tag one" in errors) == (124, True), errors
    assert "CANCELLED" not in swept.server.states()
    code, output, _ = swept("--set", "latent.dim=8,16")
    assert (code, len(swept.server.runs)) == (0, 2), output
