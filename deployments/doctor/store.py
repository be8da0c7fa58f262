"""The object stores: the one of this machine's stack, and the one that this shell names."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from deployments.doctor.findings import Finding, Findings
from deployments.layout import Stack
from ups.background import Background
from ups.data.connect import ENDPOINTS, connect
from ups.data.s3errors import CREDENTIALS_HINT, answer, describe, explain, transport_errors
from ups.errors import UpsError

TIMEOUT_S = 8.0
IMPORT_S = 30.0  # of boto3, on a machine that is busy, and of a cloud's own credentials
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
NUM_NAMED = 5  # buckets in a line


def examine_stores(stack: Stack, bucket: str | None) -> list[Finding]:
    """Ask each store that is known here, with the keys that are known here.

    Args:
        bucket: to look into, in this shell's store.
    """
    store, credentials = Findings("store"), Findings("credentials")
    _examine_own_store(stack, store)
    _examine_own_keys(stack, credentials)
    if _names_a_store():
        given = [name for name in KEYS if os.environ.get(name)]
        if len(given) == 1:
            (missing,) = set(KEYS) - set(given)
            credentials.fault("this shell's", f"{given[0]} without {missing}", f"set {missing}")
        else:
            _examine_named_store(stack, bucket, store, credentials)
    else:
        store.skip("this shell's", "none is named", "local runs use this machine's")
        credentials.skip("this shell's", "none", f"for a store of your own {CREDENTIALS_HINT}")
    return [*store, *credentials]


def _names_a_store() -> bool:
    """Whether variables or the files of AWS's tools lead to a store or hold keys."""
    names = (*KEYS, *ENDPOINTS, "AWS_PROFILE", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE")
    files = {"AWS_SHARED_CREDENTIALS_FILE": "credentials", "AWS_CONFIG_FILE": "config"}
    paths = [os.environ.get(n) or Path.home() / ".aws" / file for n, file in files.items()]
    return any(map(os.environ.get, names)) or any(Path(path).is_file() for path in paths)


def _examine_own_store(stack: Stack, findings: Findings) -> None:
    process, keys = stack.processes.running("object-store"), stack.known_store_env()
    if not process:
        others = [p for p in ("prefect-server", "worker") if stack.processes.running(p)]
        if others:
            what = f"it does not run, but {', '.join(others)} does"
            findings.fault("this machine's", what, "`ups up`")
        else:
            findings.skip("this machine's", "it does not run", "`make up` starts it")
        return
    log = stack.processes.log_path("object-store")
    try:
        buckets = _within(lambda: _client_of(stack.s3_url, keys).list_buckets(), stack.s3_url)
    except UpsError as error:
        findings.fault("this machine's", str(error), f"see {log}, then `ups down` and `ups up`")
    else:
        listed = _listed(buckets)
        findings.ok("this machine's", f"{stack.s3_url} answers (pid {process.pid}); {listed}")


def _examine_own_keys(stack: Stack, findings: Findings) -> None:
    path = stack.env_file
    if not path.exists():
        findings.skip("this machine's", "none yet", "`make up` makes them")
    elif missing := [name for name in KEYS if not stack.known_store_env().get(name)]:
        remedy = f"remove {path}, then `ups down` and `ups up`"
        findings.fault("this machine's", f"{path} lacks {', '.join(missing)}", remedy)
    elif stat.S_IMODE(path.stat().st_mode) & 0o077:
        findings.warn("this machine's", f"others may read {path}", f"`chmod 600 {path}`")
    else:
        findings.ok("this machine's", f"in {path}; `set -a; source {path}` loads them")


def _examine_named_store(
    stack: Stack, bucket: str | None, store: Findings, credentials: Findings
) -> None:
    try:
        client = _within(lambda: connect(None), "the object store", IMPORT_S)
    except UpsError as error:
        credentials.fault("this shell's", str(error), "")  # it says the remedy itself
        return
    endpoint = client.meta.endpoint_url
    if endpoint == stack.s3_url and not stack.processes.running("object-store"):
        store.skip("this shell's", f"{endpoint}, this machine's, which does not run", "`make up`")
        return
    found = _within(_credentials, endpoint)
    if found is None:
        credentials.fault("this shell's", f"none for {endpoint}", CREDENTIALS_HINT)
        return
    where = {"env": "of the environment"}.get(found.method, f"by {found.method}")
    try:
        if bucket is None:
            listed = _listed(_within(client.list_buckets, endpoint))
        else:
            ask = {"Bucket": bucket, "MaxKeys": 1}
            some = _within(lambda: client.list_objects_v2(**ask), f"s3://{bucket}").get("Contents")
            listed = f"bucket {bucket} can be listed" + ("" if some else ", and is empty")
    except UpsError as error:
        if bucket is None and answer(error.__cause__)[0] in (
            "AccessDenied",
            "AccessDeniedException",
        ):
            what = f"{endpoint} answers; these keys may not list its buckets"
            store.skip("this shell's", what, "`ups doctor --bucket NAME` looks into one")
            credentials.ok("this shell's", where)
            return
        remedy = f"look at AWS_ENDPOINT_URL_S3, and at the keys {where}"
        store.fault("this shell's", str(error), remedy)
        return
    store.ok("this shell's", f"{endpoint} answers; {listed}")
    credentials.ok("this shell's", f"{where}, taken by {endpoint}")


def _credentials() -> Any:
    """What boto3 finds: in the environment, a profile, or what a machine in a cloud is given."""
    import boto3

    return boto3.session.Session().get_credentials()


def _client_of(url: str, keys: dict[str, str]) -> Any:
    import boto3
    from botocore.config import Config

    once = Config(
        connect_timeout=TIMEOUT_S,
        read_timeout=TIMEOUT_S,
        retries={"total_max_attempts": 1},
        s3={"addressing_style": "path"},
    )
    session = boto3.session.Session(*(keys.get(name) for name in KEYS))
    return session.client("s3", region_name="us-east-1", endpoint_url=url, config=once)


def _within(call: Any, uri: str, timeout_s: float = TIMEOUT_S) -> Any:
    """What the call returns, in time whatever the store does.

    Raises:
        UpsError: it failed, or took too long.
    """
    asked = Background(call, "ask the object store")
    if not asked.is_done(timeout_s):
        raise UpsError(f"{uri}: no answer in {timeout_s:g} s")
    try:
        return asked.result()
    except transport_errors() as error:
        raise explain(error, uri, uri) or UpsError(f"{uri}: {describe(error)}") from error


def _listed(answered: dict[str, Any]) -> str:
    names = [bucket["Name"] for bucket in answered["Buckets"]]
    more = f" and {len(names) - NUM_NAMED} more" if len(names) > NUM_NAMED else ""
    return f"buckets: {', '.join(names[:NUM_NAMED])}{more}" if names else "no bucket yet"
