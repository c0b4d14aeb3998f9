"""Reads what a launcher is given, train.json, hostfile, its index, and what ranks leave behind.

What is wrong with an input is a UserError in one sentence: a person may have edited a ConfigMap, or run an
older trainer image under a newer operator.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from sft_trainer import config
from sft_trainer.config import Outcome, Topology, TrainConfig
from sft_trainer.errors import UserError
from sft_trainer.launcher import hostfile
from sft_trainer.launcher.hostfile import Host

_MAX_ERRORS = 5


def required(environment: Mapping[str, str], name: str) -> Path:
    """The path in the variable `name`, which the operator sets in every pod."""
    value = environment.get(name)
    if not value:
        raise UserError(
            "InvalidEnvironment", f"{name} is not set; the operator sets it in every pod it starts"
        )
    return Path(value)


def read_train_config(path: Path) -> TrainConfig:
    """train.json; a UserError names every field that is wrong."""
    try:
        document = json.loads(_text(path))
    except json.JSONDecodeError as error:
        raise UserError("InvalidTrainConfig", f"{path.name} line {error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, endless brackets
        raise UserError("InvalidTrainConfig", f"{path.name} cannot be read: {error}") from error
    version = document.get("schemaVersion", 1) if isinstance(document, dict) else 1
    if version != config.SCHEMA_VERSION:
        raise UserError(
            "InvalidTrainConfig",
            f"{path.name} has schemaVersion {version}, this trainer knows {config.SCHEMA_VERSION}; "
            "use the trainer image of the operator's release (spec.workers.image)",
        )
    try:
        return TrainConfig.model_validate(document)
    except ValidationError as error:
        problems = [
            f"{'.'.join(str(part) for part in problem['loc']) or 'the document'}: {problem['msg']}"
            for problem in error.errors(include_url=False)[:_MAX_ERRORS]
        ]
        raise UserError("InvalidTrainConfig", f"{path.name}: {'; '.join(problems)}") from error


def read_hosts(path: Path, topology: Topology) -> tuple[Host, ...]:
    """The hostfile, which must describe the gang that train.json describes."""
    hosts = hostfile.parse(_text(path), path.name)
    hostfile.check(hosts, topology)
    return hosts


def node_index(environment: Mapping[str, str], nodes: int) -> int:
    """Which node of the gang this pod is; the Job controller says so in JOB_COMPLETION_INDEX."""
    value = environment.get(config.ENV_NODE_INDEX, "0" if nodes == 1 else "")
    if not value.isascii() or not value.isdigit() or int(value) >= nodes:
        raise UserError(
            "InvalidEnvironment",
            f"{config.ENV_NODE_INDEX} is {value!r}, a number from 0 to {nodes - 1} is needed: "
            "run the pods by a Job with completionMode Indexed",
        )
    return int(value)


def cpus(environment: Mapping[str, str]) -> int | None:
    """How many CPUs this pod may use, where somebody else than a cgroup says so; None where nobody does."""
    value = environment.get(config.ENV_CPUS, "")
    return int(value) if value.isascii() and value.isdigit() and int(value) > 0 else None


def read_marker(path: Path) -> Outcome | None:
    """A rank's final marker; None when it left none that can be read."""
    try:
        return Outcome.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("InvalidTrainConfig", f"{path} cannot be read: {error}") from error
