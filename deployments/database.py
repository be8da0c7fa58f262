"""A PostgreSQL database in place of the SQLite file that the stack's Prefect server has by default.

Its address has a password, so it goes by the environment, and into no message.
"""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qsl, urlencode, urlsplit

from deployments.layout import DATABASE, StackError

SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg")
CONNECTION_URL = "PREFECT_SERVER_DATABASE_CONNECTION_URL"
CONNECT_S = 10.0
# Prefect's own 5 + 10 connections gave HTTP 500 to ten workers with 200 runs.
POOL = {
    "PREFECT_SERVER_DATABASE_SQLALCHEMY_POOL_SIZE": "20",
    "PREFECT_SERVER_DATABASE_SQLALCHEMY_MAX_OVERFLOW": "20",
    "PREFECT_SERVER_DATABASE_CONNECTION_TIMEOUT": "30",
}


def database_env(url: str) -> dict[str, str]:
    """What makes a Prefect server use it; nothing where there is none.

    Raises:
        StackError: it is no address of a PostgreSQL database.
    """
    if not url:
        return {}
    try:
        parts = urlsplit(url)
        is_whole = bool(parts.scheme in SCHEMES and parts.hostname and parts.path.strip("/"))
        is_whole = is_whole and parts.port != 0  # a password with a "/" looks like a port: refused
    except ValueError:  # whose text would show a part of the password
        is_whole = False
    if not is_whole:
        raise StackError(
            f"{DATABASE} is no address of a PostgreSQL database, expected "
            "postgresql://USER:PASSWORD@HOST:PORT/NAME (special characters of the password as %XX)"
        )
    # Its driver has another word for what hosted databases give as `sslmode`.
    query = [("ssl" if key == "sslmode" else key, value) for key, value in parse_qsl(parts.query)]
    changed = parts._replace(scheme="postgresql+asyncpg", query=urlencode(query))
    return {**POOL, CONNECTION_URL: changed.geturl()}


def check_database(url: str) -> None:
    """Connect once: a server that cannot ends in a page of traceback.

    Raises:
        StackError: it does not answer, or refuses.
    """
    if not database_env(url):
        return
    import asyncpg

    parts = urlsplit(url)
    plain = parts._replace(scheme="postgresql").geturl()

    async def connect() -> None:
        await (await asyncpg.connect(plain, timeout=CONNECT_S)).close()

    try:
        asyncio.run(connect())
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        if parts.password:
            said = said.replace(parts.password, "…")
        where = f"{parts.path.strip('/')} at {parts.hostname}:{parts.port or 5432}"
        raise StackError(f"no database {where} ({said}): correct {DATABASE}") from None
