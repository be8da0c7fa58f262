"""Files of a plain web server: ranges, redirects, servers that know no ranges, pages in place."""

import email.utils
import http.server
import json
import re
import sys
import threading
from contextlib import closing

import pytest
from typer.testing import CliRunner

from deployments.cli.app import app
from tests.conftest import TINY_FILE
from ups.config import SPLITS, load_config
from ups.data.sources import open_store, stage
from ups.data.stamps import hash_file
from ups.errors import ObjectUnavailable
from ups.latents.ahead import look
from ups.latents.scouted import Scouted
from ups.progress import logged
from ups.validate.data import validate_data

CHANGED_AT = 1_700_000_000


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.command, self.path, self.headers["Range"]))
        path = self.path.partition("?")[0]
        if path.startswith("/moved/"):
            return self._answer(302, b"", Location=path.removeprefix("/moved"))
        if path.startswith("/loop/"):
            return self._answer(302, b"", Location=path)
        if path.startswith("/page/"):
            return self._answer(200, b"<!doctype html>", **{"Content-Type": "text/html"})
        if path.startswith("/closed/"):
            return self._answer(403, b"no")
        file = self.server.root / path.strip("/").removeprefix("whole/")
        if not file.is_file():
            return self._answer(404, b"<html>none</html>", **{"Content-Type": "text/html"})
        content, headers = file.read_bytes(), {}
        headers["Last-Modified"] = email.utils.formatdate(CHANGED_AT, usegmt=True)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"] or "")
        if not asked or path.startswith("/whole/"):
            return self._answer(200, content, **headers)
        start, end = int(asked[1]), min(int(asked[2]) + 1, len(content))
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        return self._answer(206, content[start:end], **headers)

    do_HEAD = do_GET

    def _answer(self, status, body, **headers):
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # a client may hang up, and is heard
            super().handle_error(request, client_address)


