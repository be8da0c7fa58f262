import stat

import pytest

from deployments import layout
from deployments.layout import Stack, StackError
from deployments.stack import up


@pytest.fixture(autouse=True)
def stack_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("UPS_STACK_DIR", str(tmp_path / ".stack"))
    return tmp_path / ".stack"


def test_settings_are_remembered_and_can_be_changed_one_by_one():
    assert Stack.find().api_url == "http://127.0.0.1:4200/api"
    Stack.find(prefect_port=4999).remember()
    assert Stack.find().prefect_port == 4999
    assert Stack.find(s3_port=9999).s3_url == "http://127.0.0.1:9999"
    assert Stack.find(s3_port=9999).prefect_port == 4999


@pytest.mark.parametrize("field", ["prefect_port", "s3_port"])
def test_a_busy_port_is_named_with_the_option_that_changes_it(busy_port, field):
    names = f"--{field.replace('_', '-')} or UPS_{field.upper()}"
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


@pytest.mark.parametrize(
    ("name", "of_the_shell", "of_the_stack"),
    [
        ("AWS_PROFILE", "work", None),
        ("AWS_SESSION_TOKEN", "x", None),
        ("PREFECT_API_KEY", "x", None),
        ("PREFECT_API_URL", "https://api.prefect.cloud/api", "http://127.0.0.1:4200/api"),
        ("PREFECT_WORKER_QUERY_SECONDS", "7", "7"),
        ("PREFECT_WORKER_PREFETCH_SECONDS", None, "0"),  # no run starts before its time
        ("PYTHONDONTWRITEBYTECODE", "1", None),
    ],
)
def test_no_account_server_or_brake_of_the_shell_reaches_the_stack(
    name, of_the_shell, of_the_stack, monkeypatch
):
    monkeypatch.delenv(name, raising=False)
    if of_the_shell:
        monkeypatch.setenv(name, of_the_shell)
    assert Stack.find().prefect_env().get(name) == of_the_stack


def test_a_server_that_listens_everywhere_is_reached_on_loopback():
    assert Stack.find(host="0.0.0.0").ui_url == "http://127.0.0.1:4200"


def test_an_installed_package_says_that_the_stack_needs_a_clone(stack_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "PROJECT_DIR", tmp_path)
    with pytest.raises(StackError, match=rf"no prefect.yaml in {tmp_path}.*`git clone`.*make up"):
        up(Stack.find(), lambda *_: None)
    assert not stack_dir.exists()
