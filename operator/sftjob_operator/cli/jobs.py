"""One SFTJob by its name, and what there is beside it; where there is none, which name was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from sftjob_operator.api.names import LABEL_JOB
from sftjob_operator.api.v1alpha1 import API_VERSION, KIND
from sftjob_operator.cli.errors import CliError
from sftjob_operator.cli.place import Place
from sftjob_operator.cluster.base import Manifest, Ref

_SHOWN = 10


def ref(place: Place, name: str) -> Ref:
    """Its address."""
    return Ref(API_VERSION, KIND, place.namespace, name)


async def find(place: Place, name: str) -> Manifest:
    """The job; CliError where there is none."""
    job = await place.client.get(ref(place, name))
    if job is None:
        known = [str(item["metadata"]["name"]) for item in await every(place)]
        raise CliError(missing(name, place.namespace, place.words, known))
    return job


async def every(place: Place, *, everywhere: bool = False) -> Sequence[Manifest]:
    """All jobs of the namespace, or of all; NotFound where the cluster has no such kind."""
    return await place.client.list(API_VERSION, KIND, "" if everywhere else place.namespace, {})


async def pods(place: Place, name: str) -> Sequence[Manifest]:
    """Its pods, of all attempts that still have some."""
    return await place.client.list("v1", "Pod", place.namespace, {LABEL_JOB: name})


def missing(name: str, namespace: str, where: str, known: Sequence[str]) -> str:
    """The sentence for a name that is not there."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        hint = f"did you mean {near[0]}?"
    else:
        more = ", ..." if len(known) > _SHOWN else ""
        hint = f"there are: {', '.join(sorted(known)[:_SHOWN]) or 'none'}{more}"
    return f"there is no job {name} in namespace {namespace} of {where.partition(', namespace')[0]}; {hint}"
