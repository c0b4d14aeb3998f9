"""The command `sftjob logs`: the pods of one attempt, or with --follow of all to come, line by line with their names."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from sftjob_operator.api.names import LABEL_ATTEMPT, LABEL_JOB, LABEL_ROLE, ROLE_PREPARE
from sftjob_operator.api.objects import is_finished, is_true
from sftjob_operator.cli import jobs, table, volume
from sftjob_operator.cli.errors import UNKNOWN, CliError
from sftjob_operator.cli.place import Place, Where, opened
from sftjob_operator.cluster.base import ClusterError, Manifest, Ref, ref_of
from sftjob_operator.cluster.patience import Patience
from sftjob_operator.observe import OVER

LOOK_SECONDS = 1.0
_INDEX = "batch.kubernetes.io/job-completion-index"


@dataclass(frozen=True)
class Options:
    """What is to be shown."""

    name: str
    attempt: int | None = None
    """None: the newest pods, whatever they do; 0: preparation."""
    previous: bool = False
    """The attempt before the newest."""
    rank: int | None = None
    follow: bool = False
    tail: int | None = None
    as_json: bool = False
    """A JSON object a line: pod, rank (null for the launcher), line."""


async def logs(where: Where, options: Options, console: Console) -> None:
    """To stdout; where nothing is left of the pods, from the copies on the volume."""
    async with opened(where) as place:
        job = await jobs.find(place, options.name)
        attempt = _wanted(job, options)
        say = _Printer(console, options)
        if options.follow:
            await _Follower(place, options, attempt, say).run()
            return
        pods = of_attempt(await jobs.pods(place, options.name), attempt)
        if attempt is None and pods and _attempt(pods[0]) < max(_ended(job), default=0):
            pods = []  # older than the last attempt, whose own pods are gone
        began = [pod for pod in pods if has_begun(pod)]
        if not began and (pods or not await _copies(place, job, attempt, options, say)):
            raise CliError(_nothing(job, attempt, pods, place), UNKNOWN)
        for pod in began:
            await _copy(place, pod, options.tail, say, follow=False)
        if began and options.rank is not None and not say.said:  # its pod is gone, others are still there
            await _copies(place, job, _attempt(began[0]), options, say)


def of_attempt(pods: Sequence[Manifest], attempt: int | None) -> list[Manifest]:
    """The pods of this attempt (0: of preparation), by index; of the newest Job for None."""
    if attempt is None:
        # Timestamps are whole seconds, and a short attempt takes less.
        newest = max(
            pods, key=lambda pod: (str(pod["metadata"]["creationTimestamp"]), _attempt(pod)), default=None
        )
        chosen = [pod for pod in pods if newest is not None and _owner(pod) == _owner(newest)]
    else:
        chosen = [pod for pod in pods if _attempt(pod) == attempt]
    return sorted(chosen, key=lambda pod: (index(pod), pod["metadata"]["name"]))


def has_begun(pod: Manifest) -> bool:
    """Its container runs or ran, so that there is a log."""
    return pod.get("status", {}).get("phase") in ("Running", "Succeeded", "Failed")


def index(pod: Manifest) -> int:
    """Its place in the gang."""
    text = str(pod["metadata"].get("labels", {}).get(_INDEX, ""))
    return int(text) if text.isdigit() else 0


def short(pod: Manifest) -> str:
    """bot-2-0: its host name; `prepare` for preparation."""
    labels = pod["metadata"].get("labels", {})
    if labels.get(LABEL_ROLE) == ROLE_PREPARE:
        return "prepare"
    return f"{labels.get(LABEL_JOB)}-{labels.get(LABEL_ATTEMPT)}-{index(pod)}"


def of_rank(line: str, rank: int | None) -> bool:
    """Whether the launcher has this line from that rank."""
    return rank is None or line.startswith(f"[rank {rank}] ")


_FROM_RANK = re.compile(r"\[rank (\d+)\] (.*)", re.DOTALL)


def as_json(name: str, line: str) -> str:
    """The line as an object; what the launcher itself says has no rank."""
    found = _FROM_RANK.fullmatch(line)
    rank, words = (int(found[1]), found[2]) if found else (None, line)
    return json.dumps({"pod": name, "rank": rank, "line": words}, ensure_ascii=False)


class _Printer:
    """Prefix and line; colours tell pods apart on a terminal."""

    _COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "bright_cyan", "bright_green", "bright_magenta")

    def __init__(self, console: Console, options: Options) -> None:
        self._console, self._options = console, options
        self.said = 0

    def __call__(self, name: str, line: str, number: int = 0) -> None:
        """A line of the pod of this name; `number` is its place in the gang."""
        if not of_rank(line, self._options.rank):
            return
        self.said += 1
        if self._options.as_json:
            self._console.print(as_json(name, line), markup=False, highlight=False, soft_wrap=True)
            return
        style = self._COLOURS[number % len(self._COLOURS)] if self._console.is_terminal else None
        self._console.print(f"[{name}]", end=" ", style=style, markup=False, highlight=False)
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class _Follower:
    """Follows each wanted pod that has begun, says what is waited for, and ends when no more can come."""

    def __init__(self, place: Place, options: Options, attempt: int | None, say: _Printer) -> None:
        self._place, self._options, self._attempt, self._say = place, options, attempt, say
        self._tasks: dict[Ref, asyncio.Task[None]] = {}
        self._ignored: set[Ref] | None = None
        """Pods of before that are not wanted; None until there are any pods."""
        self._waits_for = ""
        self._patience = Patience()

    async def run(self) -> None:
        try:
            while await self._patient_look():
                await asyncio.sleep(LOOK_SECONDS)
            await asyncio.gather(*self._tasks.values())
        finally:
            for task in self._tasks.values():
                task.cancel()

    async def _patient_look(self) -> bool:
        try:
            going_on = await self._look()
        except ClusterError as error:
            self._patience.bear(error)
            return True
        self._patience.renew()
        return going_on

    async def _look(self) -> bool:
        """Begin with the pods that have begun; whether more can come."""
        job = await self._place.client.get(jobs.ref(self._place, self._options.name))
        for pod in self._wanted(await jobs.pods(self._place, self._options.name)):
            if ref_of(pod) not in self._tasks and has_begun(pod):
                copying = _copy(self._place, pod, self._options.tail, self._say, follow=True)
                self._tasks[ref_of(pod)] = asyncio.create_task(copying)
        running = [task for task in self._tasks.values() if not task.done()]
        for task in self._tasks.values():
            if task.done():
                task.result()
        if job is None or is_over(job, self._attempt) or not self._place.client.is_carried_on():
            return False
        if not running:
            self._wait(table.sentence(job))
        return True

    def _wanted(self, pods: Sequence[Manifest]) -> list[Manifest]:
        """Those of the attempt; without one the newest of the beginning, and all that come later."""
        if self._attempt is not None:
            return of_attempt(pods, self._attempt)
        if self._ignored is None and pods:
            first = [ref_of(pod) for pod in of_attempt(pods, None)]
            self._ignored = {ref_of(pod) for pod in pods} - set(first)
        return [pod for pod in pods if ref_of(pod) not in (self._ignored or ())]

    def _wait(self, words: str) -> None:
        if words != self._waits_for:
            self._waits_for = words
            _aside(f"waiting: {words}")


async def _copy(place: Place, pod: Manifest, tail: int | None, say: _Printer, *, follow: bool) -> None:
    """One log that cannot be read (a dead node, a pod that never began) does not hide the others'."""
    try:
        async for line in place.client.log(pod, tail, follow=follow):
            say(short(pod), line, index(pod))
    except ClusterError as error:
        _aside(f"[{short(pod)}] its log ends here: {error}")


