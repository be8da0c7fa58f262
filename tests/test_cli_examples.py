"""Every command has an example in its help, and every example runs here or in a named test."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from deployments import report
from deployments.cli import app
from ups.latents.build import ensure
from ups.runs import open_run_dir, recorded
from ups.startup.benchmark import HISTORY
from ups.startup.history import History
from ups.startup.records import BenchmarkRecord

ROOT = Path(__file__).parents[1]
LIVE = "tests/deployments/test_runs.py"
VAST = "tests/vast/test_vast_cli.py"
# On a running stack, or with a `vastai` that notes its calls: the test that runs the command, and
# what it holds of it.
ELSEWHERE = {
    "ups up": (LIVE, "test_up_starts_what_is_not_running_and_moves_nothing", 'ups("up"'),
    "ups down": (LIVE, "test_down_stops_what_up_started", 'ups("down"'),
    "ups status": (LIVE, "test_status_says_what_runs_and_where", 'ups("status"'),
    "ups run": (LIVE, "live", '"run", "--config"'),
    "ups follow": (LIVE, "test_follow_waits_for_a_run_and_gives_its_breakdown", '"follow", run_id'),
    "ups vast search": (
        VAST,
        "test_search_asks_for_one_reliable_gpu_and_shows_the_cheapest_first",
        'ups("search"',
    ),
    "ups vast launch": (
        VAST,
        "test_a_dry_run_writes_the_script_prints_the_command_and_asks_nobody",
        '"--dry-run"',
    ),
    "ups vast resume": (VAST, "test_resume_starts_a_stopped_instance_by_id_or_label", '"resume"'),
    "ups vast onstart": (VAST, "test_onstart_prints_what_launch_writes", '"onstart"'),
    "ups vast setup-env": (
        VAST,
        "test_setup_env_shows_without_values_what_it_would_send",
        '"--dry-run"',
    ),
    "ups benchmark": ("tests/ui/conftest.py", "_start_benchmark", '"benchmark", "-s"'),
}


def commands(command=None, name="ups"):
    """Every command without commands below it, by its full name."""
    command = command or typer.main.get_command(app)
    if not hasattr(command, "commands"):
        return {name: command}
    below = [commands(found, f"{name} {word}") for word, found in command.commands.items()]
    return {full: found for part in below for full, found in part.items()}


def examples(command):
    return re.findall(r"Example: (ups .+)", command.epilog or "")


RECORD = BenchmarkRecord(
    id="b1", started_at=1e9, machine_id="m", machine={}, versions={}, commit="abc", settings={}
)
COMMANDS = commands()
EXAMPLES = [line for command in COMMANDS.values() for line in examples(command)]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_has_an_example_of_it(name):
    done = CliRunner().invoke(app, [*name.split()[1:], "--help"], terminal_width=200)
    shown = re.findall(r"Example: (ups .+)", done.output)
    assert shown == examples(COMMANDS[name])
    assert shown
    assert all(line.startswith(name) for line in shown)


@pytest.mark.parametrize("line", EXAMPLES)
def test_an_example_is_accepted_as_it_stands(line):
    words = shlex.split(line)[1:]
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    command.make_context(command.name, words)


def _is_elsewhere(line):
    return any(f"{line} ".startswith(f"{name} ") for name in ELSEWHERE)


@pytest.fixture
def workplace(tiny_config, stage_all, tmp_path, monkeypatch):
    """A folder with what the examples name; returns what stands there for their names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "PROJECT_DIR", tmp_path)
    config = tiny_config(training__latent_cache_dir="data/latent_cache", runs_dir="runs")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    keys = []
    for dim in (8, 4):
        other = tiny_config(training__latent_cache_dir="data/latent_cache", latent__dim=dim)
        keys.append(ensure(other, stage_all(other)).config_hash)
    for run_id in ("136fabcd", "24fbabcd"):
        with recorded(open_run_dir(config, run_id)):
            pass
    folder = tmp_path / "data" / "benchmarks"
    folder.mkdir()
    History(folder / HISTORY).begin(RECORD)
    return {"smoke": "tiny.yaml", "3fa9": keys[0], "b07c": keys[1]}


def test_every_example_runs_here_or_in_a_test_on_a_running_stack(workplace):
    elsewhere = [line for line in EXAMPLES if _is_elsewhere(line)]
    here = [line for line in EXAMPLES if line not in elsewhere]
    assert len(here) > 10
    # What removes comes last.
    for line in sorted(here, key=lambda line: line.startswith("ups cache rm")):
        words = [workplace.get(word, word) for word in shlex.split(line)[1:]]
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0, f"{line}\n{done.output}"
        assert done.stdout.strip(), line
    for name, (file, test, call) in ELSEWHERE.items():
        assert name in COMMANDS
        body = re.split(rf"\ndef {test}\(", (ROOT / file).read_text())[1]
        assert call in re.split(r"\n(?:def|class|@)", body)[0], name
