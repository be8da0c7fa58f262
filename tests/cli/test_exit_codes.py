"""Exit codes of `ups`, as its help and docs/commands.md list them."""

import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest
import yaml
from typer.testing import CliRunner

from deployments.cli.app import app
from deployments.cli.runs import OTHER_PARAMETERS
from deployments.layout import BIN_DIR, PROJECT_DIR
from ups.config import PARAMETERS
from ups.runs.stored import RunInfo

CODES = ("0", "1", "2", "3", "124", "130", "143")


def invoke(*arguments):
    done = CliRunner().invoke(app, list(arguments), terminal_width=200)
    return done.exit_code, done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "No such command 'nothing'"),
        (["train"], "Missing argument"),
        (["train", "smoke", "--epochs", "3"], "No such option: --epochs"),
        (["train", "smoke", "--set", "latent.dim"], "found 'latent.dim', expected KEY=VALUE"),
        (["train", "smoke", "--set", "latent.dim=[1"], "expected a value in YAML"),
        (["train", "smoke", "--set", "a.b=1", "--set", "a.b=2"], "a.b: given twice"),
        (["train", "smoke", "--run-id", "a/b"], "expected letters, digits"),
        (["cache", "prune", "--max-size", "50"], "expected a size with a unit"),
        (["cache", "prune", "--older-than", "3 moons"], "expected an age with a unit"),
        (["cache", "list", "here", "--dir", "there"], "give the cache directory once"),
        (["runs", "list", "--limit", "0"], "greater than or equal to 1"),
        (["report", "a", "b", "c"], "give one id, or two"),
        (["run", "-p", "epochs"], "found 'epochs', expected KEY=VALUE"),
        (["run", "-p", "config=smoke"], "give the config with --config"),
        (["run", "-p", "overrides=3"], "expected JSON"),
        (
            ["run", "-p", "latent_dmi=3"],
            "latent_dmi: no parameter of the flow; did you mean latent_dim?",
        ),
        (
            ["run", "-p", "overwrite_cache=perhaps"],
            "overwrite_cache: found 'perhaps', expected true or false",
        ),
        (["run", "-p", 'overrides={"a.b": 1, "a.b": 2}'], "overrides: a.b: given twice"),
        (["run", "-p", "epochs=1", "-p", "epochs=2"], "epochs: given twice"),
        (["benchmark", "-s", "cold,hot"], "scenarios: found 'hot', expected sets (nightly"),
        (["benchmark", "-s", "cold", "-s", "wram"], "did you mean warm?"),
        (["benchmark", "-s", ""], "scenarios: found ''"),
        (["benchmark", "-p", 'scenarios=["hot"]'], "give the scenarios with --scenarios"),
    ],
)
def test_a_wrong_command_line_is_2_and_starts_nothing(arguments, message, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)
    code, output = invoke(*arguments)
    assert (code, message in " ".join(output.split())) == (2, True), output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere"], "error: no config 'nowhere'"),
        (["train", "smoke", "--set", "latent.tokens=7"], "latent.tokens: found 7"),
        (["cache", "build", "smoke", "--device", "tpu"], "error: smoke.yaml: training.device"),
        (
            ["cache", "build", "smoke", "--device", "cpu", "--set", "training.device=cuda"],
            "error: training.device: given twice",
        ),
        (["cache", "show", "3fa9", "--dir", "nowhere"], "error: nowhere is not there"),
        (["runs", "show", "136f", "--dir", "nowhere"], "error: run '136f': nowhere holds no run"),
        (["report", "--folder", "nowhere"], "error: no benchmarks in nowhere"),
    ],
)
def test_what_cannot_be_done_is_1_and_one_message(arguments, message):
    code, output = invoke(*arguments)
    assert (code, message in output) == (1, True), output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("latent_dim=abc", "smoke.yaml: latent.dim: found 'abc'; input should be a valid integer"),
        ("latent_dim=-3", "smoke.yaml: latent.dim: found -3; input should be greater than 0"),
        ("latent_tokens=24", "latent.tokens: found 24, expected a divisor of the 1024 points"),
        ("epochs=2.5", "smoke.yaml: stages.operator.epochs: found 2.5; input should be a valid"),
        ('features={"warmup": true}', "smoke.yaml: features.warmup: unknown key; did you mean fea"),
        ('overrides={"latent.dmi": 3}', "latent.dmi: unknown key; did you mean latent.dim?"),
    ],
)
def test_a_parameter_of_the_flow_is_checked_before_anything_is_started(
    parameter, message, monkeypatch
):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    code, output = invoke("run", "-p", parameter)
    assert (code, message in output) == (1, True), output


