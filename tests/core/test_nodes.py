"""Which nodes a pod may run on: the scheduler's reading of nodeSelector and required nodeAffinity."""

from __future__ import annotations

import pytest

from sftjob_operator.api.v1alpha1.pods import PodSpecOverride
from sftjob_operator.planning.nodes import may_run_on

LABELS = {"pool": "a100", "zone": "eu-1", "gpus": "8"}


def allowed(*terms: object) -> bool:
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": list(terms)}}
    spec = PodSpecOverride.model_validate({"affinity": {"nodeAffinity": required}})
    return may_run_on(spec, "node-1", LABELS)


def expression(key: str, operator: str, *values: str) -> dict[str, object]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


@pytest.mark.parametrize(
    ("term", "expected"),
    [
        (expression("pool", "In", "h100", "a100"), True),
        (expression("pool", "In", "h100"), False),
        (expression("rack", "In", "r1"), False),
        (expression("pool", "NotIn", "a100"), False),
        (expression("rack", "NotIn", "r1"), True),
        (expression("pool", "Exists"), True),
        (expression("rack", "Exists"), False),
        (expression("pool", "DoesNotExist"), False),
        (expression("rack", "DoesNotExist"), True),
        (expression("gpus", "Gt", "4"), True),
        (expression("gpus", "Gt", "8"), False),
        (expression("gpus", "Lt", "9"), True),
        (expression("pool", "Gt", "4"), False),
        (expression("rack", "Lt", "4"), False),
        ({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-1"]}]}, True),
        ({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-2"]}]}, False),
        ({}, False),
    ],
    ids=str,
)
def test_every_operator_of_a_node_selector_term(term, expected):
    assert allowed(term) is expected


def test_terms_are_alternatives_and_their_expressions_are_not():
    here, there = expression("zone", "In", "eu-1"), expression("zone", "In", "eu-2")
    assert allowed(there, here)
    both = {"matchExpressions": [*here["matchExpressions"], *there["matchExpressions"]]}
    assert not allowed(both)


@pytest.mark.parametrize("selector", [{"pool": "a100"}, {"pool": "h100"}])
def test_the_node_selector_holds_beside_it(selector):
    spec = PodSpecOverride(node_selector=selector)
    assert may_run_on(spec, "node-1", LABELS) is (selector["pool"] == "a100")


@pytest.mark.parametrize(
    "affinity",
    [
        {},
        {"nodeAffinity": None},
        {"nodeAffinity": "pool"},
        {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": 7}}},
        {"podAntiAffinity": {}},
    ],
    ids=str,
)
def test_what_demands_nothing_or_nothing_sensible_excludes_no_node(affinity):
    assert may_run_on(PodSpecOverride(affinity=affinity), "node-1", LABELS)
