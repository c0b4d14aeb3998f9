"""What the platform decides: operator settings, from environment variables SFTJOB_OPERATOR_* and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from sftjob_operator.quotas import Quotas

Level = Literal["Restricted", "Baseline", "Privileged"]
"""Of the Pod Security Standards."""


@dataclass(frozen=True)
class Settings:
    """Every field has an environment variable: SFTJOB_OPERATOR_ and the field's name in capitals."""

    trainer_image: str = "sftjob-trainer:latest"
    """Image of prepare and training pods where spec.workers.image is absent."""
    namespaces: tuple[str, ...] = field(default=())
    """Namespaces to watch, comma-separated; empty = all (needs cluster-wide RBAC)."""
    gpu_memory: str = ""
    """Memory of one GPU (e.g. 80Gi) for the planner; empty = the node label nvidia.com/gpu.memory, else 40Gi."""
    pod_security: Level = "Baseline"
    """Restricted, Baseline or Privileged: the Pod Security Standard that podTemplate must keep to."""
    quotas: Quotas = field(default_factory=Quotas)
    """Of namespaces, as JSON: {"jobs": 5, "gpus": 16, "namespaces": {"team-a": {"gpus": 64}}}."""
    workers: int = 8
    """Reconciles that may run at the same time."""
    resync_seconds: float = 300.0
    """Every SFTJob is looked at this often even without an event."""
    poll_seconds: float = 10.0
    """Progress of a running job is fetched this often."""
    status_seconds: float = 30.0
    """Progress alone changes status at most this often; a condition changes it at once."""
    http_host: str = "0.0.0.0"
    http_port: int = 8080
    """/healthz, /readyz and /metrics of the operator."""
    lease_namespace: str = ""
    """Namespace of the leader-election Lease; empty = no election (one replica)."""
    lease_name: str = "sftjob-operator"
    identity: str = ""
    """Name of this replica in the Lease; empty = the host name."""
    log_format: str = "json"
    """json or plain."""
    log_level: str = "INFO"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """Parse the environment; ValueError names the variable that is wrong."""
        values: dict[str, object] = {}
        for name, default in cls.__dataclass_fields__.items():
            variable = f"SFTJOB_OPERATOR_{name.upper()}"
            text = environment.get(variable)
            if text is None:
                continue
            kind = default.type
            try:
                if kind == "Level" and text not in get_args(Level):
                    raise ValueError(f"one of {', '.join(get_args(Level))}")
                if kind == "int":
                    values[name] = int(text)
                elif kind == "float":
                    values[name] = float(text)
                elif kind == "Quotas":
                    values[name] = Quotas.from_json(text)
                elif kind.startswith("tuple"):
                    values[name] = tuple(part.strip() for part in text.split(",") if part.strip())
                else:
                    values[name] = text
            except ValueError as error:
                raise ValueError(f"{variable}={text!r}: {error}") from error
        return cls(**values)  # type: ignore[arg-type]
