"""From facts to a paragraph: why a job is not running or why it died, and what to do. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from sftjob_operator.api.objects import Manifest, condition, is_finished, is_true
from sftjob_operator.cli.explain.advice import Advice
from sftjob_operator.cli.explain.classes import CLASSES
from sftjob_operator.cli.explain.usererrors import USER_ERRORS
from sftjob_operator.cli.explain.waiting import WAITING
from sftjob_operator.cli.table import duration
from sftjob_operator.desired.claim import claim_name_in
from sftjob_operator.pods import pod_trouble
from sftjob_operator.reports import parse_time

ADVICE: Mapping[str, Advice] = {**USER_ERRORS, **CLASSES, **WAITING}
"""By reason."""
_NOVEL = Advice("This version of sftjob does not know that reason; the words above are the operator's own.")
_SILENT_SECONDS = 15 * 60
_UNSEEN_SECONDS = 60
_ATTEMPTS, _PODS, _EVENTS = 3, 3, 4

Shell = Callable[[str], str | None]
"""From the command of an Advice to what the person has to type; None where it does not apply."""


@dataclass(frozen=True)
class Facts:
    """What was gathered about one job."""

    job: Manifest
    now: datetime
    pods: Sequence[Manifest] = ()
    events: Sequence[Manifest] = ()
    """About the job, its Jobs and its pods; the oldest first."""
    is_carried_on: bool = True
    """Somebody looks after it: on this machine a `sftjob run`; in a cluster we take it for granted."""


@dataclass(frozen=True)
class Explanation:
    """What is to be said."""

    headline: str
    reason: str
    paragraphs: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


def explain(facts: Facts, shell: Shell) -> Explanation:
    """The whole story."""
    verb, reason, message = verdict(facts.job)
    name = facts.job["metadata"]["name"]
    advice = ADVICE.get(reason, _NOVEL)
    if verb == "unseen":
        return _unseen(facts, shell)
    known = [message]
    paragraphs = [_join(message, advice.means, advice.do)]
    for part in (_stale(facts), _left_alone(facts), _history(facts.job), _again(facts.job, reason)):
        paragraphs += part
    known += paragraphs
    paragraphs += _pods(facts, known)
    paragraphs += _events(facts, [*known, *paragraphs])
    return Explanation(
        f"{name} {_VERBS[verb]}: {reason}", reason, paragraphs, _commands(advice, facts.job, shell)
    )


_VERBS = {
    "dead": "has failed",
    "done": "is complete",
    "refused": "is not accepted",
    "runs": "is running",
    "waits": "is not running",
    "leaves": "is being deleted",
}


def verdict(job: Manifest) -> tuple[str, str, str]:
    """How it stands, the reason that counts, and the operator's words."""
    if job["metadata"].get("deletionTimestamp"):
        return "leaves", "Stopping", "It was deleted, and its pods are being ended."
    for type_, verb in (("Failed", "dead"), ("Complete", "done")):
        if is_true(job, type_):
            return _of(condition(job, type_), verb)
    accepted, running = condition(job, "Accepted"), condition(job, "Running")
    if accepted.get("status") == "False":
        return _of(accepted, "refused")
    if not running:
        return "unseen", "", ""
    return _of(running, "runs" if running.get("status") == "True" else "waits")


def _of(found: Manifest, verb: str) -> tuple[str, str, str]:
    return verb, str(found.get("reason", "")), str(found.get("message") or "")


def _unseen(facts: Facts, shell: Shell) -> Explanation:
    metadata = facts.job["metadata"]
    age = _age(metadata.get("creationTimestamp"), facts.now)
    said = f"It was created {duration(age)} ago, and no operator has said anything of it."
    if not facts.is_carried_on:
        parts = _left_alone(facts)
    elif age < _UNSEEN_SECONDS:
        parts = ["Wait a moment."]
    else:
        parts = [
            "The operator does not run, does not watch this namespace, or may not read SFTJobs; "
            "or spec.managedBy names another."
        ]
    commands = [line for line in (shell("doctor"),) if line]
    return Explanation(f"{metadata['name']} has not been looked at", "", [said, *parts], commands)


def _stale(facts: Facts) -> list[str]:
    """What the status does not say yet."""
    status, metadata = facts.job.get("status", {}), facts.job["metadata"]
    seen, is_at = status.get("observedGeneration"), metadata.get("generation")
    if seen is not None and is_at is not None and seen < is_at:
        return [
            f"The spec was changed and the operator has not taken that up yet (it is at generation {seen} "
            f"of {is_at})."
        ]
    silent = _age(status.get("progress", {}).get("lastUpdatedTime"), facts.now)
    if condition(facts.job, "Running").get("reason") == "TrainingSteps" and silent > _SILENT_SECONDS:
        return [
            f"Its last sign of progress is {duration(silent)} old: the ranks hang, or a step takes that long. "
            "Their logs tell which."
        ]
    return []


