"""The command `sftjob explain`: gathers the facts, prints the story."""

from __future__ import annotations

import json
from dataclasses import asdict

from rich.console import Console

from sftjob_operator.api.names import LABEL_JOB
from sftjob_operator.cli import jobs
from sftjob_operator.cli.explain.story import Explanation, Facts, Shell, explain
from sftjob_operator.cli.place import Place, Where, opened
from sftjob_operator.cli.session import now
from sftjob_operator.cluster.base import ClusterError, Manifest, Ref, ref_of
from sftjob_operator.desired.claim import claim_name_in

_KINDS = 8  # objects whose Events are read


async def show(where: Where, name: str, as_json: bool, console: Console) -> None:
    """The explanation on stdout."""
    async with opened(where) as place:
        story = explain(await gather(place, name), shell(place))
    if as_json:
        console.print(json.dumps(asdict(story), indent=1), markup=False, highlight=False, soft_wrap=True)
    else:
        say(story, console)


def say(story: Explanation, console: Console) -> None:
    """For a person."""
    console.print(story.headline, style="bold", markup=False, highlight=False)
    for paragraph in story.paragraphs:
        console.print(f"\n{paragraph}", markup=False, highlight=False, soft_wrap=not console.is_terminal)
    if story.commands:
        console.print("\nNext:", style="bold")
        for command in story.commands:
            console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)


async def gather(place: Place, name: str) -> Facts:
    """All that has something to say; what may not be read is left out."""
    job = await jobs.find(place, name)
    pods = await _readable(place, "v1", "Pod", name)
    children = await _readable(place, "batch/v1", "Job", name)
    # The newest children have the newest troubles.
    newest = sorted([*children, *pods], key=lambda item: str(item["metadata"].get("creationTimestamp")))
    events: list[Manifest] = []
    claim = Ref("v1", "PersistentVolumeClaim", place.namespace, claim_name_in(job))
    for ref in [ref_of(job), claim, *map(ref_of, newest[-_KINDS:])]:
        try:
            events += await place.client.events_about(ref)
        except ClusterError:
            continue
    events.sort(key=lambda item: str(item.get("lastTimestamp") or item.get("eventTime") or ""))
    return Facts(job, now(), pods, events, is_carried_on=place.client.is_carried_on())


async def _readable(place: Place, api: str, kind: str, name: str) -> list[Manifest]:
    try:
        return list(await place.client.list(api, kind, place.namespace, {LABEL_JOB: name}))
    except ClusterError:
        return []


def shell(place: Place) -> Shell:
    """Commands as they are typed for this place."""

    def line(command: str) -> str | None:
        if command.startswith("kubectl "):
            return None if place.state is not None else place.kubectl(command.removeprefix("kubectl "))
        verb, _, rest = command.partition(" ")
        if verb in ("data", "render"):
            return f"sftjob {command}"
        return place.command(verb, rest)

    return line
