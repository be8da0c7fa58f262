"""Make the client of an object store, after what would fail or show a secret later is refused."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from ups.data.s3errors import CREDENTIALS_HINT, SECRETS, describe, transport_errors
from ups.errors import ConfigError, ObjectUnavailable

if TYPE_CHECKING:
    import boto3.session
    from botocore.loaders import Loader
    from mypy_boto3_s3 import S3Client

NUM_CONNECTIONS = 32  # kept open; at least the threads that share a store
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def connect(endpoint_url: str | None) -> S3Client:
    """A client that does not retry by itself.

    Raises:
        ConfigError: the endpoint is no URL, or holds a login.
        ObjectUnavailable: the AWS profile does not exist, or a credential holds a line break.
    """
    from botocore.config import Config
    from botocore.exceptions import ProfileNotFound

    named = {name: url for name in ENDPOINTS if (url := os.environ.get(name))}
    for name, url in {**named, "data.endpoint_url": endpoint_url or ""}.items():
        _refuse_login(name, url)
    config = Config(
        connect_timeout=10,
        read_timeout=60,  # a store may hash a large object before its first answer
        max_pool_connections=NUM_CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": 1},
        request_checksum_calculation="when_required",  # B2 and others know no CRC headers
        response_checksum_validation="when_required",
        s3={"addressing_style": "path" if endpoint_url or named else "auto"},
    )
    try:
        session = _new_session()
        region = session.region_name or "us-east-1"
        client: S3Client = session.client(
            "s3", region_name=region, endpoint_url=endpoint_url, config=config
        )
        if endpoint_url or named:
            client.meta.events.register_first("needs-retry.s3", _refuse_redirect)
        _refuse_login("endpoint_url of the AWS profile", client.meta.endpoint_url)
        _refuse_line_breaks(session.get_credentials())
    except ProfileNotFound as error:
        raise ObjectUnavailable(f"{error}; {CREDENTIALS_HINT}") from error
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"data.endpoint_url (or AWS_ENDPOINT_URL_S3): {error}; expected http(s)://host[:port]"
        ) from error
    except transport_errors() as error:
        raise ObjectUnavailable(f"no client for the object store: {describe(error)}") from error
    return client


def _new_session() -> boto3.session.Session:
    """A session that looks for credentials anew, but reads botocore's descriptions of S3 once."""
    import boto3
    import botocore.session

    core = botocore.session.get_session()
    core.register_component("data_loader", _loader(core.get_config_variable("data_path")))
    return boto3.session.Session(botocore_session=core)


@functools.cache
def _loader(data_path: str | None) -> Loader:
    """Keeps what it has read, which takes a tenth of a second."""
    from botocore.loaders import create_loader

    return create_loader(data_path)


def read_descriptions() -> None:
    """Read botocore's descriptions of S3, for the clients that forks of this process will make."""
    _new_session().client(
        "s3", region_name="us-east-1", aws_access_key_id="none", aws_secret_access_key="none"
    )


def _refuse_redirect(response: Any, operation: Any, **_: Any) -> None:
    """Take a redirect for the answer: boto3 would look for another region of AWS, without end."""
    from botocore.exceptions import ClientError

    if response is not None and 300 < response[0].status_code < 400:
        raise ClientError(response[1], operation.name)


def _refuse_login(name: str, url: str) -> None:
    if "@" in url:
        raise ConfigError(
            f"{name}: holds a login, which would be logged; expected http(s)://host[:port]: give "
            "the keys by AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )


def _refuse_line_breaks(credentials: Any) -> None:
    """Refuse what no header may hold: the error of the request would show it."""
    from botocore.credentials import Credentials

    if type(credentials) is not Credentials:  # none, or fetched anew when they are used
        return
    values = (credentials.access_key, credentials.secret_key, credentials.token)
    for name, value in zip(SECRETS, values, strict=True):
        if not (value or "").isprintable():
            where = name if credentials.method == "env" else f"{name} of the AWS profile"
            raise ObjectUnavailable(
                f"{where}: holds a line break or another control character; set it anew without"
            )
