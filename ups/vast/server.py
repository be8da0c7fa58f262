"""The Prefect server that a rented machine is to talk to, asked from here for its login."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from ups.errors import VastError

TIMEOUT_S = 5.0
REFUSED = (401, 403)


def authorization(env: Mapping[str, str]) -> dict[str, str]:
    """The header that a server with a login, or Prefect Cloud, wants; as Prefect's client does."""
    if login := env.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
    if key := env.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    return {}


def check_login(url: str, env: Mapping[str, str]) -> None:
    """Ask the server once with the login of this shell; one that is not reached is no fault here.

    Args:
        url: of its API.
    Raises:
        VastError: it refuses the login, or there is none.
    """
    import httpx

    try:
        answer = httpx.post(
            f"{url.rstrip('/')}/work_pools/filter",
            json={},
            headers=authorization(env),
            timeout=TIMEOUT_S,
            follow_redirects=True,
        )
    except (httpx.HTTPError, httpx.InvalidURL):
        return  # a tunnel may come later, and a machine may reach what this one does not
    if answer.status_code in REFUSED:
        said = "refuses this login" if authorization(env) else "wants a login"
        raise VastError(
            f"the Prefect server at {url} {said} (HTTP {answer.status_code}): set "
            "PREFECT_API_AUTH_STRING (user:password) or PREFECT_API_KEY here, and send it with "
            "`ups vast setup-env`"
        )
