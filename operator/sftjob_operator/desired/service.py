"""The headless Service of an SFTJob: DNS names for the pods of every attempt, before they are ready."""

from __future__ import annotations

from sft_trainer.config import METRICS_PORT
from sftjob_operator.api import names
from sftjob_operator.api.objects import Manifest
from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.desired.children import metadata


def service(job: SFTJob) -> Manifest:
    """One per SFTJob, not one per pod or attempt: each costs the endpoint controllers 6 to 9 requests."""
    labels = names.labels(job.name, names.ROLE_TRAIN)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(job, names.service(job.name), labels),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,  # rank 0 is looked up while its pod still starts
            "selector": {names.LABEL_JOB: job.name, names.LABEL_ROLE: names.ROLE_TRAIN},
            "ports": [{"name": "metrics", "port": METRICS_PORT, "targetPort": "metrics", "protocol": "TCP"}],
        },
    }
