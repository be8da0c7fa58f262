import socket
import stat

import pytest

from deployments.layout import Stack, StackError


@pytest.fixture(autouse=True)
def stack_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("UPS_STACK_DIR", str(tmp_path / ".stack"))
    return tmp_path / ".stack"


@pytest.fixture
def busy_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_settings_are_remembered_and_can_be_changed_one_by_one():
    assert Stack.find().api_url == "http://127.0.0.1:4200/api"
    Stack.find(prefect_port=4999).remember()
    assert Stack.find().prefect_port == 4999
    assert Stack.find(s3_port=9999).s3_url == "http://127.0.0.1:9999"
    assert Stack.find(s3_port=9999).prefect_port == 4999


@pytest.mark.parametrize(
    ("field", "names"),
    [
        ("prefect_port", "--prefect-port or UPS_PREFECT_PORT"),
        ("s3_port", "--s3-port or UPS_S3_PORT"),
    ],
)
def test_a_busy_port_is_named_with_the_option_that_changes_it(busy_port, field, names):
    with pytest.raises(StackError, match=rf"port {busy_port} .* {names}"):
        Stack.find(**{field: busy_port}).check_port(field)


def test_an_address_of_another_machine_is_refused():
    with pytest.raises(StackError, match=r"cannot listen on 192\.0\.2\.1.*UPS_HOST"):
        Stack.find(host="192.0.2.1", prefect_port=4999).check_port("prefect_port")


def test_the_keys_of_the_object_store_are_made_once_and_readable_by_their_owner_only(stack_dir):
    first = Stack.find().store_env()
    assert Stack.find().store_env() == first
    assert first["AWS_SECRET_ACCESS_KEY"] in (stack_dir / "env").read_text()
    assert stat.S_IMODE((stack_dir / "env").stat().st_mode) == 0o600


def test_accounts_and_servers_of_the_user_do_not_reach_the_stack(monkeypatch):
    monkeypatch.setenv("AWS_PROFILE", "work")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "x")
    monkeypatch.setenv("PREFECT_API_KEY", "x")
    monkeypatch.setenv("PREFECT_API_URL", "https://api.prefect.cloud/api")
    monkeypatch.setenv("PREFECT_WORKER_QUERY_SECONDS", "7")
    stack = Stack.find()
    env = stack.prefect_env()
    assert not {"AWS_PROFILE", "AWS_SESSION_TOKEN", "PREFECT_API_KEY"} & env.keys()
    assert env["PREFECT_API_URL"] == stack.api_url
    assert env["PREFECT_WORKER_QUERY_SECONDS"] == "7"


def test_a_server_that_listens_everywhere_is_reached_on_loopback():
    assert Stack.find(host="0.0.0.0").ui_url == "http://127.0.0.1:4200"


def test_the_stack_writes_bytecode_whatever_the_shell_says(monkeypatch):
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert "PYTHONDONTWRITEBYTECODE" not in Stack.find().prefect_env()


def test_scheduled_runs_are_not_started_before_their_time(monkeypatch):
    monkeypatch.delenv("PREFECT_WORKER_PREFETCH_SECONDS", raising=False)
    assert Stack.find().prefect_env()["PREFECT_WORKER_PREFETCH_SECONDS"] == "0"
