"""`ups vast …` with a recorder in the place of `vastai`: what it is told, what people are told."""

import json
import re
import shlex
from pathlib import Path

import pytest

from ups.vast import script
from ups.vast.offers import default_image

OFFERS = [
    {"id": 11, "gpu_name": "RTX 4090", "dph_total": 0.34567, "gpu_ram": 24564, "rentable": True},
    {"id": 12, "gpu_name": "H100 SXM", "dph_total": 1.9, "geolocation": "Sweden, SE"},
]


@pytest.fixture
def vast(vastai):
    """Shows the first offer, and rents it as instance 777."""
    vastai.answers("search offers", OFFERS[:1])
    vastai.answers("create instance", {"success": True, "new_contract": 777})
    return vastai


def test_search_asks_for_one_reliable_gpu_and_shows_the_cheapest_first_or_gives_json(ups, vastai):
    vastai.answers("search offers", OFFERS)
    output = ups("search", "--gpu", "RTX 4090", "--max-price", "0.6", "--disk", "80")
    (call,) = vastai.calls
    query = (
        "num_gpus=1 gpu_ram>=12 disk_space>=80 inet_down>=200 reliability>=0.98 cuda_vers>=13.0 "
        "direct_port_count>=1 gpu_name=RTX_4090 dph_total<=0.6"
    )
    options = ["--order", "dph_total", "--limit", "10", "--storage", "80", "--raw"]
    assert call["argv"] == ["search", "offers", query, *options]
    assert re.search(r"11 +RTX 4090 +24 +0\.346", output)
    assert "Sweden, SE" in output
    found = json.loads(ups("search", "--json", "--limit", "2"))
    assert [(o["id"], o["dph_total"]) for o in found] == [(11, 0.34567), (12, 1.9)]


def test_no_offer_is_said_with_the_query(ups, vastai):
    vastai.answers("search offers", "[]")
    assert ups("search").startswith("no offer fits: num_gpus=1")
    assert "error: no offer fits" in ups("launch", "--config", "smoke", exit_code=1)
    assert not [c for c in vastai.calls if c["argv"][0] == "create"]


def test_launch_rents_the_cheapest_and_says_what_it_did(ups, vast, repository, tmp_path):
    output = ups("launch", "-c", "smoke", "--auto-shutdown", "--disk", "80", "--volume", "5")
    search, create = (call["argv"] for call in vast.calls)
    assert search[-5:] == ["--limit", "1", "--storage", "80", "--raw"]
    options = f"--image={default_image()} --disk=80 --label=ups-smoke"
    options += " --onstart=.vast/onstart.packed.sh --ssh --direct --cancel-unavail"
    options += " --link-volume=5 --mount-path=/workspace --raw"
    assert create == ["create", "instance", "11", *options.split()]
    assert "rented   instance 777, $0.346/h, RTX 4090; its log: vastai logs 777" in output
    assert "PREFECT_API_URL of the account" in output
    assert "billing" not in output
    values = head(tmp_path / ".vast" / "onstart.sh")
    assert values["COMMIT"] == repository.commit
    assert values["REPO"] == str(repository.bare)
    assert values["AUTO_SHUTDOWN"] == "1"
    assert json.loads(values["PARAMETERS"]) == {
        "config": "smoke",
        "overrides": {
            "startup.price_per_hour": 0.3457,
            "training.device": "cuda",
            "training.latent_cache_dir": "/workspace/data/latent_cache",
            "runs_dir": "/workspace/runs",
        },
    }


def head(path):
    """The values at the beginning of a script."""
    lines = path.read_text().partition("# From here on")[0].splitlines()
    return dict(shlex.split(line)[0].split("=", 1) for line in lines if line[0] != "#")