def test_the_parameters_of_run_are_those_of_the_flow():
    from flows.train_burgers import train_burgers

    parameters = train_burgers.parameters.properties
    assert list(parameters) == ["config", *PARAMETERS, *OTHER_PARAMETERS]
    (count, _) = parameters["latent_dim"]["anyOf"]  # what the form draws the field by
    assert count == {"type": "integer"}


@pytest.fixture
def long_training(tiny_config, tmp_path):
    """`ups train` as a process that has taken a tenth of its steps, and the lines it wrote."""
    path = tmp_path / "tiny.yaml"
    config = tiny_config(stages__operator__epochs=100)
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    process = subprocess.Popen(
        [BIN_DIR / "ups", "train", path, "--run-id", "mine"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "UPS_PROGRESS_S": "0.1"},
    )
    lines = []
    for line in process.stderr:
        lines.append(line)
        if "trained" in line:
            break
    yield process, lines
    process.kill()
    process.communicate()


def test_ctrl_c_is_130_and_a_log_gets_sparse_lines_of_progress(long_training, tmp_path):
    process, lines = long_training
    assert re.fullmatch(r"  trained \d+ of 400 steps \(1\d%\)\n", lines[-1]), lines
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert "last.pt resumes" in errors
    assert "\r" not in "".join(lines) + errors
    assert "\x1b" not in "".join(lines) + errors
    assert len(re.findall("^  trained", errors, re.M)) < 10
    (run_dir,) = (tmp_path / "runs").glob("*-mine")
    assert str(run_dir) in output
    assert RunInfo.load(run_dir).state == "stopped"


def test_sigterm_is_143_and_unwinds():
    script = """
        import os, signal, typer
        from ups.cli.console import errors_shown
        app = typer.Typer()
        @app.command()
        def command():
            with errors_shown():
                try:
                    os.kill(os.getpid(), signal.SIGTERM)
                finally:
                    print("unwound")
        app()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=PROJECT_DIR, capture_output=True
    )
    assert (done.returncode, done.stdout) == (143, b"unwound\n"), done.stderr


def test_the_help_and_the_page_list_the_codes():
    _, shown = invoke("--help")
    listed = " ".join(shown.partition("Exit codes: ")[2].split())
    assert [code for code in CODES if not re.search(rf"(?:^|; ){code} ", listed)] == []
    page = (PROJECT_DIR / "docs" / "commands.md").read_text()
    table = page.partition("## Exit codes")[2]
    assert re.findall(r"^\| (\d+) \|", table, re.M) == list(CODES)


def test_what_the_system_refuses_is_one_line_with_a_remedy(tiny_config, ups_on):
    code, _, errors = ups_on(tiny_config())("train", "CONFIG", "--set", f"name={'a' * 300}")
    (line,) = errors.splitlines()
    assert (code, line.endswith("File name too long: take a shorter name")) == (1, True), errors


def test_output_that_cannot_be_written_is_one_line(tmp_path):
    command = [sys.executable, "-m", "deployments.cli.app", "runs", "list", "--dir", str(tmp_path)]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}  # then what is left is tried again at exit
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=buffered)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, line.startswith("error: standard output")) == (1, True), line
