"""Every parser that reads what somebody else wrote, as a function of bytes that must end by itself or by the one error
that its caller expects. Hypothesis and atheris drive the same functions.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from sft_trainer import curves, events
from sft_trainer import prepare as preparing
from sft_trainer import progress as progress_file
from sft_trainer.checkpoint import fence, manifest, owner, state
from sft_trainer.config import DataSource
from sft_trainer.data.formats import COLUMNS, FormatError, RowError, conversation, detect
from sft_trainer.data.sources import Opened
from sft_trainer.errors import UserError
from sft_trainer.launcher import hostfile, inputs
from sftjob_operator import jobseries, reports
from sftjob_operator.cli import yamlfile
from sftjob_operator.cli.errors import CliError
from sftjob_operator.cli.load import load_json
from sftjob_operator.planning.hardware import quantity_bytes
from sftjob_operator.policy.running import progress_of

SCRATCH = Path(tempfile.mkdtemp(prefix="fuzzing-"))
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def _file(name: str, data: bytes) -> Path:
    path = SCRATCH / name
    path.write_bytes(data)
    return path


def _of_file(
    name: str, read: Callable[[Path], object], *expected: type[Exception]
) -> Callable[[bytes], object]:
    """A parser of a file, whose caller expects these errors and no other."""

    def parse(data: bytes) -> object:
        with contextlib.suppress(*expected):
            return read(_file(name, data))
        return None

    return parse


def _hostfile(data: bytes) -> object:
    with contextlib.suppress(UserError):
        return hostfile.parse(data.decode(errors="replace"))
    return None


def _rows(data: bytes) -> object:
    path = _file("rows.jsonl", data)
    opened = Opened("train[0]", DataSource(name="0", path=path.name, format="Auto"), (path,), SCRATCH)
    rows = list(opened.rows())
    for row in rows:
        assert str(row.place)
        if row.error is not None:
            continue
        for name in COLUMNS:
            with contextlib.suppress(RowError):
                assert conversation(row.value, name, {}).messages
        if isinstance(row.value, dict):
            with contextlib.suppress(FormatError):
                assert detect(row.value, {}) in COLUMNS
    return rows


def _json_rows(data: bytes) -> object:
    path = _file("rows.json", data)
    opened = Opened("train[0]", DataSource(name="0", path=path.name, format="Auto"), (path,), SCRATCH)
    with contextlib.suppress(UserError):
        return [str(row.place) for row in opened.rows()]
    return None


def _manifest(data: bytes) -> object:
    _file(manifest.MANIFEST, data)
    manifest.problem(SCRATCH, every_byte=True)
    return manifest.read(SCRATCH)


def _state(data: bytes) -> object:
    _file(state.STATE, data)
    return state.read(SCRATCH)


def _termination_message(data: bytes) -> object:
    outcome = reports.read_outcome(data.decode(errors="replace"))
    if outcome is not None:
        assert reports.sentence(outcome.message, 100).isprintable()
    return outcome


def _progress(data: bytes) -> object:
    heard = reports.read_progress(data)
    if heard is not None and heard.total_steps:
        progress_of(heard)
    job = jobseries.of({"spec": {}}, heard, NOW)
    for series in jobseries.JOB_SERIES:
        for _, value in jobseries.samples(series, job):
            assert isinstance(value, float)
    return heard


def _events(data: bytes) -> object:
    found = events.read(_file("events.jsonl", data))
    assert all(isinstance(event.attempt, int) for event in found)
    return found


def _curves(data: bytes) -> object:
    found = list(curves.read(_file("curves.jsonl", data)))
    assert all(isinstance(point["step"], int) for point in found)
    return found


def _quantity(data: bytes) -> object:
    with contextlib.suppress(ValueError):
        return quantity_bytes(data.decode(errors="replace"))
    return None


def _time(data: bytes) -> object:
    moment = reports.parse_time(data.decode(errors="replace"))
    if moment is not None:
        reports.rfc3339(moment)
    return moment


PARSERS: dict[str, Callable[[bytes], object]] = {
    "hostfile": _hostfile,
    "rows": _rows,
    "json rows": _json_rows,
    "manifest": _manifest,
    "trainer state": _state,
    "termination message": _termination_message,
    "progress": _progress,
    "progress file": _of_file("progress.json", progress_file.read_progress),
    "marker": _of_file("marker.json", inputs.read_marker),
    "train config": _of_file("train.json", inputs.read_train_config, UserError),
    "prepare config": _of_file("prepare.json", preparing.read_config, UserError),
    "facts": _of_file("facts.json", load_json, CliError),
    "yaml": _of_file("job.yaml", yamlfile.read, CliError),
    "owner": _of_file("owner.json", owner.read),
    "fence": _of_file("fence.json", fence.read),
    "events": _events,
    "curves": _curves,
    "quantity": _quantity,
    "time": _time,
}