def _aside(words: str) -> None:
    Console(stderr=True, emoji=False).print(words, style="dim", markup=False, highlight=False, soft_wrap=True)


def is_over(job: Manifest, attempt: int | None) -> bool:
    """No further pod will come: of the job, or of this attempt."""
    if is_finished(job):
        return True
    return is_true(job, "Prepared") if attempt == 0 else attempt in _ended(job)


def _ended(job: Manifest) -> list[int]:
    """Numbers of the attempts that are over."""
    records = job.get("status", {}).get("attempts", [])
    return [each["number"] for each in records if each["state"] in OVER]


async def _copies(place: Place, job: Manifest, attempt: int | None, options: Options, say: _Printer) -> bool:
    """Of an attempt whose pods are gone: what its launchers have copied to the volume; whether there was one."""
    ended = _ended(job)
    number = max(ended, default=None) if attempt is None else attempt
    if number not in ended:
        return False
    async with volume.opened(place, job) as there:
        request = {"job": options.name, "attempt": number, "rank": options.rank, "tail": options.tail}
        async for answer in there.ask(do="logs", **request):
            say(f"{options.name}-{number}", f"[rank {answer['rank']}] {answer['line']}")
    return True


def _owner(pod: Manifest) -> str:
    owners = pod["metadata"].get("ownerReferences") or [{}]
    return str(owners[0].get("uid"))


def _attempt(pod: Manifest) -> int:
    text = str(pod["metadata"].get("labels", {}).get(LABEL_ATTEMPT, ""))
    return int(text) if text.isdigit() else 0


def _wanted(job: Manifest, options: Options) -> int | None:
    if not options.previous:
        return options.attempt
    numbers = [each["number"] for each in job.get("status", {}).get("attempts", [])]
    if len(numbers) < 2:
        raise CliError(f"{options.name} has had no attempt before its newest: leave --previous out")
    return int(sorted(numbers)[-2])


def _nothing(job: Manifest, attempt: int | None, pods: Sequence[Manifest], place: Place) -> str:
    name = job["metadata"]["name"]
    which = "" if attempt is None else f" of attempt {attempt}"
    if pods:
        return f"the pods{which} of {name} have not begun: {table.sentence(job)}; -f waits for them"
    return f"{name} has no pods{which}: {table.sentence(job)}; {place.command('explain', name)} says more"
