"""The termination message: always whole JSON of at most 3 KiB in ASCII."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sft_trainer.config import TERMINATION_MESSAGE_LIMIT, CheckpointFact, ExitCode, FailureClass, Outcome
from sft_trainer.errors import UserError
from sft_trainer.outcome import encode, failed, write_outcome


def checkpoint(step: int) -> CheckpointFact:
    return CheckpointFact(
        name=f"step-{step}", step=step, attempt=1, bytes=10**9, loss=1.5, time="2026-01-01T00:00:00Z"
    )


@given(st.text(max_size=5000), st.integers(0, 60))
def test_whatever_is_said_is_readable_json_within_the_limit(message: str, checkpoints: int) -> None:
    facts = [checkpoint(step) for step in range(checkpoints)]
    outcome = Outcome(outcome="Failed", reason="Crash", message=message, exit_code=70, checkpoints=facts)
    data = encode(outcome)
    assert len(data) <= TERMINATION_MESSAGE_LIMIT
    assert data.isascii()
    read = Outcome.model_validate_json(data)
    assert (read.reason, read.exit_code) == ("Crash", 70)
    assert [fact.step for fact in read.checkpoints] == list(range(checkpoints))[
        checkpoints - len(read.checkpoints) :
    ]
    assert read.message == message or read.message.endswith(" ...")


def test_a_long_message_is_cut_before_a_checkpoint_is_dropped() -> None:
    facts = [checkpoint(step) for step in range(10)]
    read = Outcome.model_validate_json(
        encode(Outcome(outcome="Failed", reason="Crash", message="x" * 9000, checkpoints=facts))
    )
    assert len(read.checkpoints) == 10
    assert len(read.message) > 1000
    assert len(encode(read)) <= TERMINATION_MESSAGE_LIMIT


def test_a_short_outcome_is_not_changed() -> None:
    outcome = Outcome(outcome="Succeeded", reason="Succeeded", message="ok, é", checkpoints=[checkpoint(1)])
    assert Outcome.model_validate_json(encode(outcome)) == outcome


def test_a_failure_carries_reason_class_and_exit_code() -> None:
    outcome = failed(UserError("InvalidRow", "line 3"), rank=2)
    assert (outcome.reason, outcome.failure_class, outcome.exit_code, outcome.rank) == (
        "InvalidRow",
        FailureClass.USER_ERROR,
        ExitCode.USER_ERROR,
        2,
    )


def test_it_is_written_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SFTJOB_TERMINATION_LOG", str(tmp_path / "log"))
    (tmp_path / "log").write_text("x" * 9999)
    assert write_outcome(Outcome(outcome="Succeeded", reason="Succeeded"))
    assert json.loads((tmp_path / "log").read_text())["outcome"] == "Succeeded"
    assert [path.name for path in tmp_path.iterdir()] == ["log"]


def test_not_being_able_to_write_is_no_failure_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = Outcome(outcome="Succeeded", reason="Succeeded")
    assert not write_outcome(outcome, tmp_path / "missing" / "log")
    monkeypatch.delenv("SFTJOB_TERMINATION_LOG", raising=False)
    assert not write_outcome(outcome)
