"""The demo's live table, its progress line, and the summary, as a person reads them."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pollen.demo.summary import CutStory, Summary


@dataclass(frozen=True, slots=True)
class Row:
    """One device now; None where nothing is known yet. `cut`: its connection is cut at this moment."""

    device: str
    view: str
    online: bool
    cut: bool
    samples: int
    base_version: int | None
    staleness: int | None
    weight: float | None
    error: float | None
    baseline: float | None
    rss_bytes: int


@dataclass(frozen=True, slots=True)
class Progress:
    """The run now; `note` says what it is doing beyond learning."""

    elapsed_s: float
    total_s: float
    version: int
    merges: int
    updates_per_s: float
    score: str
    note: str


def picture(rows: Sequence[Row], progress: Progress) -> RenderableType:
    """The table with the progress line under it."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("device")
    table.add_column("senses", overflow="ellipsis", no_wrap=True, max_width=24)
    table.add_column("online")
    for name in ("samples", "base", "staleness", "weight", "error", "baseline", "ratio", "RSS MB"):
        table.add_column(name, justify="right")
    for row in rows:
        ratio = row.error / row.baseline if row.error is not None and row.baseline else None
        table.add_row(
            row.device,
            row.view,
            Text("cut off", "bold red") if row.cut else Text("yes", "green") if row.online else Text("no", "red"),
            str(row.samples),
            "" if row.base_version is None else str(row.base_version),
            "" if row.staleness is None else str(row.staleness),
            _number(row.weight),
            _number(row.error),
            _number(row.baseline),
            Text(_number(ratio), "green" if ratio is not None and ratio < 1 else ""),
            f"{row.rss_bytes / 1e6:.0f}",
        )
    bar = ProgressBar(total=progress.total_s, completed=min(progress.elapsed_s, progress.total_s), width=24)
    line = Table.grid(padding=(0, 2))
    line.add_row(bar, progress_line(progress))
    return Group(table, line)


def progress_line(progress: Progress) -> str:
    """One line: time, merges, rate, and what else there is to say."""
    parts = [
        f"{progress.elapsed_s:.0f} of {progress.total_s:.0f} s",
        f"version {progress.version}",
        f"{progress.merges} merges",
        f"{progress.updates_per_s:.1f} updates/s",
        progress.score,
        progress.note,
    ]
    return " · ".join(part for part in parts if part)


def plain_line(rows: Sequence[Row], progress: Progress) -> str:
    """The progress line with the devices in brief, for output that is no terminal."""
    online = sum(row.online for row in rows)
    ratios = [row.error / row.baseline for row in rows if row.error is not None and row.baseline]
    error = f"error {sum(ratios) / len(ratios):.2f} of the baseline's" if ratios else ""
    staleness = [f"{row.device}:{row.staleness}" for row in rows if row.staleness is not None]
    parts = [f"{online} of {len(rows)} online", error, "staleness " + " ".join(staleness) if staleness else ""]
    return " · ".join([progress_line(progress), *(part for part in parts if part)])


def summary_lines(summary: Summary, baseline: str) -> list[str]:
    """The summary at the end; `baseline` names what the error is compared with."""
    rejected = sum(summary.rejections.values())
    total = (
        f"{summary.merges} updates merged in {summary.seconds:.0f} s ({summary.updates_per_s:.2f}/s), "
        f"{rejected} rejected; the model is at version {summary.version}"
    )
    lines = [total]
    if summary.staleness is not None:
        spread = ", ".join(f"{name}: {count}" for name, count in summary.staleness.histogram.items())
        lines.append(
            f"staleness    median {summary.staleness.median:g}, 90 % up to {summary.staleness.p90}, "
            f"largest {summary.staleness.largest}   ({spread})"
        )
    if summary.learning is not None:
        learned = summary.learning
        first = _compared(learned.error_first, learned.baseline_first)
        last = _compared(learned.error_last, learned.baseline_last)
        lines.append(
            f"error        start {first}, end {last}   (against {baseline}, each reading predicted before learned)"
        )
    if summary.evaluation_first is not None and summary.evaluation_last is not None:
        pairs = [
            f"{name} {first:.3f} to {summary.evaluation_last[name]:.3f}"
            for name, first in summary.evaluation_first.items()
            if name in summary.evaluation_last
        ]
        lines.append(f"held-out     {', '.join(pairs)}")
    if summary.cut is not None:
        lines.append("cut off      " + _cut_line(summary.cut))
    for device, sent in summary.sent_bytes.items():
        lines.append(f"{device:<12} {sent / 1e3:.0f} kB up, {summary.received_bytes[device] / 1e3:.0f} kB down")
    peaks = ", ".join(f"{role} {peak / 1e6:.0f} MB" for role, peak in summary.peak_rss_bytes.items())
    lines.append(f"peak memory  {peaks}")
    return lines


def _cut_line(cut: CutStory) -> str:
    text = f"{cut.device} at {cut.cut_s:.0f} s"
    if cut.restored_s is None:
        return f"{text}, never let back: the run ended before"
    text += f", back at {cut.restored_s:.0f} s"
    if cut.merged_s is None:
        return f"{text}; NO update of it was merged after that"
    return (
        f"{text}; its update was merged at {cut.merged_s:.1f} s as version {cut.version} "
        f"with staleness {cut.staleness}, weight {cut.weight:.3f}"
    )


def _compared(error: float, baseline: float) -> str:
    ratio = f", ratio {error / baseline:.2f}" if baseline else ""
    return f"{error:.3f} against {baseline:.3f}{ratio}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