def _left_alone(facts: Facts) -> list[str]:
    is_over = is_finished(facts.job)
    if facts.is_carried_on or is_over:
        return []
    return [
        "Nobody carries it on: no `sftjob run` of this state directory is alive. Resume it, or give the "
        "`sftjob run FILE` of the beginning again: it goes on from the last checkpoint."
    ]


def _history(job: Manifest) -> list[str]:
    """The failed attempts, the newest last."""
    status, name = job.get("status", {}), job["metadata"]["name"]
    ended = [each for each in status.get("attempts", []) if each.get("state") == "Failed"]
    if not ended:
        return []
    lines = [_attempt(each) for each in ended[-_ATTEMPTS:]]
    if len(ended) > _ATTEMPTS:
        lines.insert(0, f"{len(ended) - _ATTEMPTS} earlier attempts of {name} failed too.")
    policy = job.get("spec", {}).get("failurePolicy", {})
    used, allowed = status.get("restarts", 0), policy.get("maxRestarts")
    charged = (
        f"{used} restarts are charged." if allowed is None else f"{used} of {allowed} restarts are used."
    )
    verified = status.get("lastVerifiedStep")
    held = "" if verified is None else f"The newest verified checkpoint is step {verified}."
    return [" ".join(part for part in (*lines, charged, held) if part)]


def _attempt(record: Manifest) -> str:
    at = f" at step {record['lastStep']}" if record.get("lastStep") is not None else ""
    on = f" on {record['node']}" if record.get("node") else ""
    free = " (not charged)" if record.get("charged") is False else ""
    words = f": {record['message']}" if record.get("message") else ""
    return f"Attempt {record['number']} ended with {record.get('reason') or 'Crash'}{on}{at}{free}{words}.".replace(
        "..", "."
    )


def _again(job: Manifest, reason: str) -> list[str]:
    """The advice for the last failure, where the job's own reason is another; louder where it repeats."""
    ended = [each for each in job.get("status", {}).get("attempts", []) if each.get("state") == "Failed"]
    last = str(ended[-1].get("reason")) if ended else ""
    advice = ADVICE.get(last)
    if advice is None or is_true(job, "Complete"):
        return []
    same = 0
    for each in reversed(ended):
        if each.get("reason") != last:
            break
        same += 1
    often = f"The last {same} attempts ended the same way. " if same > 1 else ""
    told = "" if last == reason else _join("", f"{last}: {advice.means}", advice.do)
    return [often + told] if often + told else []


def _pods(facts: Facts, known: Sequence[str]) -> list[str]:
    """In the words of scheduler and kubelet, which may be newer than the status."""
    if is_finished(facts.job):
        return []
    found = [why for why in map(pod_trouble, facts.pods) if why is not None]
    news = [f"{why.reason}: {why.message}" for why in found if not _is_said(why.message, known)]
    more = [f"and {len(news) - _PODS} more pods"] if len(news) > _PODS else []
    return ["Pods: " + "; ".join([*news[:_PODS], *more]) + "."] if news else []


def _events(facts: Facts, known: Sequence[str]) -> list[str]:
    """The last warnings that say something new."""
    shown: list[str] = []
    for event in reversed(facts.events):
        words = str(event.get("message") or "").strip()
        if event.get("type") != "Warning" or not words or _is_said(words, [*known, *shown]):
            continue
        about = event.get("involvedObject", {})
        shown.append(f"{event.get('reason')} ({about.get('kind', '').lower()} {about.get('name')}): {words}")
        if len(shown) == _EVENTS:
            break
    return ["Warnings: " + "; ".join(reversed(shown))] if shown else []


def _is_said(words: str, known: Sequence[str]) -> bool:
    core = words.partition(": ")[2] or words
    return any(words in each or core in each for each in known)


def _commands(advice: Advice, job: Manifest, shell: Shell) -> list[str]:
    attempts = job.get("status", {}).get("attempts") or [{}]
    fields = {
        "name": job["metadata"]["name"],
        "claim": claim_name_in(job),
        "job": attempts[-1].get("jobName") or job["metadata"]["name"],
    }
    lines: Iterator[str | None] = (shell(each.format(**fields)) for each in advice.commands)
    return [line for line in lines if line]


def _join(*parts: str) -> str:
    """Sentences, each with its full stop."""
    return " ".join(part if part.endswith((".", "?", "!")) else f"{part}." for part in parts if part)


def _age(text: str | None, now: datetime) -> float:
    then = parse_time(text)
    return 0.0 if then is None else max(0.0, (now.astimezone(UTC) - then).total_seconds())
