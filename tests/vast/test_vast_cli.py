"""`ups vast …` with a recorder in the place of `vastai`: what it is told, what people are told."""

import json
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ups.cli import app
from ups.vast import source
from ups.vast.launch import SENT
from ups.vast.offers import default_image

README = (Path(__file__).parents[2] / "README.md").read_text()
OFFERS = [
    {"id": 11, "gpu_name": "RTX 4090", "dph_total": 0.34567, "gpu_ram": 24564, "rentable": True},
    {"id": 12, "gpu_name": "H100 SXM", "dph_total": 1.9, "geolocation": "Sweden, SE"},
]
NO_KEY = 'stderr:{"error": true, "status_code": 401, "msg": "This action requires login"}'


@pytest.fixture
def ups(tmp_path, monkeypatch, vastai, checkout):
    """`ups(*arguments)`: exit code and output of `ups vast`, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(vastai.folder), prepend=":")
    monkeypatch.setattr(source, "PROJECT_DIR", checkout)
    for name in SENT:
        monkeypatch.delenv(name, raising=False)

    def call(*arguments):
        result = CliRunner().invoke(app, ["vast", *map(str, arguments)])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, result.output

    return call


def test_search_asks_for_one_reliable_gpu_and_shows_the_cheapest_first(ups, vastai):
    vastai.answers("search offers", json.dumps(OFFERS))
    code, output = ups("search", "--gpu", "RTX 4090", "--max-price", "0.6", "--disk", "80")
    assert code == 0, output
    (call,) = vastai.calls
    query = (
        "num_gpus=1 gpu_ram>=12 disk_space>=80 inet_down>=200 reliability>=0.98 cuda_vers>=13.0 "
        "direct_port_count>=1 gpu_name=RTX_4090 dph_total<=0.6"
    )
    options = ["--order", "dph_total", "--limit", "10", "--storage", "80", "--raw"]
    assert call["argv"] == ["search", "offers", query, *options]
    assert re.search(r"11 +RTX 4090 +24 +0\.346", output)
    assert "Sweden, SE" in output


def test_search_prints_offers_as_json(ups, vastai):
    vastai.answers("search offers", json.dumps(OFFERS))
    code, output = ups("search", "--json", "--limit", "2")
    assert code == 0
    assert [(o["id"], o["dph_total"]) for o in json.loads(output)] == [(11, 0.34567), (12, 1.9)]


def test_no_offer_is_said_with_the_query(ups, vastai):
    vastai.answers("search offers", "[]")
    code, output = ups("search")
    assert (code, output[:25]) == (0, "no offer fits: num_gpus=1")
    code, output = ups("launch", "--config", "smoke")
    assert (code, "error: no offer fits" in output) == (1, True)
    assert not [c for c in vastai.calls if c["argv"][0] == "create"]


def test_launch_rents_the_cheapest_and_says_what_it_did(ups, vastai, repository, tmp_path):
    vastai.answers("search offers", json.dumps(OFFERS[:1]))
    vastai.answers("create instance", '{"success": true, "new_contract": 777}')
    code, output = ups("launch", "-c", "smoke", "--auto-shutdown", "--disk", "80", "--volume", "5")
    assert code == 0, output
    search, create = (call["argv"] for call in vastai.calls)
    assert search[-5:] == ["--limit", "1", "--storage", "80", "--raw"]
    assert create == [
        "create",
        "instance",
        "11",
        f"--image={default_image()}",
        "--disk=80",
        "--label=ups-smoke",
        "--onstart=.vast/onstart.packed.sh",
        "--ssh",
        "--direct",
        "--cancel-unavail",
        "--link-volume=5",
        "--mount-path=/workspace",
        "--raw",
    ]
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
    code, output = ups("launch", "-c", "smoke", "--dry-run", *options, "--set", "latent.dim=8")
    assert code == 0, output
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
def test_a_server_of_this_machine_is_reached_by_a_tunnel(ups, vastai, url, options):
    vastai.answers("search offers", json.dumps(OFFERS[:1]))
    vastai.answers("create instance", '{"success": true, "new_contract": 777}')
    code, output = ups("launch", "-c", "smoke", "--offer", "11", "--api-url", url)
    assert code == 0, output
    assert ("by a tunnel" in output) == (options is not None)
    if options:
        assert f"tunnel: ssh {options} $(vastai ssh-url 777)\n" in output


def test_launch_gives_its_figures_as_json(ups, vastai):
    vastai.answers("search offers", json.dumps(OFFERS[1:]))
    vastai.answers("create instance", '{"success": true, "new_contract": 778}')
    code, output = ups("launch", "-c", "smoke", "--json")
    assert code == 0, output
    found = json.loads(output)
    assert (found["instance"], found["offer"]["dph_total"]) == (778, 1.9)
    assert found["command"][:4] == ["vastai", "create", "instance", "12"]


def test_onstart_prints_what_launch_writes(ups, tmp_path):
    given = ["-c", "smoke", "--auto-shutdown", "--max-hours", "3", "--max-stall-hours", "0.25"]
    ups("launch", *given, "--dry-run")
    code, output = ups("onstart", *given)
    assert code == 0
    assert output == (tmp_path / ".vast" / "onstart.sh").read_text()
    assert "MAX_TOTAL_S=10800\nMAX_STALL_S=900\n" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["launch", "-c", "nowhere"], "no config 'nowhere'"),
        (["launch", "-c", "smoke", "--set", "latent.tokens=7"], "latent.tokens: found 7"),
        (["launch", "-c", "smoke", "--mount", "data"], "mount: found 'data'"),
        (["launch", "-c", "smoke", "--api-url", "http://u:geheim@h/api"], "api_url: found"),
        (
            ["launch", "-c", "smoke", "--offer", "9", "--api-url", "http://[::1]:99999/api"],
            "api_url: ",
        ),
        (["search", "--gpu", "x y>=3;"], "gpu_name: found 'x y>=3;'"),
        (["search", "--reliability", "98"], "reliability: found 98"),
        (["setup-env", "--name", "A B"], "--name: found 'A B'"),
        (["setup-env", "--name", "NOT_SET_HERE"], "NOT_SET_HERE is not set"),
    ],
)
def test_what_is_wrong_is_one_message_and_nothing_is_rented(ups, vastai, arguments, message):
    code, output = ups(*arguments)
    assert code == 1
    assert message in output
    assert "Value error" not in output  # pydantic's own words
    assert "geheim" not in output
    assert not [c for c in vastai.calls if c["argv"][0] in ("create", "start")]


@pytest.mark.parametrize("arguments", [["search"], ["resume", "1"], ["launch", "-c", "smoke"]])
def test_a_missing_tool_names_the_extra(ups, vastai, monkeypatch, arguments):
    (vastai.folder / "vastai").unlink()
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    code, output = ups(*arguments)
    assert code == 1
    assert "uv pip install -c constraints.txt -e '.[vast]'" in output


def test_a_missing_key_is_said_though_the_tool_ends_with_0(ups, vastai):
    vastai.answers("search offers", NO_KEY)
    code, output = ups("search")
    assert code == 1
    assert "vastai has no valid API key" in output
    assert "(it says: 401: This action requires login)" in output


def test_an_offer_that_is_gone_is_said(ups, vastai):
    vastai.answers("search offers", "[]")
    vastai.answers("create instance", '{"success": false, "msg": "no_such_ask"}')
    code, output = ups("launch", "-c", "smoke", "--offer", "9")
    assert code == 1
    assert "warning: Vast shows no offer 9, so its price is not known" in output
    assert "the offer 9 could not be rented: no_such_ask" in output


def test_an_offer_that_is_named_keeps_its_price(ups, vastai, tmp_path):
    vastai.answers("search offers", json.dumps(OFFERS[1:]))
    vastai.answers("create instance", '{"success": true, "new_contract": 779}')
    code, output = ups("launch", "-c", "smoke", "--offer", "12", "--disk", "80")
    assert code == 0, output
    assert "rented   instance 779, $1.900/h, H100 SXM" in output
    search, create = (call["argv"] for call in vastai.calls)
    asked = ["id=12", "--no-default", "--limit", "1", "--storage", "80", "--raw"]
    assert search == ["search", "offers", *asked]
    assert create[2] == "12"
    parameters = json.loads(head(tmp_path / ".vast" / "onstart.sh")["PARAMETERS"])
    assert parameters["overrides"]["startup.price_per_hour"] == 1.9


@pytest.fixture
def tiny(checkout, s3, bucket, monkeypatch):
    """The path of a config whose objects lie in the store that this environment names."""
    for name, value in s3.env.items():
        monkeypatch.setenv(name, value)
    return checkout / "deployments" / "configs" / "tiny.yaml"


ELSEWHERE = (
    "data.sources={train: [{key: gone/train.h5, bucket: tiny}], "
    "val: [{key: gone/val.h5, bucket: tiny}], test: [{key: gone/test.h5, bucket: tiny}]}"
)


def test_objects_that_are_missing_are_not_paid_for(ups, vastai, tiny):
    vastai.answers("search offers", json.dumps(OFFERS[:1]))
    vastai.answers("create instance", '{"success": true, "new_contract": 777}')
    code, output = ups("launch", "-c", tiny, "--set", ELSEWHERE)
    assert code == 1
    assert "error: nothing was rented, since (--no-validate skips this):" in output
    assert re.search(r"^data, train object: .*gone/train\.h5", output, re.MULTILINE)
    assert output.count("gone/") == 3
    assert vastai.calls == []
    code, output = ups("launch", "-c", tiny, "--set", ELSEWHERE, "--dry-run")
    assert (code, "warning: this would not be rented:" in output) == (0, True)
    code, output = ups("launch", "-c", tiny, "--set", ELSEWHERE, "--no-validate")
    assert (code, "checked" in output, "instance 777" in output) == (0, False, True), output


def test_objects_of_several_tasks_are_missed_too_though_they_could_be_generated(ups, vastai, tiny):
    tasks = [
        {
            "name": name,
            "sources": {s: [{"key": f"gone/{name}/{s}.h5"}] for s in ("train", "val", "test")},
            "generate": {parameter: 0.5, "num_trajectories": {"train": 1, "val": 1, "test": 1}},
        }
        for name, parameter in (("burgers1d", "nu"), ("advection1d", "beta"))
    ]
    alone = ["--set", "data.sources=null", "--set", "data.generate=null"]
    listed = ["--set", f"data.task={json.dumps(tasks)}"]
    code, output = ups("launch", "-c", tiny, *alone, *listed)
    assert code == 1, output
    for name in ("burgers1d", "advection1d"):
        assert re.search(rf"^data, {name} train object: .*gone/{name}/", output, re.MULTILINE)
    assert vastai.calls == []


def test_a_dry_run_says_what_was_checked_and_what_was_not(ups, tiny, monkeypatch):
    code, output = ups("launch", "-c", tiny, "--dry-run")
    assert code == 0
    assert "checked  config, " in output
    for split in ("train", "val", "test"):
        uri = f"s3://tiny/burgers1d/burgers1d_{split}.h5"
        assert re.search(rf"^checked  data, {split} object: {uri}: .*to be fetched", output, re.M)
    _, output = ups("launch", "-c", tiny, "--dry-run", "--json")
    assert [c["status"] for c in json.loads(output)["checks"]].count("ok") >= 4
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    _, output = ups("launch", "-c", tiny, "--dry-run")
    reason = "not checked: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set here"
    assert f"checked  data, objects: {reason}" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["launch", "-c", "smoke", "--max-hours", "3"], "--max-hours: nothing stops the instance"),
        (["onstart", "-c", "smoke", "--max-stall-hours", "1"], "--max-stall-hours: nothing stops"),
        (["launch", "-c", "smoke", "--offer", "-3"], "'--offer': Input should be greater"),
        (["launch", "-c", "smoke", "--volume", "-3"], "'--volume': Input should be greater"),
        (["launch", "-c", "smoke", "--label", "a\nb"], "'a\\nb', expected one line"),
    ],
)
def test_a_wrong_command_line_does_nothing_and_ends_with_2(ups, vastai, arguments, message):
    code, output = ups(*arguments)
    assert code == 2
    assert message in " ".join(re.sub(r"[│╭╮╰╯─]", " ", output).split())
    assert vastai.calls == []


def test_a_commit_that_was_not_pushed_is_warned_of_and_not_paid_for(
    ups, vastai, monkeypatch, tmp_path, checkout, git
):
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--shared", checkout, clone)
    git(clone, "commit", "-qm", "mine", "--allow-empty")
    monkeypatch.setattr(source, "PROJECT_DIR", clone)
    code, output = ups("launch", "-c", "smoke", "--dry-run")
    assert (code, "warning: commit " in output) == (0, True)
    code, output = ups("launch", "-c", "smoke", "--offer", "9")
    assert (code, "is in no branch of the remote: push it first" in output) == (1, True)
    assert vastai.calls == []


INSTANCES = [
    {"id": 1, "label": "a", "actual_status": "exited", "intended_status": "stopped"},
    {"id": 2, "label": "b", "actual_status": "running", "intended_status": "running"},
    {"id": 3, "label": "b", "actual_status": "exited", "intended_status": "stopped"},
]


@pytest.mark.parametrize("wanted", ["1", "a"])
def test_resume_starts_a_stopped_instance_by_id_or_label(ups, vastai, wanted):
    vastai.answers("show instances", json.dumps(INSTANCES))
    vastai.answers("start instance", "starting instance 1.\n")
    assert ups("resume", wanted) == (0, "instance 1 is starting\n")
    assert vastai.calls[-1]["argv"] == ["start", "instance", "1"]


def test_resume_leaves_one_that_runs_alone(ups, vastai):
    vastai.answers("show instances", json.dumps(INSTANCES))
    assert ups("resume", "2") == (0, "instance 2 runs already\n")
    assert len(vastai.calls) == 1


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("b", "several instances have .*'b'; there: 2 (b), 3 (b)"), ("c", "no instance has .*1 (a)")],
)
def test_resume_names_what_there_is(ups, vastai, wanted, message):
    vastai.answers("show instances", json.dumps(INSTANCES))
    code, output = ups("resume", wanted)
    assert code == 1
    assert re.search(message.replace("(", r"\(").replace(")", r"\)"), output)


def test_a_start_that_vast_refuses_is_an_error(ups, vastai):
    vastai.answers("show instances", json.dumps(INSTANCES))
    vastai.answers("start instance", "Required resources are currently unavailable\n")
    code, output = ups("resume", "1")
    assert code == 1
    assert "it says: Required resources are currently unavailable" in output


def test_setup_env_sends_what_is_set_and_prints_no_value(ups, vastai, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim-1")
    monkeypatch.setenv("WANDB_API_KEY", "geheim-2")
    monkeypatch.setenv("MY_TOKEN", "geheim-3 $(x)")
    vastai.answers("show env-vars", '{"WANDB_API_KEY": "*****"}')
    vastai.answers("create env-var", "Environment variable created successfully.\n")
    vastai.answers("update env-var", "Environment variable updated successfully.\n")
    code, output = ups("setup-env", "--name", "MY_TOKEN")
    assert code == 0, output
    assert "geheim" not in output
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
    code, output = ups("setup-env")
    assert code == 1
    assert "it says: Failed to create environment variable: ***** is bad" in output
    assert "geheim" not in output


def test_setup_env_shows_without_values_what_it_would_send(ups, vastai, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "geheim")
    code, output = ups("setup-env", "--dry-run")
    assert code == 0
    assert "vastai create env-var AWS_SECRET_ACCESS_KEY '*****'" in output
    assert "geheim" not in output
    assert vastai.calls == []


EXAMPLES = [
    line
    for line in re.findall(r"^ups vast .*$", README, re.M)
    if "--dry-run" in line or line.startswith("ups vast onstart")
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_readmes_examples_run(ups, example, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    code, output = ups(*shlex.split(example)[2:])
    assert code == 0, output
    assert output


def test_the_readme_has_examples():
    assert len(EXAMPLES) >= 2


@pytest.mark.parametrize("command", ["search", "launch", "resume", "onstart", "setup-env"])
def test_each_command_has_help_with_an_example(ups, command):
    code, output = ups(command, "--help")
    assert code == 0
    assert f"Example: ups vast {command}" in " ".join(output.split())
