"""From a YAML file to an SFTJob manifest, as kubectl reads it: YAML 1.2 numbers (2e-5 is one), strict field names.

Every complaint names the file, the line and the field, and what would be right.
"""

from __future__ import annotations

import datetime
import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from sftjob_operator.api.v1alpha1 import API_VERSION, KIND
from sftjob_operator.cli.errors import CliError
from sftjob_operator.cluster.base import Manifest
from sftjob_operator.cluster.local.admission import sftjob_schema
from sftjob_operator.cluster.local.schema import unknown_fields

_SHOWN = 12  # valid names in one message


def load(path: Path, namespace: str | None = None) -> Manifest:
    """The SFTJob of `path`, in `namespace` where one is given. CliError for everything that is wrong with it."""
    document = _document(path)
    _check_kind(path, document)
    metadata = document.get("metadata")
    if not isinstance(metadata, Mapping) or not isinstance(metadata.get("name"), str) or not metadata["name"]:
        raise CliError(f"{path}: metadata.name is missing: give the job a name")
    stated = metadata.get("namespace")
    if namespace is not None and stated not in (None, namespace):
        raise CliError(f"{path}: metadata.namespace is {stated}, but --namespace says {namespace}")
    problems = list(_unknown(path, document))
    if problems:
        raise CliError("\n".join(problems))
    manifest: Manifest = _plain(document)
    manifest["metadata"]["namespace"] = namespace or stated or "default"
    manifest.pop("status", None)  # as with kubectl: it is the operator's
    return manifest


def _document(path: Path) -> Any:
    yaml = YAML()  # the round-trip loader is the one that knows lines
    try:
        documents = [item for item in yaml.load_all(path.read_text(encoding="utf-8")) if item is not None]
    except FileNotFoundError:
        raise CliError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{path} cannot be read: {error}") from None
    except DuplicateKeyError as error:
        raise CliError(f"{_at(path, error)}: {str(error.problem).partition(' with')[0]}") from None
    except MarkedYAMLError as error:
        raise CliError(f"{_at(path, error)}: not YAML: {error.problem or error.context}") from None
    except YAMLError as error:
        raise CliError(f"{path}: not YAML: {error}") from None
    if not documents:
        raise CliError(f"{path}: the file is empty; an SFTJob is needed")
    if len(documents) > 1:
        raise CliError(f"{path}: {len(documents)} documents; give one SFTJob per file")
    return documents[0]


def _at(path: Path, error: MarkedYAMLError) -> str:
    return str(path) if error.problem_mark is None else f"{path} line {error.problem_mark.line + 1}"


def _check_kind(path: Path, document: Any) -> None:
    if not isinstance(document, Mapping):
        raise CliError(f"{path}: an SFTJob is a mapping of apiVersion, kind, metadata and spec")
    for field, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        found = document.get(field)
        if found != wanted:
            what = "is missing" if found is None else f"is {found}"
            raise CliError(f"{path}: {field} {what}: set {field}: {wanted}")


def _unknown(path: Path, document: Any) -> Iterator[str]:
    body = {key: value for key, value in document.items() if key not in ("metadata", "status")}
    for parent, name, valid in unknown_fields(body, sftjob_schema()):
        field = f"{parent}.{name}" if parent else name
        near = _same_letters(name, valid) or difflib.get_close_matches(name, valid, n=1, cutoff=0.7)
        listed = ", ".join(valid[:_SHOWN]) + (", ..." if len(valid) > _SHOWN else "")
        hint = f"did you mean {near[0]}?" if near else f"valid here: {listed}"
        yield f"{path} line {_line(document, parent, name)}: unknown field {field}: {hint}"


def _same_letters(name: str, valid: list[str]) -> list[str]:
    letters = name.replace("_", "").replace("-", "").lower()
    return [candidate for candidate in valid if candidate.lower() == letters]


def _line(document: Any, parent: str, name: str) -> int:
    """Line of a key, from 1; ruamel keeps it in the mapping that holds the key."""
    node = document
    for part in parent.replace("[", ".[").split(".") if parent else []:
        node = node[int(part[1:-1])] if part.startswith("[") else node[part]
    return int(node.lc.key(name)[0]) + 1


def _plain(value: Any) -> Any:
    """Ruamel's values as JSON's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, datetime.date):
        return str(value)
    return str(value)


def load_json(path: Path) -> Any:
    """A JSON file; CliError with its line."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CliError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise CliError(f"{path} line {error.lineno}: not JSON: {error.msg}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise CliError(f"{path} cannot be read: {error}") from None
