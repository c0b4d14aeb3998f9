"""What status keeps of preparation: its input, its failed tries, and its facts once it has succeeded.

So plan and attempts need neither the prepare Job nor its pod: both may be gone.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError

from sft_trainer.config import FailureClass, PrepareResult
from sftjob_operator.api.base import ApiModel
from sftjob_operator.api.status import DataStatus, ModelStatus, Status
from sftjob_operator.failure import FATAL, UNCHARGED, Failure
from sftjob_operator.reports import read_facts, sentence


class FailedTry(ApiModel):
    """The last try that failed."""

    cls: FailureClass = Field(alias="class")
    reason: str
    message: str
    finished_time: str

    @property
    def fatal(self) -> bool:
        """The same input would fail again."""
        return self.cls in FATAL


class Prepared(ApiModel):
    """status.prepared."""

    input: str
    tries: int = 0
    """Failed so far."""
    charged: int = 0
    """Of them those that count towards failurePolicy.maxRestarts."""
    failure: FailedTry | None = None
    facts: dict[str, Any] | None = None

    def result(self) -> PrepareResult | None:
        """The facts, where there are usable ones."""
        return None if self.facts is None else read_facts(self.facts)

    def failed(self, why: Failure, finished_time: str) -> Prepared:
        """One more failed try."""
        last = FailedTry(cls=why.cls, reason=why.reason, message=why.message, finished_time=finished_time)
        charged = self.charged + (why.cls not in UNCHARGED)
        return Prepared(input=self.input, tries=self.tries + 1, charged=charged, failure=last)

    def json_value(self) -> dict[str, Any]:
        """As it stands in status."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def stored(status: Status) -> Prepared | None:
    """What status holds, if it can be read."""
    try:
        return None if status.prepared is None else Prepared.model_validate(status.prepared)
    except ValidationError:
        return None


def model_status(facts: PrepareResult) -> ModelStatus:
    """status.model."""
    return ModelStatus(resolved=sentence(facts.model.resolved, 1024), parameters=facts.model.parameters)


def data_status(facts: PrepareResult) -> DataStatus:
    """status.data."""
    data = facts.data
    return DataStatus(
        rows=data.rows,
        eval_rows=data.eval_rows,
        tokens=data.tokens,
        supervised_tokens=data.supervised_tokens,
        truncated_rows=data.truncated_rows,
        dropped_rows=data.dropped_rows,
        short_rows=data.short_rows,
        skipped_rows=data.skipped_rows,
        duplicate_rows=data.duplicate_rows,
        fill_percent=data.fill_percent,
        cache_hash=sentence(data.hash, 64),
    )


def data_message(data: DataStatus) -> str:
    """One sentence for Prepared=True."""
    parts = [f"{data.rows:,} rows", f"{data.supervised_tokens:,} supervised tokens"]
    if data.eval_rows:
        parts.append(f"{data.eval_rows:,} held out")
    for count, word in (
        (data.truncated_rows, "truncated"),
        (data.dropped_rows, "dropped"),
        (data.short_rows, "too short"),
        (data.skipped_rows, "skipped"),
        (data.duplicate_rows, "duplicates left out"),
    ):
        if count:
            parts.append(f"{count:,} {word}")
    return ", ".join(parts)
