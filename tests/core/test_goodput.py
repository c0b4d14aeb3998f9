"""Seconds by kind: what the conditions said, charged when the status is written."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from sftjob_operator.api.status import AttemptStatus, Condition, GoodputStatus, ProgressStatus, Status
from sftjob_operator.goodput import KINDS, charged, kind, percent
from sftjob_operator.reports import rfc3339

START = datetime(2026, 1, 1, 12, tzinfo=UTC)


def status(reason: str = "Pending", running: str = "False", true: str = "", **more: object) -> Status:
    def condition(name: str) -> Condition:
        is_true = name == true or (name == "Running" and running == "True")
        word = reason if name == "Running" else "Because"
        return Condition(
            type=name, status="True" if is_true else "False", reason=word, last_transition_time=rfc3339(START)
        )

    names = ("Accepted", "Prepared", "Planned", "Running", "Suspended", "Complete", "Failed")
    return Status(conditions=[condition(name) for name in names], **more)


@pytest.mark.parametrize(
    ("found", "spent_on"),
    [
        (Status(), None),
        (status("Preparing"), "preparing"),
        (status("Queued"), "queued"),
        (status("VolumeMissing"), "queued"),
        (status("NotAccepted"), "queued"),
        (status("ContainerCreating", start_time="t"), "restart"),
        (status("Restarting", start_time="t"), "restart"),
        (status("ImagePull", start_time="t"), "restart"),
        (status("ImagePull"), "preparing"),
        (Status(conditions=[status().conditions[0]]), None),
        (status("Starting", "True"), "restart"),
        (status("TrainingSteps", "True"), "productive"),
        (status("Evaluating", "True"), "productive"),
        (status("SavingCheckpoint", "True"), "checkpoint"),
        (status("Exporting", "True"), "productive"),
        (status("Suspending"), "suspended"),
        (status("Suspended", true="Suspended"), "suspended"),
        (status("Finished", true="Complete"), None),
        (status("Failed", true="Failed"), None),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_the_conditions_say_is_what_time_is_spent_on(found: Status, spent_on: str | None) -> None:
    assert kind(found) == spent_on


def attempts(*last_steps: int | None) -> list[AttemptStatus]:
    return [
        AttemptStatus(number=number, state="Failed", job_name=f"bot-{number}", last_step=last)
        for number, last in enumerate(last_steps, 1)
    ]


@pytest.mark.parametrize(
    ("step", "spent_on"), [(60, "lost"), (70, "lost"), (71, "productive"), (90, "productive")]
)
def test_steps_that_an_attempt_had_made_before_are_lost_work_until_they_are_made_again(
    step: int, spent_on: str
) -> None:
    again = status(
        "TrainingSteps", "True", progress=ProgressStatus(step=step), attempts=attempts(71, 40, step)
    )
    assert kind(again) == spent_on
    saving = status("SavingCheckpoint", "True", progress=ProgressStatus(step=1), attempts=attempts(71, 1))
    assert kind(saving) == "checkpoint"


def test_time_goes_to_what_was_being_done_until_now() -> None:
    old = status("Preparing")
    old = old.model_copy(update={"goodput": charged(old, START)})
    assert sum(getattr(old.goodput, f"{name}_seconds") for name in KINDS) == 0
    first = charged(old, START + timedelta(seconds=40))
    training = status("TrainingSteps", "True", goodput=first)
    second = charged(training, START + timedelta(seconds=100))
    assert (second.preparing_seconds, second.productive_seconds) == (40, 60)
    assert second.accounted_time == rfc3339(START + timedelta(seconds=100))
    over = status("Finished", true="Complete", goodput=second)
    assert (
        charged(over, START + timedelta(days=9)).model_copy(update={"accounted_time": second.accounted_time})
        == second
    )


def test_whole_seconds_add_up_whatever_the_pauses() -> None:
    found, now = status("TrainingSteps", "True"), START
    for _ in range(100):
        found = found.model_copy(update={"goodput": charged(found, now)})
        now += timedelta(seconds=1.7)
    assert found.goodput is not None
    assert found.goodput.productive_seconds == pytest.approx(99 * 1.7, abs=1.7)


def test_a_clock_that_goes_backwards_takes_nothing_back() -> None:
    old = status("TrainingSteps", "True")
    old = old.model_copy(update={"goodput": charged(old, START)})
    assert charged(old, START - timedelta(seconds=50)) == old.goodput


def test_the_share_counts_time_with_pods_only() -> None:
    def goodput(**seconds: int) -> GoodputStatus:
        return GoodputStatus(accounted_time=rfc3339(START), **seconds)

    assert percent(goodput(queued_seconds=500, preparing_seconds=5, suspended_seconds=5)) is None
    spent = {"productive_seconds": 70, "checkpoint_seconds": 10, "lost_seconds": 5, "restart_seconds": 15}
    assert percent(goodput(**spent, queued_seconds=900)) == 70