@pytest.fixture
def web(tiny_data, monkeypatch):
    """A web server of the tiny files; `asked` holds its requests."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads, server.root, server.asked = True, tiny_data, []
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def on_web(web, tiny_config, tmp_path):
    """`on_web(below)`: the tiny config whose sources are below this path of the server."""

    def make(below="", **overrides):
        sources = {s: [{"url": f"{web.url}/{below}{TINY_FILE.format(s)}"}] for s in SPLITS}
        given = {"data__root": str(tmp_path / "staged"), "data__sources": sources}
        return tiny_config(**{**given, **overrides})

    return make


@pytest.fixture
def hub(web, tiny_data, tmp_path, monkeypatch):
    """`hub(below)`: a file of a data set on Hugging Face, as the web server has it."""
    monkeypatch.setenv("HF_ENDPOINT", web.url)

    def make(below):
        web.root = tmp_path / "hub"
        there = web.root / "datasets" / "me" / "burgers" / "resolve" / below / "data"
        there.mkdir(parents=True)
        (there / "a.h5").hardlink_to(tiny_data / TINY_FILE.format("train"))
        return there / "a.h5"

    return make


@pytest.mark.parametrize(("revision", "below"), [("", "main"), ("@v1", "v1")])
def test_a_data_set_on_hugging_face_is_a_file_of_its_web_server(on_web, web, hub, revision, below):
    file = hub(below)
    url = f"hf://datasets/me/burgers{revision}/data/a.h5"
    config = on_web(data__sources={split: [{"url": url}] for split in SPLITS})
    (staged,) = stage_train(config)
    assert staged.uri == f"{web.url}/datasets/me/burgers/resolve/{below}/data/a.h5"
    assert staged.sha256 == hash_file(file)


def stage_train(config):
    with closing(open_store(config)) as store:
        return stage(config, "train", store)


@pytest.mark.parametrize("below", ["", "moved/", "whole/"])
def test_a_file_is_fetched_whole_and_once_also_after_a_redirect_and_without_ranges(
    on_web, web, tiny_data, tmp_path, below
):
    config = on_web(below)
    (staged,) = stage_train(config)
    path = tiny_data / TINY_FILE.format("train")
    host = web.url.removeprefix("http://")
    assert staged.uri == f"{web.url}/{below}{path.name}"
    assert staged.path == tmp_path / "staged" / host / below / path.name
    assert (staged.sha256, staged.fetched_bytes) == (hash_file(path), path.stat().st_size)
    assert not staged.is_verified  # nobody says its digest
    web.asked.clear()
    (again,) = stage_train(config)
    assert (again.sha256, again.fetched_bytes) == (staged.sha256, 0)
    assert {method for method, name, _ in web.asked if name.endswith(".h5")} == {"HEAD"}


def test_a_digest_in_a_manifest_beside_it_is_used_and_another_file_of_that_name_is_none(
    on_web, web, tiny_data, tmp_path
):
    root = web.root = tmp_path / "web"
    root.mkdir()
    for split in SPLITS:
        (root / TINY_FILE.format(split)).hardlink_to(tiny_data / TINY_FILE.format(split))
    train = root / TINY_FILE.format("train")
    entry = f'{{"sha256": "{hash_file(train)}", "bytes": {train.stat().st_size}}}'
    (root / "manifest.json").write_text('{"icons": ["of a web app"]}')
    assert not stage_train(on_web())[0].is_verified
    (root / "manifest.json").write_text(f'{{"{train.name}": {entry}}}')
    assert stage_train(on_web(data__root=str(tmp_path / "other")))[0].is_verified


def test_training_streams_from_ranges_and_not_from_a_server_without_them(on_web, web, caplog):
    for below, streams in (("", True), ("whole/", False)):
        config = on_web(below)
        with closing(open_store(config)) as store:
            found = look(config, store, threading.Event(), logged)
            assert isinstance(found, Scouted) == streams
            if streams:
                found.wait()
                found.close()
    assert {asked for method, _, asked in web.asked if method == "GET" and asked}


@pytest.mark.parametrize(
    ("below", "message"),
    [
        ("page/", r"with a web page \(text/html\), expected a file; correct the url"),
        ("closed/", r"answers HTTP 403.*; expected a public file"),
        ("loop/", r"answers HTTP 302"),
        ("none/", r"answers HTTP 404.*; correct the url in data\.sources"),
    ],
)
def test_what_is_no_file_is_one_line_with_its_url_and_validate_says_it_too(
    on_web, web, tmp_path, below, message
):
    config = on_web(below)
    url = f"{web.url}/{below}{TINY_FILE.format('train')}"
    with pytest.raises(ObjectUnavailable, match=f"^{url}:? .*{message}") as caught:
        stage_train(config)
    assert "\n" not in str(caught.value)
    faults = {c.name: c.text for c in validate_data(config)[0] if c.status == "fault"}
    assert faults.keys() == {f"{split} object" for split in SPLITS}
    assert re.search(message, faults["train object"])
    for arguments in (["inspect", url], ["get", url, tmp_path / "got"]):
        done = CliRunner().invoke(app, ["data", *map(str, arguments)])
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (1, "", 1), done.output
        assert url in done.stderr
    assert list((tmp_path / "got").rglob("*")) == []


def test_validate_reads_headers_of_the_web_too(on_web, web):
    checks, sources = validate_data(on_web())
    assert [c.name for c in checks if c.status == "fault"] == []
    assert all(known.is_read and known.num_frames == 41 for known in sources)
    (text,) = (c.text for c in checks if c.name == "val header")
    assert text.startswith(f"{web.url}/burgers1d_val.h5: (5, 41, 256), ν 0.02")


def ups_data(*arguments):
    done = CliRunner().invoke(app, ["data", *map(str, arguments)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.usefixtures("store_env")
@pytest.mark.parametrize("below", ["", "moved/"])
def test_inspect_reads_ranges_its_config_names_the_url_and_get_fetches_it(
    web, tiny_data, tmp_path, below
):
    url, config = f"{web.url}/{below}{TINY_FILE.format('train')}", tmp_path / "mine.yaml"
    (facts,) = json.loads(ups_data("inspect", f"{url}?download=1", "--json", "--config", config))
    assert (facts["where"], facts["name"]) == (f"{url}?download=1", TINY_FILE.format("train"))
    assert (facts["shape"], facts["streams"]) == ([20, 41, 256], True)
    assert facts["digest"] == "no manifest has it, its ETag is no MD5"
    assert all(asked for method, path, asked in web.asked if method == "GET" and ".h5" in path)
    for of_split in load_config(config).data.sources.values():
        assert [source.url for source in of_split] == [f"{url}?download=1"]
    ups_data("get", f"{url}?download=1", tmp_path)
    assert (tmp_path / facts["name"]).stat().st_size == facts["num_bytes"]


@pytest.mark.usefixtures("store_env")
def test_inspect_and_get_take_data_sets_on_hugging_face(hub, tmp_path):
    file, url = hub("main"), "hf://datasets/me/burgers/data/a.h5"
    assert "20 trajectories × 41 frames × 256 points" in ups_data("inspect", url)
    assert "downloaded, not verified" in ups_data("get", url, tmp_path)
    assert hash_file(tmp_path / "a.h5") == hash_file(file)
