"""Which GPUs of this machine a pod has, as a device plugin would hand them out. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from sftjob_operator.cluster.base import Manifest
from sftjob_operator.cluster.local import podstatus
from sftjob_operator.cluster.local.node import GPU
from sftjob_operator.cluster.local.volumes import NotYetError

ANNOTATION = "local.sftjob.dev/gpus"
"""Numbers of the pod's GPUs, comma-separated: it outlives this process, as the pod does."""
VARIABLE = "CUDA_VISIBLE_DEVICES"


def assigned(pod: Manifest, pods: Iterable[Manifest], there: int) -> Manifest:
    """The pod with GPUs of its own, of the `there` that the machine has; NotYetError while too few are free."""
    held = {
        number
        for other in pods
        if podstatus.holds_resources(other, pod)
        for number in visible(other).split(",")
    }
    free = [str(number) for number in range(there) if str(number) not in held]
    wanted = podstatus.gpus(pod)
    if wanted > len(free):
        words = f"0/1 nodes are available: 1 Insufficient {GPU}. "
        state = f"This machine has {there}, {there - len(free)} in use."
        raise NotYetError("Unschedulable", words + state, scheduled=False)
    metadata = pod["metadata"]
    annotations = {**metadata.get("annotations", {}), ANNOTATION: ",".join(free[:wanted])}
    return {**pod, "metadata": {**metadata, "annotations": annotations}}


def visible(pod: Manifest) -> str:
    """The value of CUDA_VISIBLE_DEVICES in the pod: empty hides all GPUs, as from a pod that asks for none."""
    value: str = pod["metadata"].get("annotations", {}).get(ANNOTATION, "")
    return value
