"""The address of a PostgreSQL database; `test_deploy` has a server on one."""

import pytest

from deployments.database import CONNECTION_URL, check_database, database_env
from deployments.layout import Stack, StackError
from tests.live import free_ports


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("postgres://u:p%40@h:5433/n", "postgresql+asyncpg://u:p%40@h:5433/n"),
        ("postgresql://u:p@h/n?sslmode=require", "postgresql+asyncpg://u:p@h/n?ssl=require"),
    ],
)
def test_an_address_is_given_to_the_server_as_its_driver_takes_it(given, expected):
    assert database_env(given)[CONNECTION_URL] == expected
    assert database_env("") == {}  # SQLite


@pytest.mark.parametrize(
    "given",
    [
        *("mysql://u:secret@h/n", "postgresql://u:secret@h", "secret"),
        *("postgresql://u:secret/more@h/n", "postgresql://[u:secret@h/n"),
    ],
)
def test_what_is_no_address_of_postgresql_is_refused_without_its_password(given):
    with pytest.raises(StackError, match="UPS_DATABASE_URL is no address of a Postgre") as caught:
        check_database(given)
    assert "secret" not in str(caught.value)


def test_a_database_that_does_not_answer_is_said_before_anything_starts():
    (port,) = free_ports(1)
    with pytest.raises(StackError, match=rf"no database n at 127.0.0.1:{port} \(") as caught:
        check_database(f"postgresql://u:secret@127.0.0.1:{port}/n")
    assert "secret" not in str(caught.value)


def test_only_the_server_gets_the_address_and_a_login_reaches_every_client(tmp_path, monkeypatch):
    monkeypatch.setenv("UPS_STACK_DIR", str(tmp_path / ".stack"))
    monkeypatch.setenv("UPS_DATABASE_URL", "postgresql://u:secret@h/n")
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "postgresql://u:secret@h/n")
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "admin:x")
    stack = Stack.find()
    env = stack.prefect_env()
    assert not any("secret" in value for value in env.values())
    assert env["PREFECT_API_AUTH_STRING"] == env["PREFECT_SERVER_API_AUTH_STRING"] == "admin:x"
    with stack.client(1) as client:
        assert client.headers["Authorization"] == "Basic YWRtaW46eA=="
    stack.remember()
    monkeypatch.delenv("UPS_DATABASE_URL")
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "")  # no more
    later = Stack.find()
    assert (later.login, later.database) == ("", "postgresql://u:secret@h/n")
    assert "secret" not in repr(later)