def test_a_dry_run_writes_the_script_prints_the_command_and_asks_nobody(ups, vastai, tmp_path):
    options = ["--offer", "9", "--label", "-x $(id)", "--api-url", "http://127.0.0.1:4200/api"]
    output = ups("launch", "-c", "smoke", "--dry-run", *options, "--set", "latent.dim=8")
    assert vastai.calls == []
    assert "vastai create instance 9 " in output
    assert "'--label=-x $(id)'" in output
    assert "ssh -N -R 4200:127.0.0.1:4200 $(vastai ssh-url INSTANCE)" in output
    assert "billing  goes on until you stop it: vastai stop instance INSTANCE" in output
    values = head(tmp_path / ".vast" / "onstart.sh")
    assert values["API_URL"] == "http://127.0.0.1:4200/api"
    assert json.loads(values["PARAMETERS"])["overrides"]["latent.dim"] == 8
    assert (tmp_path / ".vast" / "onstart.packed.sh").exists()


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("http://localhost:4200/api", "-N -R 4200:127.0.0.1:4200"),
        ("http://127.0.0.1/api", "-N -R 80:127.0.0.1:80"),
        ("https://127.0.0.1/api", "-N -R 443:127.0.0.1:443"),
        ("http://[::1]:4200/api", "-N -R '4200:[::1]:4200'"),
        ("https://prefect.example.org/api", None),
        ("http://10.0.0.1:4200/api", None),
    ],
)
def test_a_server_of_this_machine_is_reached_by_a_tunnel(ups, vast, url, options):
    given = ("--offer", "11", "--api-url", url, "--no-validate")  # it is not there to be asked
    output = ups("launch", "-c", "smoke", *given)
    assert ("by a tunnel" in output) == (options is not None)
    if options:
        assert f"tunnel: ssh {options} $(vastai ssh-url 777)\n" in output


def test_launch_gives_its_figures_as_json(ups, vast):
    found = json.loads(ups("launch", "-c", "smoke", "--json"))
    assert (found["instance"], found["offer"]["dph_total"]) == (777, 0.34567)
    assert found["command"][:4] == ["vastai", "create", "instance", "11"]


def test_onstart_prints_what_launch_writes(ups, tmp_path):
    given = ["-c", "smoke", "--auto-shutdown", "--max-hours", "3", "--max-stall-hours", "0.25"]
    ups("launch", *given, "--dry-run")
    output = ups("onstart", *given)
    assert output == (tmp_path / ".vast" / "onstart.sh").read_text()
    assert "MAX_TOTAL_S=10800\nMAX_STALL_S=900\n" in output


IPV6 = "http://[::1]:99999/api"


@pytest.mark.parametrize(
    ("exit_code", "arguments", "message"),
    [
        (1, ["launch", "-c", "nowhere"], "no config 'nowhere'"),
        (1, ["launch", "-c", "smoke", "--set", "latent.tokens=7"], "latent.tokens: found 7"),
        (1, ["launch", "-c", "smoke", "--mount", "data"], "mount: found 'data'"),
        (1, ["launch", "-c", "smoke", "--api-url", "http://u:geheim@h/api"], "api_url: found"),
        (1, ["launch", "-c", "smoke", "--offer", "9", "--api-url", IPV6], "api_url: "),
        (1, ["search", "--gpu", "x y>=3;"], "gpu_name: found 'x y>=3;'"),
        (1, ["search", "--reliability", "98"], "reliability: found 98"),
        (1, ["setup-env", "--name", "A B"], "--name: found 'A B'"),
        (1, ["setup-env", "--name", "NOT_SET_HERE"], "NOT_SET_HERE is not set"),
        (2, ["launch", "-c", "smoke", "--max-hours", "3"], "--max-hours: nothing stops the"),
        (2, ["onstart", "-c", "smoke", "--max-stall-hours", "1"], "--max-stall-hours: nothing"),
        (2, ["launch", "-c", "smoke", "--offer", "-3"], "'--offer': Input should be greater"),
        (2, ["launch", "-c", "smoke", "--volume", "-3"], "'--volume': Input should be greater"),
        (2, ["launch", "-c", "smoke", "--count", "0"], "'--count': Input should be greater"),
        (2, ["launch", "-c", "smoke", "--count", "2", "--offer", "9"], "--offer is of one machine"),
        (2, ["launch", "-c", "smoke", "--count", "2", "--volume", "9"], "--volume is of one"),
        (2, ["launch", "-c", "smoke", "--max-total", "2", "--offer", "9"], "--max-total chooses"),
        (2, ["launch", "-c", "smoke", "--label", "a\nb"], "'a\\nb', expected one line"),
    ],
)
def test_what_is_wrong_is_one_message_and_vast_is_not_asked(
    ups, vastai, exit_code, arguments, message
):
    output = ups(*arguments, exit_code=exit_code)
    assert message in " ".join(re.sub(r"[│╭╮╰╯─]", " ", output).split())
    assert "Value error" not in output  # pydantic's own words
    assert "geheim" not in output
    assert vastai.calls == []


@pytest.mark.parametrize("arguments", [["search"], ["resume", "1"], ["launch", "-c", "smoke"]])
def test_a_missing_tool_names_the_extra(ups, vastai, monkeypatch, arguments):
    (vastai.folder / "vastai").unlink()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    output = ups(*arguments, exit_code=1)
    assert "uv pip install -c constraints.txt -e '.[vast]'" in output


