"""Human-readable forms of a run report: a self-contained HTML page, Markdown tables, and rows for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from fcnpipe.reporting.run_report import RunReport, StageSums

COLUMNS = (
    "stage", "wall time", "task time", "tasks", "tiles", "Mpix/s", "read", "written", "retries", "failed"
)  # fmt: skip
"""Titles of the columns of `list_stage_rows`."""
PROCESSES_SHOWN = 20
"""Maximum number of processes whose peak memory the page shows."""
FAILURES_SHOWN = 20
"""Maximum number of failed tasks that are listed."""


def list_run_facts(report: RunReport) -> list[tuple[str, str]]:
    """Return (property, value) rows about the run as a whole."""
    height, width = report.shape
    rows = [
        ("status", ": ".join(filter(None, (report.status, report.message)))),
        ("image", f"{', '.join(report.image)} ({height} x {width} px)"),
        ("output", report.out),
        ("model", report.model),
        ("run key", report.run_key),
        ("engine", f"{report.engine}, {report.workers} worker{'s' * (report.workers != 1)}"),
        ("tiles", f"{report.tiles} with an edge of {report.tile} px"),
        ("wall time", _describe_time(report)),
        ("speed", f"{_speed(report)} Mpix/s overall"),
        ("started, ended", f"{report.began}, {report.ended}"),
        ("peak memory", _describe_memory(report)),
        ("driver memory", _describe_driver(report)),
        ("versions", ", ".join(f"{name} {v}" for name, v in report.versions.items())),
    ]
    if report.sources is not None:
        rows.insert(1, ("sources", str(report.sources)))
    return rows


def list_stage_rows(report: RunReport) -> list[tuple[str, ...]]:
    """Return one row for each stage, with the columns of `COLUMNS`."""
    return [_stage_row(stage) for stage in report.stages]


def list_slowest_tiles(report: RunReport) -> list[tuple[str, str, str, str]]:
    """Return (tile, stage, time, process) rows of the slowest tiles."""
    return [(t.tile, t.stage, _format_time(t.seconds), t.worker) for t in report.slowest]


def list_failed_tasks(report: RunReport) -> list[tuple[str, str]]:
    """Return (task, reason) rows of the first failed tasks, and a row with the number of the others."""
    failed = [row for stage in report.stages for row in stage.failed.items()][:FAILURES_SHOWN]
    more = report.failures - len(failed)
    return failed + ([(f"and {more} more", "")] if more > 0 else [])


def render_markdown(report: RunReport) -> str:
    """Return Markdown tables of the run, its stages, its slowest tiles and its failed tasks."""
    tables = [
        _markdown_table(("", ""), list_run_facts(report)),
        _markdown_table(COLUMNS, list_stage_rows(report)),
        _markdown_table(("slowest tile", "stage", "time", "process"), list_slowest_tiles(report)),
    ]
    if failures := list_failed_tasks(report):
        tables.append(_markdown_table(("failed task", "reason"), failures))
    return "\n\n".join(tables)


def render_html(report: RunReport) -> str:
    """Return a self-contained HTML page, without scripts, pictures or links to other files."""
    title = f"{report.command} {report.out.rstrip('/').rpartition('/')[2]}"
    stages = [(stage.name, stage.seconds, _format_time(stage.seconds)) for stage in report.stages]
    parts = [
        _headline(title, report),
        _cards(report),
        _section("Stages", _bars(stages) + _html_table(COLUMNS, list_stage_rows(report), 1)),
        _section("Memory", _memory_bars(report)),
        _section("Slowest tiles", _slowest_bars(report)),
    ]
    if failures := list_failed_tasks(report):
        parts.append(_section("Failed tasks", _html_table(("task", "reason"), failures, 2)))
    parts.append(_section("Run", _html_table(("", ""), list_run_facts(report), 2)))
    return _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(parts))


# --- text -----------------------------------------------------------------------------------------


def _stage_row(stage: StageSums) -> tuple[str, ...]:
    return (
        stage.name,
        _format_time(stage.seconds),
        _format_time(stage.task_seconds),
        f"{stage.tasks}",
        f"{stage.tiles or '-'}",
        f"{stage.speed:.2f}" if stage.pixels else "-",
        _format_size(stage.read_bytes),
        _format_size(stage.written_bytes),
        f"{stage.retries}",
        f"{stage.failures}",
    )


def _speed(report: RunReport) -> str:
    height, width = report.shape
    return f"{height * width / max(report.seconds, 1e-9) / 1e6:.2f}"


def _describe_time(report: RunReport) -> str:
    sessions = f" in {report.sessions} sessions" if report.sessions > 1 else ""
    return f"{_format_time(report.seconds)}{sessions}{', resumed' if report.resumed else ''}"


def _describe_memory(report: RunReport) -> str:
    projected = f"{_format_size(report.projected_bytes)} projected for a process"
    if not report.peak_bytes:
        return f"not measured, {projected}"
    share = f" ({report.peak_bytes / report.projected_bytes:.0%})" if report.projected_bytes else ""
    return f"{_format_size(report.peak_bytes)} of {projected}{share}"


def _describe_driver(report: RunReport) -> str:
    projected = report.driver_projected_bytes
    return _format_size(report.driver_bytes) + (
        f" of {_format_size(projected)} projected" * bool(projected)
    )


def _format_time(seconds: float) -> str:
    """Return a duration with units that suit its length.

    Examples
    --------
    >>> _format_time(0.0421), _format_time(83), _format_time(7384)
    ('0.04 s', '1 min 23 s', '2 h 3 min')
    """
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _format_size(size_bytes: float) -> str:
    """Return a size in bytes with a binary prefix.

    Examples
    --------
    >>> _format_size(0), _format_size(1536), _format_size(3 * 2**30)
    ('0 B', '1.5 KiB', '3.0 GiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size_bytes < 1024:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1024
    return f"{size_bytes:.2f} TiB"


# --- Markdown -------------------------------------------------------------------------------------


def _markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *(map(_escape_markdown, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _escape_markdown(text: str) -> str:
    """Escape the characters with a meaning in Markdown tables, and in HTML, which Markdown may contain."""
    return escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


# --- HTML -----------------------------------------------------------------------------------------


def _headline(title: str, report: RunReport) -> str:
    status = escape(report.status)
    message = f"<p class=message>{escape(report.message)}</p>" if report.message else ""
    return f'<h1>{escape(title)} <span class="badge {status}">{status}</span></h1>{message}'


def _cards(report: RunReport) -> str:
    """Return the main numbers of the run as a row of cards."""
    pairs = [
        (_format_time(report.seconds), "wall time"),
        (_speed(report), "Mpix/s overall"),
        (
            _format_size(report.peak_bytes),
            f"peak memory of a process, {_format_size(report.projected_bytes)} projected",
        ),
        (str(report.failures), "failed tasks"),
    ]
    if report.sources is not None:
        pairs.insert(0, (f"{report.sources:,}", "sources"))
    cards = (f"<div><b>{escape(v)}</b><span>{escape(n)}</span></div>" for v, n in pairs)
    return f"<div class=cards>{''.join(cards)}</div>"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


Bar = tuple[str, float, str]
"""Name, length, and the text after the bar."""


def _slowest_bars(report: RunReport) -> str:
    rows = [(f"{t.tile} {t.stage}", t.seconds, _format_time(t.seconds)) for t in report.slowest]
    return _bars(rows) if rows else "<p>No tile was completed.</p>"


def _memory_bars(report: RunReport) -> str:
    """Return the peak memory of each process as bars, with a line at the projected peak."""
    ranked = sorted(report.peaks.items(), key=lambda item: -item[1])
    shown = [(worker, peak, _format_size(peak)) for worker, peak in ranked[:PROCESSES_SHOWN]]
    more = len(ranked) - len(shown)
    bars = _bars(shown, report.projected_bytes) if shown else ""
    note = f"projected peak of a process: {_format_size(report.projected_bytes)}"
    others = f"; {more} more processes with lower peaks" if more > 0 else ""
    driver = f"; peak of the driver: {_describe_driver(report)}"
    return f"{bars}<p class=note><i class=mark></i> {escape(note + others + driver)}</p>"


def _bars(rows: Sequence[Bar], mark: float = 0.0) -> str:
    """Return bars of one scale, with a line across them at ``mark``; longer bars are highlighted."""
    longest = max([mark, *(length for _, length, _ in rows)]) or 1.0
    line = f'<i class=mark style="left:{100 * mark / longest:.2f}%"></i>' if mark else ""
    return f"<div class=bars>{''.join(_bar(row, longest, mark, line) for row in rows)}</div>"


def _bar(row: Bar, longest: float, mark: float, line: str) -> str:
    name, length, text = row
    kind = "bar over" if mark and length > mark else "bar"
    bar = f'<i class="{kind}" style="width:{100 * length / longest:.2f}%"></i>'
    return f"<span>{escape(name)}</span><span class=track>{bar}{line}</span><b>{escape(text)}</b>"


def _html_table(head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int) -> str:
    """Return a table; the first ``text_columns`` columns contain text, the others numbers."""
    titles = "".join(f"<th>{escape(name)}</th>" for name in head) if any(head) else ""
    body = "".join(f"<tr>{''.join(_cells(row, text_columns))}</tr>" for row in rows)
    return f"<div class=wide><table><tr>{titles}</tr>{body}</table></div>"


def _cells(row: Sequence[str], text_columns: int) -> Iterator[str]:
    for number, text in enumerate(row):
        kind = "" if number < text_columns else " class=number"
        yield f"<td{kind}>{escape(text)}</td>"


_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --dim: #667085; --paper: #f6f7f9; --card: #fff;
  --line: #e3e6eb; --bar: #3b6fb6; --warn: #c2410c; --good: #1a7f4b; --mark: #d97706 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --dim: #98a2b3; --paper: #12161d;
  --card: #1a2029; --line: #2b3340; --bar: #6c9fe0; --warn: #fb923c; --good: #4ade80; --mark: #fbbf24 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 2rem 1.25rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0 0 1rem; overflow-wrap: anywhere }
h2 { font-size: 1.05rem; margin: 0 0 .75rem }
.badge { font-size: .8rem; font-weight: 600; padding: .2rem .6rem; border-radius: 1rem; vertical-align: middle;
  color: var(--card); background: var(--warn) }
.badge.complete { background: var(--good) }
.badge.running { background: var(--bar) }
.message { border-left: 4px solid var(--warn); padding: .25rem .75rem; overflow-wrap: anywhere }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .75rem }
.cards div, section { background: var(--card); border: 1px solid var(--line); border-radius: .5rem }
.cards div { padding: .75rem 1rem }
.cards b { display: block; font-size: 1.4rem; font-variant-numeric: tabular-nums }
.cards span, .note { color: var(--dim); font-size: .85rem }
section { padding: 1rem 1.25rem; margin-top: 1rem }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: .35rem .75rem; align-items: center;
  font-variant-numeric: tabular-nums }
.bars b { text-align: right; font-weight: 500 }
.track { position: relative; height: 1rem; background: var(--line); border-radius: .2rem }
.bar { display: block; height: 100%; min-width: 2px; background: var(--bar); border-radius: .2rem }
.bar.over { background: var(--warn) }
.track .mark { position: absolute; top: -.2rem; bottom: -.2rem; width: 3px; margin-left: -3px; background: var(--mark) }
.note .mark { display: inline-block; width: 3px; height: .9em; vertical-align: -.1em; background: var(--mark) }
.wide { overflow-x: auto }
.bars + .wide { margin-top: 1rem }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th { text-align: right; color: var(--dim); font-weight: 500; font-size: .85rem; white-space: nowrap }
th:first-child { text-align: left }
th, td { padding: .3rem .6rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top }
td { overflow-wrap: anywhere }
td.number { text-align: right; white-space: nowrap }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
