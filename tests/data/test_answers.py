"""What stores and proxies answer, where S3 leaves it open, and what stores refuse."""

from __future__ import annotations

import hashlib
import logging
import random
import threading
import time
import traceback
from contextlib import closing

import pytest
from botocore.exceptions import HTTPClientError

from ups.data.answers import receive
from ups.data.objectstore import ObjectStore
from ups.data.s3errors import Retry, retrying
from ups.data.transfer import download
from ups.errors import ConfigError, FetchError, Interrupted, ObjectUnavailable, UpsError

MIB = 1 << 20
BUCKET = "answers"
CONTENT = random.Random(1).randbytes(2 * MIB + 345)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
QUICK = Retry(attempts=3, first_wait_s=0.01, max_wait_s=0.02, lasting_s=0)


@pytest.fixture(scope="module", autouse=True)
def environment(s3):
    with s3.used():
        yield


@pytest.fixture(scope="module")
def put(s3):
    """`put(name)`: an object without a manifest."""
    import boto3

    with closing(boto3.client("s3", region_name="us-east-1")) as client:
        client.create_bucket(Bucket=BUCKET)
        yield lambda name: client.put_object(Bucket=BUCKET, Key=name, Body=CONTENT) and name


@pytest.fixture(scope="module")
def store(proxy_handler):
    with closing(ObjectStore(proxy_handler.proxy.url, retry=QUICK)) as store:
        yield store


@pytest.fixture
def connect_once():
    """A store, and what counts the connections that it has made."""
    with closing(ObjectStore(retry=QUICK)) as store:
        pools = store._client._endpoint.http_session._manager
        yield store, lambda: pools.connection_from_url(store.endpoint).num_connections


@pytest.fixture
def fetch(store, proxy, put, tmp_path):
    key = put("x.h5")

    def fetch(**options):
        return download(store, BUCKET, key, tmp_path / "x.h5", range_bytes=MIB, **options)

    yield fetch
    for thread in threading.enumerate():
        if thread.name.startswith("fetch "):
            thread.join()  # one may have been asking for its next range


def without(*names):
    """An edit of headers that leaves some out of the answers to a method."""
    *names, method = names

    def edit(asked, headers):
        if asked == method:
            for name in names:
                headers.pop(name, None)
            if "Content-Length" in names:
                headers["Connection"] = "close"

    return edit


def weaken(method, headers):
    if method == "GET" and "Etag" in headers:
        headers["Etag"] = "W/" + headers["Etag"]


def compress(method, headers):
    if method == "GET" and "Etag" in headers:
        headers["Etag"] = headers["Etag"][:-1] + '-gzip"'


def hide_total(method, headers):
    if "Content-Range" in headers:
        headers["Content-Range"] = headers["Content-Range"].partition("/")[0] + "/*"


# What works


@pytest.mark.parametrize(
    "edit",
    [
        weaken,
        compress,
        hide_total,
        without("Etag", "GET"),
        without("Etag", "HEAD"),
        without("Content-Length", "GET"),
        without("Content-Length", "HEAD"),
        without("Last-Modified", "GET"),
    ],
    ids=[
        "weak ETag of GET",
        "ETag of a compressing proxy",
        "total of *",
        "no ETag of GET",
        "no ETag of HEAD",
        "no Content-Length of GET",
        "no Content-Length of HEAD",
        "no Last-Modified of GET",
    ],
)
def test_answers_that_s3_allows_and_proxies_make_are_understood_twice(fetch, proxy, tmp_path, edit):
    proxy.faults.edit = edit
    assert fetch().sha256 == SHA256
    proxy.ranges.clear()
    assert fetch().reused
    assert proxy.ranges in ([], ["bytes=0-0"])  # one byte, where HEAD does not say the size
    (tmp_path / ".x.h5.stamp").unlink()
    assert fetch().sha256 == SHA256  # begins with a HEAD


@pytest.mark.parametrize("status", [403, 405])
def test_a_store_that_refuses_head_is_asked_by_get(fetch, proxy, tmp_path, status):
    proxy.faults.head_status = status
    assert fetch().sha256 == SHA256
    assert fetch().reused
    (tmp_path / "x.h5").write_bytes(b"damaged")
    assert fetch().sha256 == SHA256


@pytest.mark.parametrize("is_known", [False, True])
def test_an_object_of_a_store_without_ranges_comes_in_one_piece_and_goes_on_where_it_was_cut(
    fetch, proxy, tmp_path, is_known
):
    if is_known:  # then it begins with a HEAD, and asks for several ranges
        (tmp_path / "x.h5").write_bytes(b"earlier")
        proxy.faults.edit = lambda method, headers: headers.update({"Etag": '"whole"'})
    proxy.faults.whole, proxy.faults.truncate, proxy.faults.cut_after = CONTENT, 1, MIB + 1000
    assert fetch().sha256 == SHA256
    assert len(proxy.ranges) <= (2 if not is_known else 6)


# What is verified


