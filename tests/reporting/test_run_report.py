"""The account of a run: it adds up, does not grow, is escaped, and is kept through failures."""

from __future__ import annotations

import json
import math
import random
import re
import resource
from collections import defaultdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from astropy.io import fits

import fcnpipe
from fcnpipe.cli import commands
from fcnpipe.core.errors import SpecError, TilesFailed
from fcnpipe.core.geometry import parse_tile_name
from fcnpipe.core.records import TaskReport
from fcnpipe.pipeline import tasks as work
from fcnpipe.pipeline.remote_output import read_report
from fcnpipe.reporting import report_rendering
from fcnpipe.reporting.run_report import RunReport, SlowTile, StageSums, parse_report
from fcnpipe.simulation.scenes import draw
from fcnpipe.stores import ZarrStore

EDGE = 64
BAD = "r001c002"
SHAPE = (160, 250)
STAGES = [
    *("background", "predict", "separate", "merge", "select", "label", "measure", "publish"),
]
OPTIONS = {"model": "none", "window": EDGE, "tile": EDGE, "quiet": True}


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("field") / "a <b>&.fits"
    fits.writeto(path, draw("ground", SHAPE, 4).image)
    return path


def segment(field: Path, out: Path, **options: Any) -> fcnpipe.Result:
    given = OPTIONS | {"engine": "serial", "log_file": str(out.with_name("log.jsonl"))} | options
    return fcnpipe.segment(field, out, **given)


def read_lines(out: Path) -> list[dict[str, Any]]:
    lines = out.with_name("log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def account_of(out: Path) -> RunReport:
    report = read_report(str(out))
    assert report is not None
    return report


class Story:
    """A run that fails for a tile, is taken up and interrupted, and is taken up and finished."""

    def __init__(self, field: Path, out: Path) -> None:
        self.out, self.before = out, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(work.TASKS, "predict", _stumble(work.TASKS["predict"]))
            with pytest.raises(TilesFailed, match=BAD):
                segment(field, out)
        self.failed, self.failed_page = account_of(out), _read_page(out)
        with pytest.raises(KeyboardInterrupt):
            segment(field, out, observer=Impatience("label"))
        self.interrupted = account_of(out)
        self.result = segment(field, out, engine="threads", workers=2)
        self.report, self.lines = account_of(out), read_lines(out)


def _stumble(predict: work.Task) -> work.Task:
    def stumble(job: Any, name: str) -> dict[str, float]:
        if name == BAD:
            raise RuntimeError("stumbled over <i>&")
        return predict(job, name)

    return stumble


class Impatience:
    """Ctrl-C at the third task of a stage."""

    def __init__(self, stage: str) -> None:
        self.wanted, self.stage, self.seen = stage, "", 0

    def start(self, stage: str, tasks: int, pixels: int) -> None:
        self.stage = stage

    def report(self, report: TaskReport) -> None:
        self.seen += self.stage == self.wanted
        if self.seen == 3:
            raise KeyboardInterrupt

    def end(self, stage: str, seconds: float) -> None:
        pass


@pytest.fixture(scope="module")
def story(field: Path, tmp_path_factory: pytest.TempPathFactory) -> Story:
    return Story(field, tmp_path_factory.mktemp("story") / "out.zarr")


def tasks_of(lines: list[dict[str, Any]], *events: str) -> list[dict[str, Any]]:
    wanted = events or ("tile done", "tile retried", "tile failed")
    return [line for line in lines if line["event"] in wanted]


# --- one run, three sessions ----------------------------------------------------------------------


def test_each_session_leaves_the_account_saying_how_it_ended(story: Story) -> None:
    assert (story.failed.status, story.interrupted.status) == ("failed", "interrupted")
    assert f"{BAD} (RuntimeError: stumbled over <i>&)" in story.failed.message
    assert story.failed.stage("predict").failed.keys() == {f"predict {BAD}"}
    assert "stumbled over &lt;i&gt;&amp;" in story.failed_page
    assert "<i>&" not in story.failed_page
    assert [r.sessions for r in (story.failed, story.interrupted, story.report)] == [1, 2, 3]
    assert not story.failed.resumed
    last = story.report
    assert (last.status, last.message, last.resumed, last.failures) == ("complete", "", True, 0)
    assert (last.sources, last.engine, last.workers) == (story.result.sources, "threads", 2)
    assert last.run_key == ZarrStore.open(story.out).identity.key
    assert last.began == story.failed.began < story.failed.ended < last.ended


def test_only_what_failed_was_tried_again(story: Story) -> None:
    assert {s.name: s.retries for s in story.report.stages if s.retries} == {"predict": 1}
    (line,) = tasks_of(story.lines, "tile retried")
    assert (line["task"], line["tile"]) == ("predict", BAD)
    (line,) = tasks_of(story.lines, "tile failed")
    assert (line["level"], line["tile"]) == ("warning", BAD)
    assert "stumbled" in line["message"]


def test_lines_and_report_add_up_to_the_same(story: Story) -> None:
    assert [stage.name for stage in story.report.stages] == STAGES
    for stage in story.report.stages:
        lines = [line for line in tasks_of(story.lines) if line["stage"] == stage.name]
        done = tasks_of(lines, "tile done", "tile retried")
        assert stage.tasks == len(done)
        assert stage.pixels == sum(line["pixels"] for line in done)
        assert stage.task_seconds == pytest.approx(sum(line["seconds"] for line in lines))
        ended = [
            x for x in story.lines if x["event"] == "stage finished" and x["stage"] == stage.name
        ]
        assert ended[-1]["seconds"] == stage.seconds
        assert ended[-1]["speed"] == pytest.approx(stage.pixels / stage.seconds / 1e6)
    finished = [line for line in story.lines if line["event"] == "run finished"]
    assert [line["status"] for line in finished] == ["failed", "interrupted", "complete"]
    assert finished[-1]["seconds"] == story.report.seconds
    assert sum(s.seconds for s in story.report.stages) < story.report.seconds
    slowest = sorted((x["seconds"] for x in tasks_of(story.lines) if x["pixels"]), reverse=True)
    assert [t.seconds for t in story.report.slowest] == slowest[:10]


def test_lines_agree_with_the_table_of_tiles(story: Story) -> None:
    """Each tile's time in the store is that of the last time that each of its tasks was done."""
    last: dict[str, dict[str, float]] = defaultdict(dict)
    for line in tasks_of(story.lines, "tile done", "tile retried"):
        if line["pixels"]:
            last[line["tile"]][line["task"]] = line["seconds"]
    table = ZarrStore.open(story.out).read_tiles("seconds")
    assert len(last) == table.size == story.report.tiles
    for name, tasks in last.items():
        within = float(table[parse_tile_name(name)])
        assert within <= sum(tasks.values()) * (1 + 1e-6) <= within + 1.0, name


def test_every_line_says_when_and_whose_it_is(story: Story) -> None:
    times = [line["time"] for line in story.lines]
    assert times == sorted(times)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time) for time in times)
    assert {line["run_key"] for line in story.lines} == {story.report.run_key}
    assert {line["worker"] for line in tasks_of(story.lines)} == story.report.peaks.keys()


