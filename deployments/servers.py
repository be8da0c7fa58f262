"""The Prefect server that this shell names, and what keeps it from being used."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from deployments import prefect_api as api
from deployments.layout import StackError
from ups.data.s3errors import redacted

log = logging.getLogger("prefect.worker.login")
TIMEOUT_S = 5.0
WRONG_ADDRESS = "the address ends with /api: correct PREFECT_API_URL"
ITS_FAULT = "ask again in a minute; the log of that server says more"
NO_ANSWER = "start that server, or name another; `prefect config view` says where this one stands"


class ServerFault(StackError):
    """Raised when a server cannot be used.

    Attributes:
        what: is wrong with it.
        remedy: what to do about it.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what, remedy)
        self.what, self.remedy = what, remedy

    def __str__(self) -> str:
        return f"{self.what}: {self.remedy}"


class LoginRefused(ServerFault):
    """Raised when a server wants a login, or another one."""


@dataclass(frozen=True, slots=True)
class NamedServer:
    """A server as Prefect's settings name it.

    Attributes:
        login: the variables that its clients need beside the address.
        ui_url: where its pages are; empty: unknown.
    """

    url: str
    login: Mapping[str, str] = field(default_factory=dict, repr=False)
    ui_url: str = field(default="", repr=False)

    @property
    def shown(self) -> str:
        """Its address, without a password that may stand in it."""
        return redacted(self.url)

    @property
    def env(self) -> dict[str, str]:
        """The variables with which Prefect talks to it, whatever a file says."""
        return {"PREFECT_API_URL": self.url, **self.login}

    def client(self, timeout_s: float = TIMEOUT_S) -> httpx.Client:
        headers = api.authorization(self.login)
        return httpx.Client(
            base_url=self.url, headers=headers, timeout=timeout_s, follow_redirects=True
        )

    @contextlib.contextmanager
    def asked(self) -> Iterator[httpx.Client]:
        """A client, and its faults with the server's address.

        Raises:
            ServerFault: the server cannot be used, answers an error, or not at all.
        """
        with self.client() as client:
            try:
                yield client
            except ServerFault as fault:
                raise type(fault)(f"{self.shown}: {fault.what}", fault.remedy) from None
            except httpx.HTTPStatusError as error:
                answer = error.response
                what = f"{self.shown}: HTTP {answer.status_code}: {answer.text[:200]}"
                raise ServerFault(what, ITS_FAULT) from None
            except httpx.HTTPError as error:
                raise ServerFault(f"{self.shown}: no answer ({error!r})", NO_ANSWER) from None


def named_server() -> NamedServer | None:
    """What Prefect's own settings say: variables, `prefect.toml` of this folder, the profile.

    Returns:
        None where they name no server.
    Raises:
        ServerFault: Prefect refuses the settings.
    """
    from pydantic import ValidationError

    try:
        from prefect.settings import get_current_settings

        ui_url = redacted(get_current_settings().ui_url or "")
        settings = get_current_settings().api
    except ValidationError as error:  # whose text would show the values
        faults = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()]
        raise ServerFault(
            f"Prefect refuses {error.title}: {'; '.join(faults)}",
            "correct the variable PREFECT_…, prefect.toml, or the profile that sets it",
        ) from None
    if not settings.url:
        return None
    known = {"PREFECT_API_AUTH_STRING": settings.auth_string, "PREFECT_API_KEY": settings.key}
    login = {name: value.get_secret_value() for name, value in known.items() if value is not None}
    return NamedServer(settings.url.rstrip("/"), login, ui_url.rstrip("/"))


def check_login() -> None:
    """Ask the server that this shell names once; one that is away may come back.

    Raises:
        LoginRefused: it refuses the login, or there is none.
    """
    server = named_server()
    if server is None:
        return
    try:
        with server.asked() as client:
            ask_for_pools(client)
    except LoginRefused:
        raise
    except ServerFault as fault:
        log.warning("%s: asking on", fault.what)


def ask_for_pools(client: httpx.Client) -> dict[str, dict[str, Any]]:
    """The server's work pools, by their names.

    Raises:
        LoginRefused: it wants a login, or another one.
        ServerFault: it does not answer, or is no Prefect server.
    """
    try:
        answer = client.post("/work_pools/filter", json={})
        if answer.status_code in (401, 403):
            said = "refuses this login" if "Authorization" in client.headers else "wants a login"
            raise LoginRefused(
                f"it {said} (HTTP {answer.status_code})",
                "set PREFECT_API_AUTH_STRING (user:password) or PREFECT_API_KEY",
            )
        return {pool["name"]: pool for pool in answer.raise_for_status().json()}
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        remedy = WRONG_ADDRESS if status < 500 else ITS_FAULT
        raise ServerFault(f"it answers HTTP {status}", remedy) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ServerFault(f"no answer ({type(error).__name__}: {error})", NO_ANSWER) from None
    except (ValueError, KeyError, TypeError):
        raise ServerFault("what answers there is not Prefect's API", WRONG_ADDRESS) from None
