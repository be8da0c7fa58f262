"""Settings are worked out once, and anew where their sources have changed."""

import prefect.context
import pytest
from prefect.settings import (
    PREFECT_LOGGING_LEVEL,
    PREFECT_PROFILES_PATH,
    Settings,
    temporary_settings,
)

from deployments.settings import (
    environment_of_settings,
    keep_environment_of_settings,
    refresh_settings,
    sources_of_settings,
)


@pytest.fixture
def writes(monkeypatch):
    """The settings that were written as variables, one by one."""
    written, write = [], Settings.to_environment_variables
    monkeypatch.setattr(
        Settings,
        "to_environment_variables",
        lambda self, **options: written.append(self) or write(self, **options),
    )
    return written


def test_the_variables_of_the_current_settings_are_written_once(writes):
    before = environment_of_settings()
    keep_environment_of_settings()
    writes.clear()
    first = environment_of_settings()
    first["LEFT_BEHIND"] = "1"
    assert environment_of_settings() == before
    assert len(writes) == 1


def test_other_settings_are_written_as_they_are(writes):
    keep_environment_of_settings()
    with temporary_settings({PREFECT_LOGGING_LEVEL: "CRITICAL"}):
        assert environment_of_settings()["PREFECT_LOGGING_LEVEL"] == "CRITICAL"
    assert environment_of_settings().get("PREFECT_LOGGING_LEVEL") != "CRITICAL"


@pytest.fixture
def refreshed(monkeypatch, tmp_path):
    """Whether settings were read again, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    calls = []
    monkeypatch.setattr(
        prefect.context, "refresh_global_settings_context", lambda: calls.append(True)
    )
    return calls


def test_settings_whose_sources_are_the_same_are_not_read_again(refreshed, monkeypatch):
    known = sources_of_settings()
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "of-one-run")
    refresh_settings(known)
    assert refreshed == []


@pytest.mark.parametrize("name", [".env", "prefect.toml", "pyproject.toml"])
def test_a_file_that_came_has_settings_read_again(refreshed, tmp_path, name):
    known = sources_of_settings()
    (tmp_path / name).touch()
    refresh_settings(known)
    assert refreshed == [True]


def test_a_profile_that_changed_has_settings_read_again(refreshed, tmp_path):
    with temporary_settings({PREFECT_PROFILES_PATH: tmp_path / "profiles.toml"}):
        known = sources_of_settings()
        (tmp_path / "profiles.toml").touch()
        refresh_settings(known)
    assert refreshed == [True]


def test_a_variable_that_changed_has_settings_read_again(refreshed, monkeypatch):
    known = sources_of_settings()
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere/api")
    refresh_settings(known)
    assert refreshed == [True]
