"""`ups vast launch --count N` and `destroy`, with a recorder in the place of `vastai`."""

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from ups.vast.server import check_login

TWO = [
    {"id": 11, "gpu_name": "RTX 4090", "dph_total": 0.3},
    {"id": 12, "gpu_name": "H100 SXM", "dph_total": 1.9},
]
LAUNCH = ("launch", "--config", "smoke", "--auto-shutdown", "--count", "2")


@pytest.fixture
def market(vastai):
    """Two offers, and an account with enough credit for both."""
    vastai.answers("search offers", TWO)
    vastai.answers("show user", {"credit": 5.0})
    created = [{"success": True, "new_contract": number} for number in (777, 778)]
    vastai.answers("create instance", *created)
    vastai.answers("destroy instance", "destroying instance 777.\n")
    return vastai


def asked(vastai, *words):
    """What the tool was told to do, of the commands that begin so."""
    calls = [call["argv"] for call in vastai.calls]
    return [call[len(words) :] for call in calls if tuple(call[: len(words)]) == words]


def test_each_machine_has_an_offer_a_label_and_a_price_of_its_own(ups, market, tmp_path):
    output = ups(*LAUNCH)
    assert [call[0] for call in asked(market, "create", "instance")] == ["11", "12"]
    assert asked(market, "search", "offers")[0][4] == "2"  # of --limit
    for number, price in ((1, 0.3), (2, 1.9)):
        (call,) = [c for c in asked(market, "create", "instance") if c[0] == str(10 + number)]
        assert f"--label=ups-smoke-{number}" in call
        assert f"--onstart=.vast/ups-smoke-{number}/onstart.packed.sh" in call
        script = tmp_path / ".vast" / f"ups-smoke-{number}" / "onstart.sh"
        assert f'"startup.price_per_hour": {price}' in script.read_text()
    lines = [line for line in output.splitlines() if line.startswith("rented")]
    assert lines == [
        "rented   instance 777 (ups-smoke-1), $0.300/h, RTX 4090; its log: vastai logs 777",
        "rented   instance 778 (ups-smoke-2), $1.900/h, H100 SXM; its log: vastai logs 778",
    ]


def test_several_are_figures_too_and_a_dry_run_of_them_asks_nobody(ups, market):
    found = json.loads(ups(*LAUNCH, "--json"))
    assert [(m["instance"], m["label"], m["offer"]["id"]) for m in found["machines"]] == [
        (777, "ups-smoke-1", 11),
        (778, "ups-smoke-2", 12),
    ]
    calls = len(market.calls)
    output = ups(*LAUNCH, "--max-total", "9", "--dry-run")
    assert output.count("vastai create instance OFFER") == 2
    assert len(market.calls) == calls


@pytest.mark.parametrize(
    ("answer", "options", "message"),
    [
        ({"search offers": TWO[:1]}, [], "1 of 2 offers fit, so nothing was rented"),
        ({}, ["--max-total", "2.1"], "2 machines cost $2.200 per hour, more than --max-total 2.1"),
        ({"show user": {"credit": 2.1}}, [], "per hour, and the account has $2.10, so nothing"),
    ],
)
def test_what_does_not_fit_the_budget_is_refused_before_anything_is_paid_for(
    ups, market, answer, options, message
):
    for command, said in answer.items():
        market.answers(command, said)
    output = ups(*LAUNCH, *options, exit_code=1)
    assert message in output
    assert output.count("\n") == 1
    assert asked(market, "create") == []


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ("destroying instance 777.\n", "the 1 rented before were destroyed again"),
        ("no\n", "still paid for: destroy them with `vastai destroy instances 777`"),
    ],
)
def test_one_that_cannot_be_rented_gives_the_others_back(ups, market, said, outcome):
    refused = {"success": False, "msg": "no_such_ask"}
    market.answers("create instance", {"success": True, "new_contract": 777}, refused)
    market.answers("destroy instance", said)
    output = ups(*LAUNCH, exit_code=1)
    assert f"error: the offer 12 could not be rented: no_such_ask; {outcome}" in output
    assert asked(market, "destroy", "instance") == [["777", "--yes"]]


def test_destroy_takes_a_label_of_several_ids_and_asks_before(ups, vastai):
    instances = [
        {"id": number, "label": label}
        for number, label in ((1, "ups-a-1"), (2, "ups-a-2"), (3, "ups-ab-1"), (4, "b"), (5, None))
    ]
    vastai.answers("show instances", instances)
    vastai.answers("destroy instance", "destroying instance 1.\n")
    assert "nobody can be asked: --yes" in ups("destroy", "ups-a", exit_code=1)
    assert asked(vastai, "destroy") == []
    output = ups("destroy", "ups-a", "4", "2", "--yes")
    assert [call[0] for call in asked(vastai, "destroy", "instance")] == ["1", "2", "4"]
    assert output.splitlines()[0] == "destroyed  instance 1 (ups-a-1)"
    assert "no instance has the id or label 'c'; there: 1 (ups-a-1)" in ups(
        "destroy", "c", "--yes", exit_code=1
    )
    vastai.answers("destroy instance", "no\n", "destroying instance 2.\n")
    output = ups("destroy", "ups-a", "-y", exit_code=1)
    assert "destroyed  instance 2 (ups-a-2)" in output
    assert "still paid for:\ninstance 1 (ups-a-1): " in output


@pytest.fixture
def refusing():
    """The address of a server that wants the login `admin:right`."""
    right = "Basic YWRtaW46cmlnaHQ="

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200 if self.headers["Authorization"] == right else 401)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


def test_a_server_that_refuses_the_login_is_said_before_anything_is_paid_for(
    ups, market, refusing, monkeypatch
):
    given = [*LAUNCH, "--api-url", refusing]
    output = ups(*given, exit_code=1)
    assert f"nothing was rented, since the Prefect server at {refusing} wants a login" in output
    assert market.calls == []
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:wrong")
    assert "warning: this would not be rented: the Prefect server at" in ups(*given, "--dry-run")
    assert "refuses this login (HTTP 401): set PREFECT_API_AUTH" in ups(*given, exit_code=1)
    monkeypatch.setenv("PREFECT_API_URL", refusing)
    assert "refuses this login (HTTP 401): set PREFECT_API_AUTH" in ups("setup-env", exit_code=1)
    assert market.calls == []
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "admin:right")
    assert "rented   instance 778" in ups(*given)
    check_login("http://127.0.0.1:9/api", {})  # a tunnel may come later
