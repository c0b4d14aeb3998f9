"""What the platform decides: operator settings, from environment variables SFTJOB_OPERATOR_* and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sftjob_operator.planning.hardware import quantity_bytes
from sftjob_operator.quotas import Quotas

Level = Literal["Restricted", "Baseline", "Privileged"]
"""Of the Pod Security Standards."""
UserIds = Literal["Fixed", "Assigned"]
Days = int
Quantity = int
"""Bytes, written as Kubernetes does."""


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
    user_ids: UserIds = "Fixed"
    """Pods of jobs run as user and group 65532 (Fixed), or as what the namespace assigns (Assigned: OpenShift)."""
    collect_unused_days: Days = 30
    """Caches that nobody has used for so long are removed after a preparation on their volume; 0 = none is for its age."""
    collect_limit: Quantity | None = None
    """Bytes of all caches of a volume beyond which the longest unused are removed too (e.g. 2Ti); empty = no limit."""
    collect_checkpoints: bool = False
    """Also checkpoints of jobs that have exported, unused for collect_unused_days."""
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
            try:
                values[name] = _READERS[str(default.type)](text)
            except ValueError as error:
                raise ValueError(f"{variable}={text!r}: {error}") from error
        settings = cls(**values)  # type: ignore[arg-type]
        if settings.collect_checkpoints and not settings.collect_unused_days:
            raise ValueError(
                "SFTJOB_OPERATOR_COLLECT_CHECKPOINTS='true': checkpoints go by their age; "
                "set SFTJOB_OPERATOR_COLLECT_UNUSED_DAYS"
            )
        return settings


def _one_of(words: Any) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in get_args(words):
            raise ValueError(f"one of {', '.join(get_args(words))}")
        return text

    return read


def _bool(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("true or false")
    return text == "true"


def _days(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("a whole number of days, 0 or more")
    return int(text)


def _words(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


_READERS: dict[str, Callable[[str], object]] = {
    "str": str,
    "int": int,
    "float": float,
    "bool": _bool,
    "Level": _one_of(Level),
    "UserIds": _one_of(UserIds),
    "Days": _days,
    "Quotas": Quotas.from_json,
    "Quantity | None": lambda text: quantity_bytes(text) if text else None,
    "tuple[str, ...]": _words,
}
"""By the type of a field."""