def test_without_a_manifest_the_bytes_are_compared_with_an_etag_that_is_an_md5(
    fetch, proxy, tmp_path
):
    proxy.faults.corrupt = 1
    assert fetch().is_verified  # the second time
    (tmp_path / "x.h5").unlink()
    proxy.faults.corrupt = 10**6
    md5 = hashlib.md5(CONTENT).hexdigest()
    with pytest.raises(FetchError, match=f"expected {md5} by its ETag; .* put a manifest.json"):
        fetch()
    assert not (tmp_path / "x.h5").exists()


@pytest.mark.parametrize(
    "marks",
    [
        {"Etag": f'"{hashlib.md5(CONTENT).hexdigest()}-2"'},
        {"Etag": '"0123456789abcdef0123456789abcdef"', "x-amz-server-side-encryption": "aws:kms"},
    ],
    ids=["of parts", "encrypted"],
)
def test_an_etag_that_is_no_md5_is_not_compared_and_the_log_says_that_nothing_was(
    fetch, proxy, caplog, marks
):
    proxy.faults.edit = lambda method, headers: headers.update(marks)
    first, second = fetch(), fetch()
    assert (first.is_verified, second.is_verified, second.reused) == (False, False, True)
    said = [line.message for line in caplog.records if line.levelno >= logging.WARNING]
    assert len(said) == 1
    assert "no manifest has its sha256" in said[0]


def test_the_total_of_content_range_is_compared_with_the_size_by_head(fetch, proxy, tmp_path):
    def shorten(method, headers):
        headers.update({"Etag": '"no-md5"'})
        if "Content-Range" in headers:
            headers["Content-Range"] = f"bytes 0-{MIB - 1}/{MIB}"

    proxy.faults.edit = shorten
    with pytest.raises(FetchError, match="1048576 bytes by Content-Range, 2097497 by HEAD"):
        fetch()
    assert not (tmp_path / "x.h5").exists()
    (tmp_path / "x.h5").write_bytes(b"earlier")  # begins with a HEAD
    with pytest.raises(FetchError, match="1048576 bytes by the answer to a range, 2097497 before"):
        fetch()


# What is named


CAP = (
    "Cannot download file, download bandwidth or transaction (Class B) cap exceeded. See the Caps "
    "and Alerts page to increase your cap."
)
REGION = (
    "The authorization header is malformed; the region 'us-east-1' is wrong; expecting "
    "'eu-central-003'"
)