def test_a_missing_key_is_said_though_the_tool_ends_with_0(ups, vastai):
    refused = '{"error": true, "status_code": 401, "msg": "This action requires login"}'
    vastai.answers("search offers", f"stderr:{refused}")
    output = ups("search", exit_code=1)
    assert "vastai has no valid API key" in output
    assert "(it says: 401: This action requires login)" in output


def test_an_offer_that_is_gone_is_said(ups, vastai):
    vastai.answers("search offers", "[]")
    vastai.answers("create instance", '{"success": false, "msg": "no_such_ask"}')
    output = ups("launch", "-c", "smoke", "--offer", "9", exit_code=1)
    assert "warning: Vast shows no offer 9, so its price is not known" in output
    assert "the offer 9 could not be rented: no_such_ask" in output


def test_an_offer_that_is_named_keeps_its_price(ups, vast, tmp_path):
    vast.answers("search offers", OFFERS[1:])
    output = ups("launch", "-c", "smoke", "--offer", "12", "--disk", "80")
    assert "rented   instance 777, $1.900/h, H100 SXM" in output
    search, create = (call["argv"] for call in vast.calls)
    asked = ["id=12", "--no-default", "--limit", "1", "--storage", "80", "--raw"]
    assert search == ["search", "offers", *asked]
    assert create[2] == "12"
    parameters = json.loads(head(tmp_path / ".vast" / "onstart.sh")["PARAMETERS"])
    assert parameters["overrides"]["startup.price_per_hour"] == 1.9


@pytest.fixture
def tiny(checkout, store_env):
    """The path of a config whose objects lie in the store that this environment names."""
    return checkout / "deployments" / "configs" / "tiny.yaml"


ELSEWHERE = (
    "data.sources={train: [{key: gone/train.h5, bucket: tiny}], "
    "val: [{key: gone/val.h5, bucket: tiny}], test: [{key: gone/test.h5, bucket: tiny}]}"
)


def test_objects_that_are_missing_are_not_paid_for(ups, vast, tiny):
    output = ups("launch", "-c", tiny, "--set", ELSEWHERE, exit_code=1)
    assert "error: nothing was rented, since (--no-validate skips this):" in output
    assert re.search(r"^data, train object: .*gone/train\.h5", output, re.MULTILINE)
    assert output.count("gone/") == 3
    assert vast.calls == []
    output = ups("launch", "-c", tiny, "--set", ELSEWHERE, "--dry-run")
    assert "warning: this would not be rented:" in output
    output = ups("launch", "-c", tiny, "--set", ELSEWHERE, "--no-validate")
    assert ("checked" in output, "instance 777" in output) == (False, True), output


def test_objects_of_several_problems_are_missed_though_they_could_be_generated(ups, vastai, tiny):
    tasks = [
        {
            "name": name,
            "sources": {s: [{"key": f"gone/{name}/{s}.h5"}] for s in ("train", "val", "test")},
            "generate": {parameter: 0.5, "num_trajectories": {"train": 1, "val": 1, "test": 1}},
        }
        for name, parameter in (("burgers1d", "nu"), ("advection1d", "beta"))
    ]
    only = ["--set", "data.sources=null", "--set", "data.generate=null"]
    listed = ["--set", f"data.task={json.dumps(tasks)}"]
    output = ups("launch", "-c", tiny, *only, *listed, exit_code=1)
    for name in ("burgers1d", "advection1d"):
        assert re.search(rf"^data, {name} train object: .*gone/{name}/", output, re.MULTILINE)
    assert vastai.calls == []


def test_a_dry_run_says_what_was_checked_and_what_was_not(ups, tiny, monkeypatch):
    output = ups("launch", "-c", tiny, "--dry-run")
    assert "checked  config, " in output
    for split in ("train", "val", "test"):
        uri = f"s3://tiny/burgers1d/burgers1d_{split}.h5"
        assert re.search(rf"^checked  data, {split} object: {uri}: .*to be fetched", output, re.M)
    output = ups("launch", "-c", tiny, "--dry-run", "--json")
    assert [c["status"] for c in json.loads(output)["checks"]].count("ok") >= 4
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    output = ups("launch", "-c", tiny, "--dry-run")
    reason = "not checked: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set here"
    assert f"checked  data, objects: {reason}" in output


