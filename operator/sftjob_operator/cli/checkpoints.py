"""The command `sftjob checkpoints`: what can be gone on from, newest first, and which is the best."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console

from sftjob_operator.cli import jobs, table, volume
from sftjob_operator.cli.errors import FAILED, OK
from sftjob_operator.cli.place import Place, Where, opened
from sftjob_operator.cluster.base import Manifest

COLUMNS = ("STEP", "TIME", "SIZE", "VERIFIED", "LOSS", "EVAL LOSS", "ATTEMPT", "")


async def checkpoints(where: Where, name: str, form: str, verify: bool, console: Console) -> int:
    """From the status: the newest ten; with `verify` all that the volume has. 1 when one of those is damaged."""
    async with opened(where) as place:
        job = await jobs.find(place, name)
        found = await verified(place, job) if verify else listed(job)
    if form == "json":
        console.print(json.dumps(found, indent=1), markup=False, highlight=False, soft_wrap=True)
    elif not found:
        console.print(f"{name} has committed no checkpoint yet", markup=False, highlight=False)
    else:
        console.print(shown(found), markup=False, highlight=False, soft_wrap=True)
    damaged = [each for each in found if each.get("problem")]
    for each in damaged:
        console.print(f"{each['name']}: {each['problem']}", markup=False, highlight=False, soft_wrap=True)
    return FAILED if damaged else OK


async def verified(place: Place, job: Manifest) -> list[Manifest]:
    """Every checkpoint of the volume with what is wrong with it, every byte read; the newest first."""
    known = {each["name"]: each for each in listed(job)}
    found = []
    async with volume.opened(place, job) as there:
        async for answer in there.ask(do="verify", job=job["metadata"]["name"]):
            told = known.get(answer["name"], {"best": False, "newestVerified": False})
            whole = {
                **told,
                **answer,
                "verified": answer["problem"] is None,
                "size": f"{answer['bytes'] >> 20}Mi",
            }
            found.append({**whole, "step": told.get("step", _step(answer["name"]))})
    return sorted(found, key=lambda each: -int(each["step"] or 0))


def _step(name: str) -> int | None:
    digits = name.rpartition("-")[2]
    return int(digits) if digits.isdigit() else None


def listed(job: Manifest) -> list[Manifest]:
    """The newest first, each with `best` and `newestVerified`."""
    status = job.get("status", {})
    found: Sequence[Manifest] = status.get("checkpoints", [])
    scored = [each for each in found if each.get("evalLoss") is not None]
    best = min(scored, key=lambda each: float(each["evalLoss"]), default=None)
    newest = max((each["step"] for each in found if each["verified"]), default=None)
    return [
        {**each, "best": each is best, "newestVerified": each["verified"] and each["step"] == newest}
        for each in sorted(found, key=lambda each: -int(each["step"]))
    ]


def shown(found: Sequence[Manifest]) -> str:
    """For a person."""
    rows = []
    for each in found:
        marks = [word for key, word in (("best", "best"), ("newestVerified", "resumes here")) if each[key]]
        cells = (each["step"], each.get("time"), each["size"], "yes" if each["verified"] else "no")
        more = (each.get("loss"), each.get("evalLoss"), each.get("attempt"))
        texts = ("-" if cell is None else str(cell) for cell in (*cells, *more))
        rows.append((*texts, ", ".join(marks)))
    return table.columns(COLUMNS, rows)
