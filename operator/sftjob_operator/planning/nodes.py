"""Which nodes a pod may run on, by what its template demands of their labels: as the scheduler reads it.

What the template gets wrong demands nothing here: the API server refuses the Job in its own words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError

from sftjob_operator.api.v1alpha1.pods import PodSpecOverride


class _Requirement(BaseModel):
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"]
    values: list[str] = []

    def holds(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.key)
        match self.operator:
            case "In":
                return value in self.values
            case "NotIn":
                return value not in self.values
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None
            case "Gt":
                return _number(value) > _number(*self.values)
            case "Lt":
                return _number(value) < _number(*self.values)


class _Term(BaseModel):
    expressions: list[_Requirement] = Field([], alias="matchExpressions")
    fields: list[_Requirement] = Field([], alias="matchFields")

    def holds(self, name: str, labels: Mapping[str, str]) -> bool:
        """Every requirement does; a term without any matches nothing."""
        found = [each.holds(labels) for each in self.expressions]
        found += [each.holds({"metadata.name": name}) for each in self.fields]
        return bool(found) and all(found)


class _Required(BaseModel):
    terms: list[_Term] = Field(alias="nodeSelectorTerms")


def may_run_on(spec: PodSpecOverride, name: str, labels: Mapping[str, str]) -> bool:
    """Whether nodeSelector and required nodeAffinity allow the node with this name and these labels."""
    if not spec.node_selector.items() <= labels.items():
        return False
    terms = _terms(spec.affinity)
    return not terms or any(term.holds(name, labels) for term in terms)


def _terms(affinity: Mapping[str, Any] | None) -> list[_Term]:
    try:
        required = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]  # type: ignore[index]
        return _Required.model_validate(required).terms
    except (KeyError, TypeError, ValidationError):
        return []


def _number(value: str | None = None, *_: str) -> float:
    """Of a label; one that is no number compares with nothing."""
    try:
        return float("nan") if value is None else int(value)
    except ValueError:
        return float("nan")