def test_a_commit_that_was_not_pushed_is_warned_of_and_not_paid_for(
    ups, vastai, monkeypatch, tmp_path, checkout, git
):
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--shared", checkout, clone)
    git(clone, "commit", "-qm", "mine", "--allow-empty")
    monkeypatch.setattr(script, "PROJECT_DIR", clone)
    assert "warning: commit " in ups("launch", "-c", "smoke", "--dry-run")
    output = ups("launch", "-c", "smoke", "--offer", "9", exit_code=1)
    assert "is in no branch of the remote: push it first" in output
    assert vastai.calls == []


INSTANCES = [
    {"id": 1, "label": "a", "actual_status": "exited", "intended_status": "stopped"},
    {"id": 2, "label": "b", "actual_status": "running", "intended_status": "running"},
    {"id": 3, "label": "b", "actual_status": "exited", "intended_status": "stopped"},
]


@pytest.mark.parametrize(
    ("wanted", "output", "num_calls"),
    [
        ("1", "instance 1 is starting\n", 2),
        ("a", "instance 1 is starting\n", 2),
        ("2", "instance 2 runs already\n", 1),
    ],
)
def test_resume_starts_a_stopped_instance_by_id_or_label(ups, vastai, wanted, output, num_calls):
    vastai.answers("show instances", INSTANCES)
    vastai.answers("start instance", "starting instance 1.\n")
    assert ups("resume", wanted) == output
    asked = [["show", "instances", "--raw"], ["start", "instance", "1"]]
    assert [call["argv"] for call in vastai.calls] == asked[:num_calls]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("b", r"several instances have .*'b'; there: 2 \(b\), 3 \(b\)"),
        ("c", r"no instance has .*1 \(a\)"),
        ("1", "it says: Required resources are currently unavailable"),
    ],
)
def test_resume_names_what_there_is_and_why_vast_refuses(ups, vastai, wanted, message):
    vastai.answers("show instances", INSTANCES)
    vastai.answers("start instance", "Required resources are currently unavailable\n")
    assert re.search(message, ups("resume", wanted, exit_code=1))


def test_setup_env_shows_or_sends_what_is_set_and_prints_no_value(ups, vastai, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim-1")
    monkeypatch.setenv("WANDB_API_KEY", "geheim-2")
    monkeypatch.setenv("MY_TOKEN", "geheim-3 $(x)")
    vastai.answers("show env-vars", '{"WANDB_API_KEY": "*****"}')
    vastai.answers("create env-var", "Environment variable created successfully.\n")
    vastai.answers("update env-var", "Environment variable updated successfully.\n")
    shown = ups("setup-env", "--dry-run")
    assert "vastai create env-var AWS_SECRET_ACCESS_KEY '*****'" in shown
    assert vastai.calls == []
    output = ups("setup-env", "--name", "MY_TOKEN")
    assert "geheim" not in shown + output
    assert "sent     MY_TOKEN" in output
    assert "not set  AWS_ACCESS_KEY_ID" in output
    assert [call["argv"] for call in vastai.calls[1:]] == [
        ["create", "env-var", "AWS_SECRET_ACCESS_KEY", "geheim-1"],
        ["update", "env-var", "WANDB_API_KEY", "geheim-2"],
        ["create", "env-var", "MY_TOKEN", "geheim-3 $(x)"],
    ]


def test_setup_env_hides_a_value_that_the_tool_repeats(ups, vastai, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "geheim")
    vastai.answers("show env-vars", "{}")
    vastai.answers("create env-var", "Failed to create environment variable: geheim is bad\n")
    output = ups("setup-env", exit_code=1)
    assert "it says: Failed to create environment variable: ***** is bad" in output
    assert "geheim" not in output


def test_the_examples_of_the_page_run(ups, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    page = Path(__file__).parents[2] / "docs" / "rented.md"
    lines = re.findall(r"^ups vast .*$", page.read_text(), re.M)
    examples = [x for x in lines if "--dry-run" in x or x.startswith("ups vast onstart")]
    assert len(examples) >= 2
    for example in examples:
        assert ups(*shlex.split(example)[2:]), example


def test_the_examples_of_the_help_run(ups, vastai, examples_that_need, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "x")
    vastai.answers("search offers", OFFERS)
    stopped = {"id": 1, "label": "ups-train_burgers_32dim", "actual_status": "exited"}
    vastai.answers("show instances", [stopped])
    vastai.answers("start instance", "starting instance 1.\n")
    vastai.answers("destroy instance", "destroying instance 1.\n")
    for name, line in examples_that_need("vastai").items():
        assert ups(*shlex.split(line)[2:]), name
