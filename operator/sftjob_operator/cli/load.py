"""From a YAML file to an SFTJob manifest, with strict field names.

Every complaint names the file, the line and the field, and what would be right.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sftjob_operator.api.v1alpha1 import API_VERSION, KIND, SFTJob
from sftjob_operator.cli import yamlfile
from sftjob_operator.cli.errors import CliError
from sftjob_operator.cli.yamlfile import Document, Place, field
from sftjob_operator.cluster.base import Manifest
from sftjob_operator.cluster.local.admission import sftjob_schema
from sftjob_operator.cluster.local.names import LABEL_WORDS, is_label
from sftjob_operator.cluster.local.schema import unknown_fields
from sftjob_operator.observe import hands_off
from sftjob_operator.policy.accept import read_sftjob

_SHOWN = 12  # valid names in one message
_TEXTS = ("name", "namespace")
_MAPS = ("labels", "annotations")
_OF_A_CLUSTER = (
    *("uid", "resourceVersion", "generation", "creationTimestamp", "managedFields", "selfLink"),
    *("deletionTimestamp", "deletionGracePeriodSeconds", "finalizers", "ownerReferences"),
)
"""What `kubectl get -o yaml` adds: true there, and dropped here."""
_INDEX = re.compile(r"\[(\d+)\]")


def load(path: Path, namespace: str | None = None, default: str = "default") -> Manifest:
    """The SFTJob of `path`, in `namespace` where one is given, in `default` where the file names none either.

    CliError for everything that is wrong with it.
    """
    document = yamlfile.read(path)
    _check_kind(document)
    stated = document.value["metadata"].get("namespace")
    if namespace is not None and stated not in (None, namespace):
        raise CliError(f"{path}: metadata.namespace is {stated}, but --namespace says {namespace}")
    problems = [*_metadata(document), *_unknown(document)]
    if problems:
        raise CliError("\n".join(problems))
    chosen = namespace or stated or default
    if not is_label(chosen):
        source = (
            "--namespace" if namespace else f"{document.at(('metadata', 'namespace'))}: metadata.namespace"
        )
        raise CliError(f"{source} is {json.dumps(chosen)}: {LABEL_WORDS}")
    kept = {key: value for key, value in document.value["metadata"].items() if key in (*_TEXTS, *_MAPS)}
    metadata = {key: value for key, value in kept.items() if value is not None} | {"namespace": chosen}
    # As with kubectl, status is the operator's.
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": document.value["spec"]}


def parse(path: Path, admitted: Manifest) -> SFTJob:
    """The job that the API server has let through."""
    try:
        job = read_sftjob(admitted)
    except ValueError as error:
        raise CliError(f"{path}: {error}") from None
    why = hands_off(job)
    if why is not None:
        raise CliError(f"{path}: {why}")
    return job


def _check_kind(document: Document) -> None:
    path, value = document.path, document.value
    if not isinstance(value, dict):
        raise CliError(f"{path}: an SFTJob is a mapping of apiVersion, kind, metadata and spec")
    for key, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        found = value.get(key)
        if found != wanted:
            what = "is missing" if found is None else f"is {found}"
            raise CliError(f"{path}: {key} {what}: set {key}: {wanted}")
    for key, content in (("metadata", "the job's name"), ("spec", "model, data, training and workspace")):
        found = value.get(key)
        if not isinstance(found, dict):
            what = "is missing" if found is None else f"is {_kind(found)}"
            raise CliError(f"{document.at((key,))}: {key} {what}: it is a mapping with {content}")
    if value["metadata"].get("name") in (None, ""):
        raise CliError(f"{document.at(('metadata',))}: metadata.name is missing: give the job a name")


def _kind(value: Any) -> str:
    return {list: "a list", str: "text", bool: "a boolean"}.get(type(value), "a number")


def _metadata(document: Document) -> Iterator[str]:
    for key, value in document.value["metadata"].items():
        place: Place = ("metadata", key)
        if key in _TEXTS and value is not None:
            yield from _not_text(document, place, value)
        elif key in _MAPS and isinstance(value, dict):
            for name, item in value.items():
                yield from _not_text(document, (*place, name), item)
        elif key in _MAPS and value is not None:
            yield f"{document.at(place)}: {field(place)} is {_kind(value)}: it is a mapping of names to text"
        elif key not in (*_TEXTS, *_MAPS, *_OF_A_CLUSTER):
            yield _unknown_field(document, ("metadata",), key, [*_TEXTS, *_MAPS])


def _not_text(document: Document, place: Place, value: Any) -> Iterator[str]:
    if not isinstance(value, str):
        yield f"{document.at(place)}: {field(place)} is {json.dumps(value)}, which is not text: put it in quotes"


def _unknown(document: Document) -> Iterator[str]:
    body = {key: value for key, value in document.value.items() if key not in ("metadata", "status")}
    for parent, name, valid in unknown_fields(body, sftjob_schema()):
        yield _unknown_field(document, _place(parent), name, valid)


def _place(text: str) -> Place:
    """Of `spec.data.train[0]`."""
    parts = _INDEX.sub(r".[\1]", text).split(".") if text else []
    return tuple(int(part[1:-1]) if part.startswith("[") else part for part in parts)


def _unknown_field(document: Document, parent: Place, name: str, valid: list[str]) -> str:
    near = _same_letters(name, valid) or difflib.get_close_matches(name, valid, n=1, cutoff=0.7)
    listed = ", ".join(valid[:_SHOWN]) + (", ..." if len(valid) > _SHOWN else "")
    hint = f"did you mean {near[0]}?" if near else f"valid here: {listed}"
    place = (*parent, name)
    return f"{document.at(place)}: unknown field {field(place)}: {hint}"


def _same_letters(name: str, valid: list[str]) -> list[str]:
    letters = name.replace("_", "").replace("-", "").lower()
    return [candidate for candidate in valid if candidate.lower() == letters]


def load_json(path: Path) -> Any:
    """A JSON file; CliError with its line."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CliError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise CliError(f"{path} line {error.lineno}: not JSON: {error.msg}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CliError(f"{path} cannot be read: {error}") from None