def test_the_measured_peak_is_that_of_this_process(story: Story) -> None:
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (peak,) = story.report.peaks.values()
    assert (
        story.before * 0.99 <= peak <= now * 1.01
    )  # the kernel counts pages processor by processor


def test_bytes_are_those_of_the_files(field: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    segment(field, out)
    sizes = {
        name: sum(p.stat().st_size for p in (out / f"image/0/{name}/c").rglob("*") if p.is_file())
        for name in ("probability", "elevation", "flags", "label")
    }
    report = account_of(out)
    wanted = sizes["probability"] + sizes["elevation"] + sizes["flags"]
    assert report.stage("predict").written_bytes == wanted
    assert report.stage("label").written_bytes == sizes["label"]
    assert report.stage("background").read_bytes >= math.prod(SHAPE) * 4
    assert report.stage("publish").read_bytes >= sizes["label"]


def test_the_terminal_shows_it(
    story: Story, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit) as leave:
        commands.main(["info", str(story.out), "--report"])
    shown = capsys.readouterr().out
    assert leave.value.code == 0
    facts = ["complete", "in 3 sessions", "stage", "slowest tiles", story.report.run_key]
    assert [word for word in [*STAGES, *facts] if word not in shown] == []
    lines = [line.split() for line in shown.splitlines()]
    rows = [
        *report_rendering.list_stage_rows(story.report),
        *report_rendering.list_slowest_tiles(story.report),
    ]
    assert [row for row in rows if " ".join(row).split() not in lines] == []
    with pytest.raises(SystemExit) as leave:
        commands.main(["info", str(story.out.with_name("none.zarr")), "--report"])
    assert leave.value.code == 2


def test_a_log_that_cannot_be_written_is_refused_before_the_first_pixel(
    field: Path, tmp_path: Path
) -> None:
    log = str(tmp_path / "nowhere" / "log")
    with pytest.raises(SpecError, match=r"log file .*nowhere.*No such file"):
        segment(field, tmp_path / "out.zarr", log_file=log)
    assert list(tmp_path.iterdir()) == []


def test_a_log_on_a_full_disk_does_not_end_the_run(field: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="log file /dev/full ends here: No space left"):
        assert segment(field, tmp_path / "out.zarr", log_file="/dev/full").sources > 0


# --- size -----------------------------------------------------------------------------------------


def test_the_account_does_not_grow_with_the_tiles() -> None:
    rng, report, sizes = random.Random(1), RunReport(), {}
    stage, seconds = report.stage("predict"), []
    for number in range(1, 8_001):
        seconds.append(rng.expovariate(1))
        stage.add(TaskReport("predict", f"t{number}", seconds[-1], 100, worker="a:1"))
        report.note_tile(SlowTile(tile=f"t{number}", stage="", seconds=seconds[-1], worker=""))
        report.note_peak(f"host:{number}", number)
        sizes[number] = len(report.model_dump_json()) if number in (2_000, 8_000) else 0
    assert sizes[8_000] < sizes[2_000] * 1.02 + 200
    assert [tile.seconds for tile in report.slowest] == sorted(seconds)[:-11:-1]
    assert report.peak_bytes == 8_000
    assert (stage.tasks, stage.pixels) == (8_000, 800_000)


def test_failures_are_counted_when_there_are_too_many_to_name() -> None:
    stage = StageSums(name="predict")
    for number in range(3000):
        stage.add(TaskReport("predict", f"t{number}", error="bad"))
    assert (stage.failures, len(stage.failed), stage.tasks) == (3000, 1000, 0)
    assert stage.add(TaskReport("predict", "t5"))
    assert (stage.failures, stage.retries) == (2999, 1)


@pytest.mark.parametrize("data", ["", "{", '{"format": 99}', '{"stages": 3}', "[]"])
def test_an_account_that_is_broken_is_none(data: str) -> None:
    assert parse_report(data) is None


# --- the page -------------------------------------------------------------------------------------

EVIL = "<script>alert(1)</script>\"'|&`"
VOID = {"meta"}


class Page(HTMLParser):
    """Takes a page apart and refuses one that is not well made, or needs something else."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe", "a", "object", "base"), tag
        assert not {name for name, _ in attrs} & {"src", "href", "onload", "onclick"}
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def _read_page(out: Path) -> str:
    return out.with_name("out.report.html").read_text()


def test_the_page_shows_what_the_record_says(story: Story) -> None:
    text = _read_page(story.out)
    words = Page(text).words
    assert not re.search(r"url\(|@import|https?:", text)
    for stage in story.report.stages:
        assert words.count(stage.name) >= 2
        assert str(stage.tasks) in words
    for tile in story.report.slowest:
        assert f"{tile.tile} {tile.stage}" in words
    assert {"complete", story.report.run_key, *story.report.peaks} <= set(words)


def test_everything_on_the_page_is_escaped() -> None:
    words = ("status", "message", "command", "out", "model", "run_key", "engine", "began", "ended")
    report = RunReport(**dict.fromkeys(words, EVIL), image=[EVIL], versions={EVIL: EVIL})
    report.peaks, report.sources = {EVIL: 5}, 3
    report.stage(EVIL).add(TaskReport(EVIL, EVIL, error=EVIL))
    report.note_tile(SlowTile(tile=EVIL, stage=EVIL, seconds=1, worker=EVIL))
    text = report_rendering.render_html(report)
    assert "<script" not in text
    assert sum(EVIL in word for word in Page(text).words) > 10
    table = report_rendering.render_markdown(report)
    assert "<script" not in table
    assert all(re.match(r"\|.*\|$", line) for line in table.splitlines() if line)


def test_bars_are_as_long_as_what_they_stand_for() -> None:
    report = RunReport(projected_bytes=400, peaks={"a:1": 100, "b:2": 500})
    report.stage("short").seconds, report.stage("long").seconds = 1.0, 4.0
    text = report_rendering.render_html(report)
    assert re.findall(r'class="(bar|bar over)" style="width:([\d.]+)%', text) == [
        *(("bar", "25.00"), ("bar", "100.00")),
        *(("bar over", "100.00"), ("bar", "20.00")),
    ]
    assert re.findall(r'style="left:([\d.]+)%', text) == ["80.00"] * 2
