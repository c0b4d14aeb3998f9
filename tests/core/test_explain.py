"""`sftjob explain`: every reason the operator or a pod can give has a meaning and a way out; the story is complete."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import pytest

from core.test_reasons import DOCUMENT, reasons
from sft_trainer.config import FailureClass
from sftjob_operator.api.names import LABEL_JOB
from sftjob_operator.cli.explain.story import ADVICE, Facts, explain
from sftjob_operator.cluster.local.admission import sftjob_schema
from sftjob_operator.policy.running import _STATES

NOW = datetime(2030, 1, 1, 1, 0, tzinfo=UTC)
# Reasons of which nobody needs to be told what to do.
IDLE = {
    "Valid", "NotStarted", "DataReady", "NotPrepared", "Fits", "NotSuspended", "InProgress", "Starting", "TrainingSteps",
    "Evaluating", "SavingCheckpoint", "Exporting", "Preparing", "Finishing", "Stopping", "Suspending", "Resuming",
    "Resizing", "Finished", "Trained", "StoppedEarly", "Failed", "Resized", "SpecChanged",
}  # fmt: skip


def known() -> set[str]:
    found = {word for word, _ in reasons()} | {word for word, _ in _STATES.values()}
    return found | {str(cls) for cls in FailureClass} | documented()


def documented() -> set[str]:
    """In docs/conditions.md, which a test of its own holds against the sources."""
    types = {"Accepted", "Prepared", "Planned", "Running", "Suspended", "Complete", "Failed"}
    rows = re.findall(r"^\|(?: \w+ \|| `\w+` \| \w+ \|)? `([A-Z][A-Za-z0-9]+)`", DOCUMENT, re.M)
    return set(rows) - types


def said(type_: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    return {"type": type_, "status": status, "reason": reason, "message": message}


def job(*conditions: dict[str, Any], **status: Any) -> dict[str, Any]:
    metadata = {"name": "bot", "generation": 1, "creationTimestamp": "2030-01-01T00:00:00Z"}
    spec = {"workspace": {"claimName": "shared"}, "failurePolicy": {"maxRestarts": 3}}
    more = {"observedGeneration": 1, "conditions": list(conditions), **status} if conditions else {}
    return {"metadata": metadata, "spec": spec, "status": more}


def story(manifest: dict[str, Any], **more: Any) -> str:
    told = explain(Facts(manifest, NOW, **more), lambda command: f"$ {command}")
    return "\n".join([told.headline, *told.paragraphs, *told.commands])


def test_every_reason_of_operator_and_pods_is_explained():
    assert len(known()) > 60, "the search has gone blind"
    assert known() - set(ADVICE) == set()


def test_no_reason_is_explained_that_nobody_gives():
    from core.test_reasons import ROOT

    sources = "".join(
        file.read_text()
        for package in ("operator/sftjob_operator", "trainer/sft_trainer")
        for file in (ROOT / package).rglob("*.py")
        if "explain" not in file.parts
    )
    assert {reason for reason in ADVICE if f'"{reason}"' not in sources} == set()


def test_no_advice_names_a_field_that_does_not_exist():
    def exists(path: str) -> bool:
        schema = sftjob_schema()
        for part in path.split("."):
            if schema.get("x-kubernetes-preserve-unknown-fields"):
                return True
            schema = schema.get("items", schema)
            if part not in schema.get("properties", {}):
                return "additionalProperties" in schema
            schema = schema["properties"][part]
        return True

    words = " ".join(f"{advice.means} {advice.do}" for advice in ADVICE.values())
    named = set(re.findall(r"\bspec(?:\.[A-Za-z]+)+", words))
    assert len(named) > 30, "the search has gone blind"
    assert {path for path in named if not exists(path)} == set()


@pytest.mark.parametrize("reason", sorted(ADVICE))
def test_a_reason_has_a_sentence_and_where_it_is_trouble_a_way_out(reason: str):
    advice = ADVICE[reason]
    assert advice.means.endswith(".")
    assert advice.do or reason in IDLE
    fields = {"name": "bot", "claim": "c", "job": "bot-1"}
    assert all(
        "{" not in command.format(**fields) for command in advice.commands if "jsonpath" not in command
    )


@pytest.mark.parametrize("reason", sorted(known() - {"Accepted"}))
def test_the_story_of_a_reason_has_the_operators_words_and_ours(reason: str):
    told = story(
        job(said("Accepted", "True", "Valid"), said("Running", "False", reason, "words of the operator"))
    )
    assert told.startswith(f"bot is not running: {reason}\nwords of the operator. {ADVICE[reason].means}")


@pytest.mark.parametrize(
    ("conditions", "headline"),
    [
        (
            [said("Failed", "True", "InvalidRow"), said("Running", "False", "Failed")],
            "bot has failed: InvalidRow",
        ),
        (
            [said("Complete", "True", "Trained"), said("Running", "False", "Finished")],
            "bot is complete: Trained",
        ),
        ([said("Accepted", "False", "BatchNotDivisible")], "bot is not accepted: BatchNotDivisible"),
        ([said("Running", "True", "TrainingSteps")], "bot is running: TrainingSteps"),
        ([said("Running", "False", "Brandnew", "hm")], "bot is not running: Brandnew"),
    ],
)
def test_the_headline_says_how_it_stands(conditions: list[dict[str, Any]], headline: str):
    assert story(job(*conditions)).splitlines()[0] == headline


def test_a_reason_of_a_newer_operator_is_passed_on():
    assert "does not know that reason" in story(job(said("Running", "False", "Brandnew", "hm")))


def test_a_job_that_no_operator_has_seen_leads_to_the_doctor():
    told = story(job())
    assert "bot has not been looked at" in told
    assert "created 1h00m ago" in told
    assert "$ doctor" in told


def test_the_attempts_are_told_with_node_step_and_what_is_left_of_the_budget():
    attempts = [
        {
            "number": 1,
            "state": "Failed",
            "reason": "NodeLost",
            "charged": False,
            "lastStep": 71,
            "node": "gpu-14",
        },
        {"number": 2, "state": "Failed", "reason": "Crash", "charged": True, "message": "it broke"},
    ]
    conditions = (said("Running", "False", "Restarting", "attempt 3 starts in 20 s"),)
    told = story(job(*conditions, attempts=attempts, restarts=1, lastVerifiedStep=60))
    assert "Attempt 1 ended with NodeLost on gpu-14 at step 71 (not charged)." in told
    assert "Attempt 2 ended with Crash: it broke." in told
    assert "1 of 3 restarts are used." in told
    assert "newest verified checkpoint is step 60" in told
    assert "Crash: A rank ended in a way that nobody foresaw" in told
    assert "$ logs bot --previous" in told


def test_the_same_end_again_and_again_is_said():
    attempts = [
        {"number": number, "state": "Failed", "reason": "GPUOutOfMemory", "charged": True}
        for number in range(1, 6)
    ]
    told = story(
        job(said("Failed", "True", "GPUOutOfMemory", "out of memory"), attempts=attempts, restarts=3)
    )
    assert "2 earlier attempts of bot failed too." in told
    assert "The last 5 attempts ended the same way." in told
    assert told.count("smaller spec.deepspeed.microBatchSize") == 1


def test_pods_and_warnings_say_what_the_status_does_not_yet():
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes: no GPU",
    }
    pod = {
        "metadata": {"name": "bot-1-0-x", "labels": {LABEL_JOB: "bot"}},
        "spec": {},
        "status": {"phase": "Pending", "conditions": [condition]},
    }
    about = {"kind": "Job", "name": "bot-1"}
    events = [
        {"type": "Warning", "reason": "FailedCreate", "message": "exceeded quota", "involvedObject": about},
        {"type": "Warning", "reason": "FailedCreate", "message": "exceeded quota", "involvedObject": about},
        {"type": "Normal", "reason": "Created", "message": "noise", "involvedObject": about},
    ]
    told = story(job(said("Running", "False", "ContainerCreating", "0 of 2")), pods=[pod], events=events)
    assert "Pods: Unschedulable: pod bot-1-0-x: 0/3 nodes: no GPU." in told
    assert told.count("FailedCreate (job bot-1): exceeded quota") == 1
    assert "noise" not in told


def test_what_was_said_is_not_said_twice():
    condition = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes: no GPU"}
    pod = {"metadata": {"name": "p"}, "spec": {}, "status": {"phase": "Pending", "conditions": [condition]}}
    told = story(
        job(said("Running", "False", "Unschedulable", "attempt 1: pod p: 0/3 nodes: no GPU")), pods=[pod]
    )
    assert told.count("no GPU") == 1


def test_a_change_that_the_operator_has_not_seen_and_a_silent_trainer_are_named():
    running = said("Running", "True", "TrainingSteps", "step 3")
    changed = job(running)
    changed["metadata"]["generation"] = 2
    assert "has not taken that up yet (it is at generation 1 of 2)" in story(changed)
    silent = job(running, progress={"lastUpdatedTime": "2030-01-01T00:30:00Z"})
    assert "last sign of progress is 30m00s old" in story(silent)
    fresh = job(running, progress={"lastUpdatedTime": "2030-01-01T00:59:00Z"})
    assert "last sign" not in story(fresh)


def test_a_local_job_that_nobody_carries_on_says_how_to():
    told = story(job(said("Running", "True", "TrainingSteps", "step 3")), is_carried_on=False)
    assert "no `sftjob run` of this state directory is alive" in told
    done = story(job(said("Complete", "True", "Trained")), is_carried_on=False)
    assert "carries it on" not in done


def test_a_deleted_job_is_being_ended():
    gone = job(said("Running", "True", "TrainingSteps", "step 3"))
    gone["metadata"]["deletionTimestamp"] = "2030-01-01T00:59:00Z"
    assert story(gone).splitlines()[0] == "bot is being deleted: Stopping"
