"""Run report and event log: sums, bounded size, escaping, and continuity through failures."""

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
from fcnpipe.pipeline import tasks as pipeline_tasks
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
    merged = OPTIONS | {"engine": "serial", "log_file": str(out.with_name("log.jsonl"))} | options
    return fcnpipe.segment(field, out, **merged)


def read_lines(out: Path) -> list[dict[str, Any]]:
    lines = out.with_name("log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def report_of(out: Path) -> RunReport:
    report = read_report(str(out))
    assert report is not None
    return report


class ThreeSessions:
    """A run of three sessions: one fails for a tile, one is interrupted, and one completes the run."""

    def __init__(self, field: Path, out: Path) -> None:
        self.out, self.before = out, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        with pytest.MonkeyPatch.context() as patch:
            predict = pipeline_tasks.TASKS["predict"]
            patch.setitem(pipeline_tasks.TASKS, "predict", _fail_for_one_tile(predict))
            with pytest.raises(TilesFailed, match=BAD):
                segment(field, out)
        self.failed, self.failed_page = report_of(out), _read_page(out)
        with pytest.raises(KeyboardInterrupt):
            segment(field, out, observer=Interrupt("label"))
        self.interrupted = report_of(out)
        self.result = segment(field, out, engine="threads", workers=2)
        self.report, self.lines = report_of(out), read_lines(out)


def _fail_for_one_tile(predict: pipeline_tasks.Task) -> pipeline_tasks.Task:
    def fail_for_one_tile(job: Any, name: str) -> dict[str, float]:
        if name == BAD:
            raise RuntimeError("failed over <i>&")
        return predict(job, name)

    return fail_for_one_tile


class Interrupt:
    """Observer that raises KeyboardInterrupt at the third task of a stage."""

    def __init__(self, stage: str) -> None:
        self.target, self.stage, self.count = stage, "", 0

    def start(self, stage: str, tasks: int, pixels: int) -> None:
        self.stage = stage

    def report(self, report: TaskReport) -> None:
        self.count += self.stage == self.target
        if self.count == 3:
            raise KeyboardInterrupt

    def end(self, stage: str, seconds: float) -> None:
        pass


@pytest.fixture(scope="module")
def run(field: Path, tmp_path_factory: pytest.TempPathFactory) -> ThreeSessions:
    return ThreeSessions(field, tmp_path_factory.mktemp("run") / "out.zarr")


def tasks_of(lines: list[dict[str, Any]], *events: str) -> list[dict[str, Any]]:
    wanted = events or ("tile done", "tile retried", "tile failed")
    return [line for line in lines if line["event"] in wanted]


# --- one run of three sessions --------------------------------------------------------------------


def test_each_session_records_its_end_in_the_report(run: ThreeSessions) -> None:
    assert (run.failed.status, run.interrupted.status) == ("failed", "interrupted")
    assert f"{BAD} (RuntimeError: failed over <i>&)" in run.failed.message
    assert run.failed.stage("predict").failed.keys() == {f"predict {BAD}"}
    assert "failed over &lt;i&gt;&amp;" in run.failed_page
    assert "<i>&" not in run.failed_page
    assert [r.sessions for r in (run.failed, run.interrupted, run.report)] == [1, 2, 3]
    assert not run.failed.resumed
    last = run.report
    assert (last.status, last.message, last.resumed, last.failures) == ("complete", "", True, 0)
    assert (last.sources, last.engine, last.workers) == (run.result.sources, "threads", 2)
    assert last.run_key == ZarrStore.open(run.out).identity.key
    assert last.began == run.failed.began < run.failed.ended < last.ended


def test_only_the_failed_tile_is_retried(run: ThreeSessions) -> None:
    assert {s.name: s.retries for s in run.report.stages if s.retries} == {"predict": 1}
    (line,) = tasks_of(run.lines, "tile retried")
    assert (line["task"], line["tile"]) == ("predict", BAD)
    (line,) = tasks_of(run.lines, "tile failed")
    assert (line["level"], line["tile"]) == ("warning", BAD)
    assert "failed" in line["message"]


def test_event_log_and_report_have_the_same_sums(run: ThreeSessions) -> None:
    assert [stage.name for stage in run.report.stages] == STAGES
    for stage in run.report.stages:
        lines = [line for line in tasks_of(run.lines) if line["stage"] == stage.name]
        done = tasks_of(lines, "tile done", "tile retried")
        assert stage.tasks == len(done)
        assert stage.pixels == sum(line["pixels"] for line in done)
        assert stage.task_seconds == pytest.approx(sum(line["seconds"] for line in lines))
        ended = [
            x for x in run.lines if x["event"] == "stage finished" and x["stage"] == stage.name
        ]
        assert ended[-1]["seconds"] == stage.seconds
        assert ended[-1]["speed"] == pytest.approx(stage.pixels / stage.seconds / 1e6)
    finished = [line for line in run.lines if line["event"] == "run finished"]
    assert [line["status"] for line in finished] == ["failed", "interrupted", "complete"]
    assert finished[-1]["seconds"] == run.report.seconds
    assert sum(s.seconds for s in run.report.stages) < run.report.seconds
    slowest = sorted((x["seconds"] for x in tasks_of(run.lines) if x["pixels"]), reverse=True)
    assert [t.seconds for t in run.report.slowest] == slowest[:10]


def test_the_event_log_agrees_with_the_table_of_tiles(run: ThreeSessions) -> None:
    """The time of a tile in the store is the sum over its tasks, each at its last success."""
    last: dict[str, dict[str, float]] = defaultdict(dict)
    for line in tasks_of(run.lines, "tile done", "tile retried"):
        if line["pixels"]:
            last[line["tile"]][line["task"]] = line["seconds"]
    table = ZarrStore.open(run.out).read_tiles("seconds")
    assert len(last) == table.size == run.report.tiles
    for name, tasks in last.items():
        within = float(table[parse_tile_name(name)])
        assert within <= sum(tasks.values()) * (1 + 1e-6) <= within + 1.0, name


def test_every_line_has_the_time_the_run_and_the_worker(run: ThreeSessions) -> None:
    times = [line["time"] for line in run.lines]
    assert times == sorted(times)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time) for time in times)
    assert {line["run_key"] for line in run.lines} == {run.report.run_key}
    assert {line["worker"] for line in tasks_of(run.lines)} == run.report.peaks.keys()


