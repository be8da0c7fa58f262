"""The page of several runs: one file, light and dark, with all that the folders hold."""

import json
import math
import re
from html.parser import HTMLParser

import pytest
import yaml
from typer.testing import CliRunner

from ups.cli.app import app
from ups.runs.breakdown import Breakdown, Phase, Span
from ups.runs.compare_page import compare_page
from ups.runs.index import find_runs, read_run
from ups.runs.metrics import write_rows
from ups.runs.side_by_side import side_by_side
from ups.runs.stored import RunInfo
from ups.runs.svg import Scale

PHASES = (
    ("queue", 0, 0.1),
    ("boot", 0.1, 0.6),
    ("download", 0.6, 1.4),
    ("load", 1.0, 1.8),
    ("first step", 1.8, 2.0),
)


def write_run(runs_dir, number, dim, seed, *, epochs=20, score=0.02, stretched=1.0):
    """The folder of a run that trained, with figures that follow from what is given."""
    run_id = f"run{number}"
    folder = runs_dir / f"20260101-12000{number}-smoke-{run_id}"
    folder.mkdir(parents=True)
    config = {"name": "smoke", "latent": {"dim": dim}, "training": {"seed": seed}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    RunInfo(
        id=run_id, name="smoke", changed={"latent.dim": dim, "training.seed": seed},
        started_at=1e9 + number, host="h", pid=1, process_started_at=0, state="completed",
    ).save(folder)  # fmt: skip
    spans = [
        Span(phase=p, name=p, start=1e9 + a * stretched, end=1e9 + b * stretched)
        for p, a, b in PHASES
    ]
    Breakdown(
        run=folder.name, config="smoke", config_hash=None, start_mode="warm", triggered_at=1e9,
        ttfs_s=2 * stretched, until_s=2 * stretched, unaccounted_s=0, cost_usd=0,
        cache_reused=False, spans=tuple(spans), metrics={}, nrmse_rollout=score,
        phases=tuple(
            Phase(phase=s.phase, seconds=s.seconds, share=0.1, bound="") for s in spans
        ),
    ).save(folder)  # fmt: skip
    rows = [
        {
            "epoch": e,
            "step": e * 10,
            "time": 1e9 + 2 + e * 0.8,
            "train/loss": 0.5 * math.exp(-e / 6) + 0.004 * (seed + 1) + 0.2 / dim,
            "val/nrmse_rollout": None if e == 1 else score + 0.4 * math.exp(-e / 4),
            "training/epoch_time_sec": 0.7,
        }
        for e in range(1, epochs + 1)
    ]
    write_rows(folder, rows)
    return folder


@pytest.fixture
def three(tmp_path):
    """The files of three runs, of which the second has the lowest score, in their order."""
    runs = ((16, 0, 0.03), (48, 0, 0.01), (48, 1, 0.02))
    for number, (dim, seed, score) in enumerate(runs):
        write_run(tmp_path, number, dim, seed, score=score, stretched=1 + number)
    return [read_run(run.folder) for run in reversed(find_runs(tmp_path))]


class Page(HTMLParser):
    """What is on a page: opened and closed tags, attributes, the text of each tag."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))


def test_the_page_is_one_file_that_asks_for_nothing_and_is_light_or_dark(three):
    text = compare_page(three, "Runs & <runs>")
    page = Page(text)
    assert page.open == []  # every tag is closed
    assert page.links == []
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "url(" not in text
    assert "<script" not in text
    assert "prefers-color-scheme: dark" in text
    assert "<h1>Runs &amp; &lt;runs&gt;</h1>" in text
    drawn = set(re.findall(r'class="run run-(\d+)"', text))
    assert drawn == {"0", "1", "2"} == set(re.findall(r"\.run-(\d+) \.line", text))


def test_the_page_has_a_curve_and_a_startup_of_each_run(three):
    text = compare_page(three, "Runs")
    titles = [data for tag, data in Page(text).texts if tag == "title"]
    of_second = [t for t in titles if t.startswith("smoke latent.dim=48 seed=0\nepoch")]
    assert len(of_second) == 20 + 19  # a loss, and, but for the first, a val, of each epoch
    assert of_second[0] == "smoke latent.dim=48 seed=0\nepoch 1: 0.4314"
    assert [t for t in titles if t.startswith("download: ")] == [
        "download: 0.80 s", "download: 1.60 s", "download: 2.40 s",
    ]  # fmt: skip
    assert not [t for t in titles if t.startswith("queue: ")]  # it may be longer than all others
    heads = [data for tag, data in Page(text).texts if tag == "h3"]
    assert "smoke latent.dim=48 seed=1: 5.70 s" in heads
    dashes = re.findall(r"--run: (#\w+); } .run-\d .mark .+?stroke-dasharray: (.+?);", text)
    assert dashes[0][0] != dashes[1][0] == dashes[2][0]  # by the setting
    assert dashes[1][1] != dashes[2][1]  # by the seed
    best = re.findall(r'<td class="number best">(.+?)</td>', text)
    assert best == ["0.0127", "0.0100"]


def test_runs_of_one_setting_lie_in_one_row_whatever_their_seed(three):
    found = side_by_side(three)
    assert found.config == {"latent.dim": (16, 48, 48), "training.seed": (0, 0, 1)}
    assert found.groups() == ["latent.dim=16", "latent.dim=48", "latent.dim=48"]
    assert found.startup["time to first step"] == (2.0, 4.0, 6.0)
    assert found.nrmse == (0.03, 0.01, 0.02)


def test_a_run_that_left_nothing_has_a_row_and_no_curve(three, tmp_path):
    folder = tmp_path / "20260101-130000-smoke-empty"
    folder.mkdir()
    text = compare_page([*three, read_run(folder)], "Runs")
    assert Page(text).open == []
    assert text.count("smoke latent.dim=16 seed=0") > text.count('<td><svg class="key run run-3"')
    assert 'class="run run-3"' not in text


def test_several_runs_are_compared_in_the_shell_and_as_a_page(three, tmp_path):
    def ups(*words):
        done = CliRunner().invoke(app, ["runs", "compare", *words, "--dir", str(tmp_path)])
        return done.exit_code, done.output

    page = tmp_path / "pages" / "three.html"
    code, output = ups("run0", "run1", "run2", "--html", str(page))
    assert code == 0, output
    for expected in ("latent.dim", "training.seed", "0.0100", "6.00 s", f"the page: {page}"):
        assert expected in output, output
    assert page.read_text().startswith("<!doctype html>")
    code, output = ups("run0", "run1", "run2", "--json")
    assert json.loads(output)["nrmse"] == [0.03, 0.01, 0.02]
    code, output = ups("run0", "run1", "run0")
    assert (code, "run0: given twice, expected once" in output) == (1, True), output
    code, output = ups("run0", "run1", "--html", str(tmp_path))
    assert (code, page.read_text().count("<h3>")) == (2, 6), output
    code, output = ups("run0", "run1", "--html", str(page))
    assert (code, "→" in output, page.read_text().count("<h3>")) == (0, True, 5), output


@pytest.mark.parametrize(
    ("values", "ticks", "is_log"),
    [
        ((1, 20), [5, 10, 15, 20], False),
        ((0.012, 0.9), [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1], True),
        ((0.02, 0.03), [0.02, 0.022, 0.024, 0.026, 0.028, 0.03], False),
        ((0.5, 0.5), [0.48, 0.49, 0.5, 0.51, 0.52], False),
        ((1e-7, 1e4), [1e-7, 1e-5, 1e-3, 1e-1, 10.0, 1000.0], True),
        ((math.nan,), [0, 0.2, 0.4, 0.6, 0.8, 1.0], False),
    ],
)
def test_ticks_are_round_and_within_the_scale(values, ticks, is_log):
    scale = Scale(values, 0, 100, log=values[0] < 1)
    assert scale.ticks() == pytest.approx(ticks)
    assert scale.is_log == is_log
    assert all(0 <= scale(tick) <= 100 for tick in ticks)


def test_runs_are_called_by_what_differs_among_them(three, tmp_path):
    titles = [f"smoke latent.dim={d} seed={s}" for d, s in ((16, 0), (48, 0), (48, 1))]
    assert side_by_side(three).titles() == titles
    assert side_by_side(three[:2]).titles() == ["smoke latent.dim=16", "smoke latent.dim=48"]
    write_run(tmp_path / "again", 7, 16, 0)
    (again,) = find_runs(tmp_path / "again")
    same = side_by_side([three[0], read_run(again.folder)])
    assert same.titles() == ["smoke latent.dim=16 seed=0 …run0", "smoke latent.dim=16 seed=0 …run7"]
