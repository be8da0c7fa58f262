from datetime import UTC, datetime, timedelta

import httpx

from deployments.follow import RunLines

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(seconds):
    return (START + timedelta(seconds=seconds)).isoformat()


def state(type_, seconds):
    return {"type": type_, "name": type_.capitalize(), "timestamp": at(seconds)}


def log(number, seconds, message, name="prefect.flow_runs", level=20):
    record = {"id": str(number), "timestamp": at(seconds), "name": name, "level": level}
    return {**record, "message": message}


def client(tasks, logs):
    def answer(request):
        return httpx.Response(200, json=tasks if "task_runs" in request.url.path else logs)

    return httpx.Client(transport=httpx.MockTransport(answer), base_url="http://test")


RUN = {"id": "r", "name": "run", "state": state("RUNNING", 1), "total_run_time": 2.5}
DONE = {**RUN, "id": "t", "name": "download [train]", "state": state("COMPLETED", 4)}


def test_states_and_logs_come_once_in_the_order_in_which_they_happened():
    logs = [log(1, 2, "fetched 8 MB", name="ups.data"), log(2, 5, "epoch 1")]
    shown = RunLines(START)
    with client([DONE], logs) as api:
        lines = shown.read(api, RUN)
        assert shown.read(api, RUN) == []
    assert [line.split()[0] for line in lines] == ["1.0", "2.0", "4.0", "5.0"]
    assert lines[2].split() == ["4.0", "s", "download", "[train]", "Completed", "2.5", "s"]


def test_prefects_chatter_and_tracebacks_are_left_out():
    logs = [
        log(1, 1, "Finished in state Completed()"),
        log(2, 2, "Worker 'x' submitting flow run", name="prefect.flow_runs.worker"),
        log(3, 3, "it broke\nTraceback (most recent call last):\n  File x", level=40),
        log(4, 4, "a detail", level=10),
    ]
    with client([], logs) as api:
        lines = RunLines(START).read(api, RUN)
    assert [line.split("s  ", 1)[1] for line in lines[1:]] == ["! it broke"]