def test_the_measured_peak_is_that_of_this_process(run: ThreeSessions) -> None:
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (peak,) = run.report.peaks.values()
    assert (
        run.before * 0.99 <= peak <= now * 1.01
    )  # the kernel counts pages for each CPU separately


def test_counted_bytes_are_the_sizes_of_the_files(field: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    segment(field, out)
    sizes = {
        name: sum(p.stat().st_size for p in (out / f"image/0/{name}/c").rglob("*") if p.is_file())
        for name in ("probability", "elevation", "flags", "label")
    }
    report = report_of(out)
    wanted = sizes["probability"] + sizes["elevation"] + sizes["flags"]
    assert report.stage("predict").written_bytes == wanted
    assert report.stage("label").written_bytes == sizes["label"]
    assert report.stage("background").read_bytes >= math.prod(SHAPE) * 4
    assert report.stage("publish").read_bytes >= sizes["label"]


def test_the_command_info_shows_the_report(
    run: ThreeSessions, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit) as exit_:
        commands.main(["info", str(run.out), "--report"])
    shown = capsys.readouterr().out
    assert exit_.value.code == 0
    facts = ["complete", "in 3 sessions", "stage", "slowest tiles", run.report.run_key]
    assert [word for word in [*STAGES, *facts] if word not in shown] == []
    lines = [line.split() for line in shown.splitlines()]
    rows = [
        *report_rendering.list_stage_rows(run.report),
        *report_rendering.list_slowest_tiles(run.report),
    ]
    assert [row for row in rows if " ".join(row).split() not in lines] == []
    with pytest.raises(SystemExit) as exit_:
        commands.main(["info", str(run.out.with_name("none.zarr")), "--report"])
    assert exit_.value.code == 2


def test_an_event_log_that_cannot_be_written_is_refused_before_the_first_pixel(
    field: Path, tmp_path: Path
) -> None:
    log = str(tmp_path / "nowhere" / "log")
    with pytest.raises(SpecError, match=r"log file .*nowhere.*No such file"):
        segment(field, tmp_path / "out.zarr", log_file=log)
    assert list(tmp_path.iterdir()) == []


def test_an_event_log_on_a_full_disk_does_not_end_the_run(field: Path, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="log file /dev/full ends here: No space left"):
        assert segment(field, tmp_path / "out.zarr", log_file="/dev/full").sources > 0


# --- size -----------------------------------------------------------------------------------------


def test_the_report_does_not_grow_with_the_number_of_tiles() -> None:
    rng, report, sizes = random.Random(1), RunReport(), {}
    stage, seconds = report.stage("predict"), []
    for number in range(1, 8_001):
        seconds.append(rng.expovariate(1))
        stage.add(TaskReport("predict", f"t{number}", seconds[-1], 100, worker="a:1"))
        report.add_tile(SlowTile(tile=f"t{number}", stage="", seconds=seconds[-1], worker=""))
        report.add_peak(f"host:{number}", number)
        sizes[number] = len(report.model_dump_json()) if number in (2_000, 8_000) else 0
    assert sizes[8_000] < sizes[2_000] * 1.02 + 200
    assert [tile.seconds for tile in report.slowest] == sorted(seconds)[:-11:-1]
    assert report.peak_bytes == 8_000
    assert (stage.tasks, stage.pixels) == (8_000, 800_000)


def test_all_failures_are_counted_and_only_the_first_are_named() -> None:
    stage = StageSums(name="predict")
    for number in range(3000):
        stage.add(TaskReport("predict", f"t{number}", error="bad"))
    assert (stage.failures, len(stage.failed), stage.tasks) == (3000, 1000, 0)
    assert stage.add(TaskReport("predict", "t5"))
    assert (stage.failures, stage.retries) == (2999, 1)


@pytest.mark.parametrize("data", ["", "{", '{"format": 99}', '{"stages": 3}', "[]"])
def test_a_broken_report_is_none(data: str) -> None:
    assert parse_report(data) is None


# --- the page -------------------------------------------------------------------------------------

MARKUP = "<script>alert(1)</script>\"'|&`"
VOID_TAGS = {"meta"}


class Page(HTMLParser):
    """Parser of a page; fails for unclosed tags, scripts, and references to other files."""

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
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def _read_page(out: Path) -> str:
    return out.with_name("out.report.html").read_text()


def test_the_page_shows_the_values_of_the_report(run: ThreeSessions) -> None:
    text = _read_page(run.out)
    words = Page(text).words
    assert not re.search(r"url\(|@import|https?:", text)
    for stage in run.report.stages:
        assert words.count(stage.name) >= 2
        assert str(stage.tasks) in words
    for tile in run.report.slowest:
        assert f"{tile.tile} {tile.stage}" in words
    assert {"complete", run.report.run_key, *run.report.peaks} <= set(words)


def test_all_text_on_the_page_is_escaped() -> None:
    words = ("status", "message", "command", "out", "model", "run_key", "engine", "began", "ended")
    report = RunReport(**dict.fromkeys(words, MARKUP), image=[MARKUP], versions={MARKUP: MARKUP})
    report.peaks, report.sources = {MARKUP: 5}, 3
    report.stage(MARKUP).add(TaskReport(MARKUP, MARKUP, error=MARKUP))
    report.add_tile(SlowTile(tile=MARKUP, stage=MARKUP, seconds=1, worker=MARKUP))
    text = report_rendering.render_html(report)
    assert "<script" not in text
    assert sum(MARKUP in word for word in Page(text).words) > 10
    table = report_rendering.render_markdown(report)
    assert "<script" not in table
    assert all(re.match(r"\|.*\|$", line) for line in table.splitlines() if line)


def test_bars_are_proportional_to_their_values() -> None:
    report = RunReport(projected_bytes=400, peaks={"a:1": 100, "b:2": 500})
    report.stage("short").seconds, report.stage("long").seconds = 1.0, 4.0
    text = report_rendering.render_html(report)
    assert re.findall(r'class="(bar|bar over)" style="width:([\d.]+)%', text) == [
        *(("bar", "25.00"), ("bar", "100.00")),
        *(("bar over", "100.00"), ("bar", "20.00")),
    ]
    assert re.findall(r'style="left:([\d.]+)%', text) == ["80.00"] * 2
