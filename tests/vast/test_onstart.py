"""The generated scripts: valid, without secrets, and never led astray by a value."""

import base64
import gzip
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ups.errors import ConfigError, VastError
from ups.vast.launch import SENT, checked
from ups.vast.script import MAX_PACKED, Onstart

ROOT = Path(__file__).parents[2]
SHELLCHECK = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or "shellcheck"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
HOSTILE = (
    "$(touch canary)",
    "`touch canary`",
    "'; touch canary; '",
    '"; touch canary; "',
    "a b  c",
    "-x",
    "--upload-pack=touch canary",
    "ext::sh -c touch% canary",
    "${IFS}touch${IFS}canary",
    "x & touch canary",
    "\\",
    "ünï→",
    "* ? [a]",
    "!!",
)
NEWLINES = ("one\ntouch canary\n", "\n#", "x\n'\ntouch canary\n'")


def onstart(**values):
    given = {"repo": "https://example.org/r.git", "commit": COMMIT, "parameters": {"config": "x"}}
    return checked(Onstart, **{**given, **values})


def options():
    """Every combination of what changes the script, with tame values and with hostile ones."""
    tame = {"parameters": {"config": "smoke"}}
    overrides = {"a.b": [*HOSTILE, *NEWLINES]}
    hostile = {"mount": "/a b/$(x)'s", "work": '/w "q"', "repo": "`x` $(y)"}
    hostile["parameters"] = {"config": NEWLINES[2], "overrides": overrides}
    for shutdown, server, values in itertools.product(
        (True, False), (None, "http://127.0.0.1:4200/api"), (tame, hostile)
    ):
        yield {"auto_shutdown": shutdown, "api_url": server, **values}


def test_all_scripts_and_the_half_in_the_repository_pass_bash_and_shellcheck(tmp_path):
    paths = [ROOT / "ups" / "vast" / "provision.sh"]
    for number, values in enumerate(options()):
        for kind in ("script", "packed"):
            paths.append(tmp_path / f"{number}-{kind}.sh")
            paths[-1].write_text(getattr(onstart(**values), kind)())
    assert len(paths) == 17
    for path in paths:
        subprocess.run(["bash", "-n", path], check=True)
    subprocess.run([SHELLCHECK, "--external-sources", *paths], cwd=ROOT, check=True)


@pytest.mark.parametrize("value", [*HOSTILE, *NEWLINES])
def test_every_value_arrives_in_bash_as_it_is_and_runs_nothing(value, tmp_path):
    given = {"parameters": {"config": value, "overrides": {value: value}}}
    if value in HOSTILE:  # parameters alone may hold more than one line
        given |= {"repo": value, "mount": f"/{value.replace(':', '')}"}
    made = onstart(**given)
    head = made.script().partition("# From here on")[0]
    show = """printf '%s\\0' "$REPO" "$COMMIT" "$PARAMETERS" "$MOUNT" "$WORK\""""
    command = ["bash", "-c", f"{head}\n{show}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    values = [made.repo, made.commit, json.dumps(made.parameters), made.mount, made.work]
    assert done.stdout.decode().split("\0")[:-1] == values
    assert done.stderr == b""
    assert list(tmp_path.iterdir()) == []


def test_the_packed_script_is_the_same_without_comments():
    given = onstart(auto_shutdown=True)
    code = re.search(r"<<<(\S+) ", given.packed())[1]
    unpacked = gzip.decompress(base64.b64decode(code)).decode()
    lines = given.script().splitlines()
    assert unpacked.splitlines() == [x for x in lines if not x.lstrip().startswith("#")]


def test_the_packed_script_fits_and_one_that_does_not_is_refused():
    overrides = {f"training.option_{i}": f"a value of {i * i}" for i in range(20)}
    assert len(onstart(parameters={"config": "x", "overrides": overrides}).packed()) <= MAX_PACKED
    noise = base64.b64encode(os.urandom(4000)).decode()
    with pytest.raises(VastError, match=r"has \d+ characters when packed, Vast takes 4048"):
        onstart(parameters={"config": noise}).packed()


def test_no_secret_of_the_environment_stands_in_a_script(monkeypatch):
    for name in SENT:
        monkeypatch.setenv(name, f"secret-{name}")
    given = onstart(auto_shutdown=True)
    assert "secret-" not in given.script()
    assert "secret-" not in repr(given)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mount": "data"}, "mount: found 'data'; .*absolute path"),
        ({"work": "/a\nb"}, "work: .*control character"),
        ({"work": "/a:b"}, "work: .*colon"),
        ({"repo": "a\nb"}, "repo: .*control character"),
        ({"commit": "HEAD"}, "commit: found 'HEAD'"),
        ({"api_url": "https://me:pw@example.org/api"}, "api_url: .*PREFECT_API_AUTH_STRING"),
        ({"api_url": "example.org"}, "api_url: .*expected an address"),
        ({"api_url": "http://localhost:99999/api"}, "api_url: .*Port out of range"),
        ({"api_url": "http://localhost:0/api"}, "api_url: .*Port out of range"),
        ({"api_url": "http://localhost:4200x/api"}, "api_url: .*Port could not be cast"),
        ({"api_url": "http://[::1/api"}, "api_url: .*Invalid IPv6"),
        ({"max_hours": 0}, "max_hours: found 0"),
        ({"max_stall_hours": -1}, "max_stall_hours: found -1"),
    ],
)
def test_what_cannot_work_is_refused_by_its_name(values, message):
    with pytest.raises(ConfigError, match=message):
        onstart(**values)
