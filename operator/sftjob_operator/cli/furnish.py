"""What a local cluster has to hold before a job can run in it: its volume and its secrets, and enough GPUs."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

from sftjob_operator.api import names as labels
from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.cli.errors import CliError
from sftjob_operator.cluster.base import Manifest
from sftjob_operator.cluster.local import names, node
from sftjob_operator.cluster.local.volumes import BOUND_TO, claim_directory
from sftjob_operator.desired.claim import claim_field, claim_name


def claim(job: SFTJob, namespace: str, directory: Path) -> Manifest:
    """The PersistentVolumeClaim of the job, by name or by template, bound to a directory."""
    name = claim_name(job)
    _check_name(f"{claim_field(job)} {name}", name)
    own = job.spec.workspace.claim_template is not None
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "annotations": {BOUND_TO: str(directory.resolve())},
            **({"labels": labels.labels(job.name, labels.ROLE_WORKSPACE)} if own else {}),
        },
        "spec": {"accessModes": ["ReadWriteMany"]},
    }


def check_claim(claim: Manifest, old: Manifest | None, state: Path) -> None:
    """CliError when the volume of this name is another directory: a job would lose its checkpoints over it."""
    wanted, bound = claim_directory(claim), None if old is None else claim_directory(old)
    if bound is not None and bound != wanted and bound.is_dir():
        name = claim["metadata"]["name"]
        raise CliError(
            f"--workspace {wanted}: the claim {name} of {state} is {bound} already: give --workspace {bound}, "
            "another spec.workspace, or delete the jobs that use it (sftjob delete)"
        )


def secret(words: str, namespace: str) -> Manifest:
    """A Secret from NAME=FILE, a file of KEY=VALUE lines."""
    name, _, file = words.partition("=")
    if not name or not file:
        raise CliError(f"--secret {words}: NAME=FILE is needed, where FILE has lines KEY=VALUE")
    _check_name(f"--secret {name}", name)
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"--secret {name}: {file} cannot be read: {error}") from None
    data = {key: base64.b64encode(value.encode()).decode() for key, value in _dotenv(text, file).items()}
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": data}


def check_gpus(job: SFTJob, file: Path, there: int | None = None) -> None:
    """CliError when this machine has not the GPUs the job asks for."""
    workers = job.spec.workers
    there = len(node.gpu_memory_mib()) if there is None else there
    needed = workers.nodes * workers.gpus_per_node
    if needed <= there:
        if needed and workers.nodes > 1:  # the same ranks on the same GPUs, with one launcher less
            raise CliError(
                f"{file}: on one machine all GPUs belong to one node: "
                f"set spec.workers.nodes: 1 and spec.workers.gpusPerNode: {needed}"
            )
        return
    machine = "this machine has no NVIDIA GPU" if there == 0 else f"this machine has {there}"
    stated = "" if "gpus_per_node" in workers.model_fields_set else " (1 is the default of gpusPerNode)"
    gpus = "1 GPU" if needed == 1 else f"{workers.nodes} x {workers.gpus_per_node} GPUs"
    raise CliError(
        f"{file}: the job needs {gpus}{stated}, but {machine}: "
        "set spec.workers.gpusPerNode: 0 to train on the CPU, or run it in a cluster"
    )


def _check_name(what: str, name: str) -> None:
    if not names.is_subdomain(name):
        raise CliError(f"{what}: {names.SUBDOMAIN_WORDS}")


def _dotenv(text: str, file: str) -> Mapping[str, str]:
    result = {}
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        key, equals, value = stripped.removeprefix("export ").partition("=")
        if not equals or not key.strip().isidentifier():
            raise CliError(f"{file} line {number}: KEY=VALUE is needed")
        value = value.strip()
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
        result[key.strip()] = value[1:-1] if quoted else value
    return result
