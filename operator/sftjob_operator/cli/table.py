"""An SFTJob as a person sees it: the columns of `kubectl get`, a progress bar, the words of its conditions. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sftjob_operator.api.objects import condition, is_true
from sftjob_operator.cluster.base import Manifest
from sftjob_operator.cluster.local.objects import parse_timestamp

COLUMNS = ("NAME", "PHASE", "STEP", "LOSS", "TOK/S", "ETA", "CKPT", "RESTARTS", "ELAPSED")
WIDE = ("REASON", "PLAN", "NODES", "GOODPUT%", "MFU%")
_STYLES = {
    "Succeeded": "green",
    "Failed": "red",
    "Running": "cyan",
    "Restarting": "yellow",
    "Suspended": "yellow",
}
_EVENTS = 5
BAR = 60


def row(job: Manifest, now: datetime) -> tuple[str, ...]:
    """One cell per column; what is not known yet is a dash."""
    status = job.get("status", {})
    progress = status.get("progress", {})
    cells = (
        job["metadata"]["name"],
        status.get("phase"),
        progress.get("display"),
        progress.get("loss"),
        progress.get("tokensPerSecond"),
        progress.get("eta"),
        status.get("lastVerifiedStep"),
        status.get("restarts", 0),
        elapsed(job, now),
    )
    return tuple("-" if cell in (None, "") else str(cell) for cell in cells)


def wide(job: Manifest) -> tuple[str, ...]:
    """The further cells of `-o wide`."""
    status = job.get("status", {})
    cells = (
        condition(job, "Running").get("reason"),
        status.get("plan", {}).get("display"),
        status.get("nodes"),
        status.get("goodput", {}).get("percent"),
        status.get("progress", {}).get("mfuPercent"),
    )
    return tuple("-" if cell in (None, "") else str(cell) for cell in cells)


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As kubectl prints them: never cut, so that a pipe sees what a wide terminal does."""
    lines = [header, *rows]
    widths = [max(len(line[number]) for line in lines) for number in range(len(header))]
    padded = (
        "   ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )
    return "\n".join(line.rstrip() for line in padded)


def elapsed(job: Manifest, now: datetime) -> str:
    """From the creation to the end, or to now."""
    created = parse_timestamp(job["metadata"]["creationTimestamp"])
    completed = job.get("status", {}).get("completionTime")
    end = parse_timestamp(completed) if completed else now
    return duration(max(0.0, (end - created).total_seconds()))


def duration(seconds: float) -> str:
    """Two units at most: 45s, 3m12s, 2h05m."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def sentence(job: Manifest) -> str:
    """What is going on, in the operator's words: the end, else the reason why it runs or does not."""
    for type_ in ("Failed", "Complete"):
        if is_true(job, type_):
            return _words(condition(job, type_))
    if condition(job, "Accepted").get("status") == "False":
        return _words(condition(job, "Accepted"))
    return _words(condition(job, "Running"))


def _words(found: Manifest) -> str:
    return f"{found.get('reason', '')}: {found.get('message', '')}".strip(": ")


def screen(
    job: Manifest, events: Sequence[Manifest], now: datetime, note: str = "", more: Sequence[str] = ()
) -> RenderableType:
    """The live display; `more` are lines under the bar."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in COLUMNS:
        table.add_column(column, no_wrap=True)
    phase = job.get("status", {}).get("phase", "")
    cells = list(row(job, now))
    table.add_row(cells[0], Text(cells[1], style=_STYLES.get(phase, "")), *cells[2:])
    parts: list[RenderableType] = [table, _bar(job), *(Text(line) for line in more)]
    parts.append(Text(sentence(job), style="dim"))
    parts += [
        Text(_event(item), style="yellow" if item["type"] == "Warning" else "dim")
        for item in events[-_EVENTS:]
    ]
    if note:
        parts.append(Text(note, style="bold yellow"))
    return Group(*parts)


def _bar(job: Manifest) -> RenderableType:
    """In a grid of its own, for a bar does not end its line."""
    progress = job.get("status", {}).get("progress", {})
    total, step = progress.get("totalSteps") or None, progress.get("step", 0)
    is_busy = total is None and not any(is_true(job, type_) for type_ in ("Complete", "Failed", "Suspended"))
    bar = ProgressBar(total=total or (None if is_busy else 1), completed=step, width=BAR, pulse=is_busy)
    line = Table.grid(padding=(0, 1))
    line.add_row(bar, "" if total is None else f"{progress.get('progressPercentage', 0)} %")
    return line


def _event(item: Manifest) -> str:
    known = item.get("lastTimestamp") or item.get("eventTime") or item["metadata"].get("creationTimestamp")
    at = parse_timestamp(str(known)).astimezone()
    return f"{at:%H:%M:%S}  {item['reason']}: {item['message']}"


class Lines:
    """The same for a file or a pipe: a line when something changed, steps at most every few seconds."""

    STEP_SECONDS = 5.0

    def __init__(self) -> None:
        """Nothing has been said."""
        self._said: tuple[str, ...] = ()
        self._note = ""
        self._step = ""
        self._at = datetime.min.replace(tzinfo=UTC)

    def next(self, job: Manifest, now: datetime, note: str = "") -> str | None:
        """The line to print now, None for none."""
        if note != self._note:
            self._note = note
            if note:
                return f"{now.astimezone():%H:%M:%S}  {note}"
        status = job.get("status", {})
        progress = status.get("progress", {})
        found = condition(job, "Running")
        said = (str(status.get("phase", "-")), str(found.get("reason", "")), str(is_true(job, "Complete")))
        step = str(progress.get("display", ""))
        is_news = said != self._said
        is_step = step != self._step and (now - self._at).total_seconds() >= self.STEP_SECONDS
        if not (is_news or is_step):
            return None
        self._said, self._step, self._at = said, step, now
        numbers = [f"step {step}"] if step else []
        names = (("loss", "loss"), ("tokensPerSecond", "tok/s"), ("eta", "eta"))
        numbers += [f"{label} {progress[key]}" for key, label in names if progress.get(key) is not None]
        words = sentence(job) if is_news or not numbers else ""
        return "  ".join(part for part in (f"{now.astimezone():%H:%M:%S}", said[0], *numbers, words) if part)
