"""What only a job's volume knows, asked through `python -m sft_trainer volume`: in a pod of a cluster, or beside us.

One conversation of JSON lines; the program and its protocol are the same in both places.
"""

from __future__ import annotations

import base64
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from sftjob_operator.api.names import LABEL_JOB
from sftjob_operator.cli.errors import UNKNOWN, CliError
from sftjob_operator.cli.place import Place
from sftjob_operator.cli.volumepod import reader
from sftjob_operator.cluster.base import Manifest
from sftjob_operator.cluster.client import Duplex

Answer = Mapping[str, Any]


class Missing(CliError):
    """What was asked for is not on the volume."""


class Volume:
    """An open conversation."""

    def __init__(self, duplex: Duplex) -> None:
        """`duplex` holds the program."""
        self._duplex = duplex
        self._lines = duplex.lines()

    async def ask(self, **request: Any) -> AsyncIterator[Answer]:
        """The answers to one request; CliError in the program's words."""
        await self._duplex.send(json.dumps(request))
        async for line in self._lines:
            try:
                answer: Answer = json.loads(line)
            except ValueError:
                continue  # a word of the container's that is none of ours
            if "error" in answer:
                kind = Missing if answer.get("missing") else CliError
                raise kind(str(answer["error"]), UNKNOWN)
            if answer.get("end"):
                return
            yield answer
        said = self._duplex.said().strip().splitlines()
        raise CliError(f"the program on the volume ended: {said[-1] if said else 'without a word'}", UNKNOWN)

    async def file(self, path: str) -> bytes:
        """A file of the workspace, whole."""
        return await self._whole(path, do="file", path=path)

    async def report(self, job: str) -> bytes:
        """The page about a job, made now."""
        return await self._whole("the report", do="report", job=job)

    async def _whole(self, what: str, **request: Any) -> bytes:
        size, parts = None, []
        async for answer in self.ask(**request):
            size = answer.get("size", size)
            if "data" in answer:
                parts.append(base64.b64decode(answer["data"]))
        data = b"".join(parts)
        if size != len(data):
            raise CliError(f"{what} came incompletely: {len(data)} of {size} bytes", UNKNOWN)
        return data


@contextlib.asynccontextmanager
async def opened(
    place: Place, job: Manifest, resources: Manifest | None = None, *, writable: bool = False
) -> AsyncIterator[Volume]:
    """The volume of `job`; the pod is gone afterwards, also after Ctrl-C."""
    pod = reader(job, await _template(place, job), secrets.token_hex(3), resources, writable=writable)
    with contextlib.ExitStack() as stack:
        if place.state is None:
            console = Console(stderr=True, emoji=False)
            stack.enter_context(
                console.status(f"starting the pod {pod['metadata']['name']} on the volume ...")
            )
        async with place.client.attached(pod) as duplex:
            stack.close()
            yield Volume(duplex)


async def _template(place: Place, job: Manifest) -> Manifest:
    """Of the newest Job: what runs there runs with the volume."""
    labels = {LABEL_JOB: job["metadata"]["name"]}
    found = await place.client.list("batch/v1", "Job", place.namespace, labels)
    if not found:
        raise CliError(
            f"{job['metadata']['name']} has had no pods yet: there is nothing on the volume", UNKNOWN
        )
    newest = max(found, key=lambda item: str(item["metadata"]["creationTimestamp"]))
    template: Manifest = newest["spec"]["template"]
    return template


def folder(job: Manifest, below: str) -> str:
    """A path below jobs/<name>, as the workspace has it."""
    return f"jobs/{job['metadata']['name']}/{below}"


def write(data: bytes, target: Path) -> None:
    """CliError where that place cannot be written."""
    try:
        target.write_bytes(data)
    except OSError as error:
        raise CliError(f"{target} cannot be written: {error.strerror}") from None