@pytest.mark.parametrize(
    ("refuse", "match"),
    [
        ((403, "RequestTimeTooSkewed", "too large"), "the clock of this machine is wrong by more"),
        ((400, "ExpiredToken", "has expired"), "token has expired: get new .*AWS_SESSION_TOKEN"),
        ((400, "InvalidToken", "malformed"), "does not know the session token: .*unset"),
        ((403, "AccessDenied", CAP), r"\(Class B\) cap exceeded. See the Caps .*: raise the cap"),
        ((400, "AuthorizationHeaderMalformed", REGION), "AWS_DEFAULT_REGION to eu-central-003"),
        ((301, "PermanentRedirect", "use the endpoint"), "elsewhere; set AWS_DEFAULT_REGION"),
        ((403, "InvalidObjectState", "class"), r"archived .*`aws s3api restore-object`"),
        ((403, "AccessDenied", "by a policy"), r"refuses access \(AccessDenied .*: by a policy\)"),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_what_a_store_refuses_reaches_the_user_at_once_with_the_remedy(
    fetch, store, proxy, refuse, match
):
    proxy.faults.refuse = refuse
    with pytest.raises(ObjectUnavailable, match=match):
        fetch()
    assert proxy.faults.refused <= 2  # the object and its manifest, each asked for once
    with pytest.raises(ObjectUnavailable, match=match):  # although a HEAD has no body
        store.head(BUCKET, "x.h5")


def test_a_redirect_is_named_with_where_it_leads(fetch, proxy):
    proxy.faults.refuse = (301, "", "")
    proxy.faults.edit = lambda _, headers: headers.update({"Location": "https://elsewhere/x"})
    with pytest.raises(ObjectUnavailable, match="HTTP 301: .*_S3, if set, to https://elsewhere/x"):
        fetch()


def test_an_archived_object_is_named_before_it_is_asked_for(store, fetch, proxy):
    proxy.faults.edit = lambda _, headers: headers.update({"x-amz-storage-class": "GLACIER"})
    with pytest.raises(ObjectUnavailable, match=r"archived \(GLACIER\); restore it"):
        store.head(BUCKET, "x.h5")
    restored = {"x-amz-restore": 'ongoing-request="false", expiry-date="…"'.replace("…", "later")}
    proxy.faults.edit = lambda _, headers: headers.update(
        {"x-amz-storage-class": "GLACIER", **restored}
    )
    assert store.head(BUCKET, "x.h5").num_bytes == len(CONTENT)


def test_a_web_page_is_no_store(fetch, proxy):
    proxy.faults.page = True
    with pytest.raises(ObjectUnavailable, match=r"a web page \(text/html\): that is no S3 endp"):
        fetch()
    proxy.faults.page = False
    proxy.faults.edit = lambda method, headers: [
        headers.pop(name, None) for name in ("Etag", "Last-Modified")
    ]
    with pytest.raises(ObjectUnavailable, match="without ETag and Last-Modified: that is no S3 e"):
        fetch()


def test_bytes_that_are_compressed_on_the_way_are_named(fetch, proxy):
    def compressed(method, headers):
        if "Content-Range" in headers:
            headers |= {"Content-Encoding": "gzip", "Content-Length": "1000", "Connection": "close"}

    proxy.faults.edit = compressed
    with pytest.raises(FetchError, match="Content-Encoding gzip are offered as 1000: something"):
        fetch()


# What passes


def test_a_store_that_is_away_for_a_while_is_waited_for(caplog):
    caplog.set_level(logging.INFO, "ups.data.s3errors")
    back_at = time.monotonic() + 0.3

    def call():
        if time.monotonic() < back_at:
            raise ConnectionError("away")
        return "there"

    retry = Retry(attempts=2, first_wait_s=0.01, max_wait_s=0.02, lasting_s=0.6)
    again = {"uri": "s3://b/k", "endpoint": "http://away", "retry": retry}
    assert retrying(call, **again) == "there"
    assert len(caplog.records) == 1  # more than ten times it failed
    assert "away; failing for 0 of 1 s, trying again in" in caplog.text
    back_at = time.monotonic() + 60
    with pytest.raises(FetchError, match="gave up after"):
        retrying(call, **again)
    assert 0.6 <= time.monotonic() - (back_at - 60) < 5
    assert Retry().lasting_s >= 60


def test_a_store_that_asks_for_a_pause_gets_it_and_a_stop_ends_it(fetch, store, proxy, tmp_path):
    proxy.faults.answer_503, proxy.faults.retry_after, began = 1, "1", time.monotonic()
    assert fetch(num_threads=1).sha256 == SHA256
    assert time.monotonic() - began >= 1
    stop = threading.Event()
    timer = threading.Timer(0.2, stop.set)
    timer.start()
    proxy.faults.answer_503, proxy.faults.retry_after, began = 10**6, "60", time.monotonic()
    with pytest.raises(Interrupted):
        download(store, BUCKET, "x.h5", tmp_path / "other.h5", stop=stop)
    assert time.monotonic() - began < 3
    timer.join()


# What is shown


@pytest.mark.parametrize(
    "name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"]
)
def test_a_line_break_in_a_credential_is_named_before_any_request(monkeypatch, proxy, name):
    monkeypatch.setenv(name, "VERYSECRET\n")
    with pytest.raises(ObjectUnavailable, match=f"^{name}: holds a line break") as info:
        ObjectStore(proxy.url)
    assert "VERYSECRET" not in str(info.value)


def test_a_header_that_cannot_be_sent_is_not_shown():
    error = HTTPClientError(error=ValueError(r"Invalid header value b'VERYSECRET\n'"))

    def call():
        raise error

    with pytest.raises(ObjectUnavailable, match="hold a character that no header") as info:
        retrying(call, uri="s3://b/k", endpoint="http://e", retry=QUICK)
    assert "VERYSECRET" not in "".join(traceback.format_exception(info.value))


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"])
@pytest.mark.parametrize("url", ["http://me:VERYSECRET@127.0.0.1:9", "me:VERY/SECRET@127.0.0.1"])
def test_a_login_in_the_endpoint_is_refused_and_not_shown(monkeypatch, name, url):
    monkeypatch.setenv(name, url)
    with pytest.raises(ConfigError, match=f"^{name}: holds a login") as info:
        ObjectStore()
    assert "VERY" not in str(info.value)


def test_what_a_store_repeats_of_the_credentials_is_left_out(fetch, proxy, s3):
    proxy.faults.refuse = (403, "AccessDenied", f"no user {s3.access_key} at http://me:pw@host")
    with pytest.raises(UpsError, match="no user … at http://…@host"):
        fetch()


def test_a_connection_is_used_again_where_all_of_the_body_was_received_and_only_there(
    connect_once, put
):
    store, num_connections = connect_once
    info, buffer = store.head(BUCKET, put("x.h5")), memoryview(bytearray(MIB))

    def ask(start, end, times):
        body = store.open_range(info, start, end)
        found = [bytes(buffer[: receive(body, buffer)]) for _ in range(times)]
        body.close()
        return b"".join(found)

    assert ask(100, 1100, 1) == CONTENT[100:1100]
    before = num_connections()
    assert ask(0, len(CONTENT), 3) == CONTENT
    assert ask(5, 1005, 2) == CONTENT[5:1005], "nothing comes after the end"
    assert num_connections() == before
    for _ in range(before + 1):
        assert ask(0, len(CONTENT), 1) == CONTENT[:MIB]
    assert num_connections() > before, "what is left of a body would be taken for an answer"


def test_a_connection_that_broke_in_a_body_is_not_used_again(store, proxy, put):
    info, buffer = store.head(BUCKET, put("x.h5")), memoryview(bytearray(MIB))
    proxy.faults.truncate, proxy.faults.cut_after = 1, 1000
    body = store.open_range(info, 0, MIB)
    assert [receive(body, buffer), receive(body, buffer)] == [1000, 0]
    assert body._raw_stream._connection is not None, "it would go back to the others"
    body.close()
