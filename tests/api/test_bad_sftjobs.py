"""The corpus of bad SFTJobs against the schema as LocalCluster reads it; tests/cluster has the API server."""

from __future__ import annotations

import pytest

from api import corpus
from sftjob_operator.api.crd import crd
from sftjob_operator.cluster.local.rules import violations
from sftjob_operator.cluster.local.schema import validate

SCHEMA = crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
CASES = corpus.cases()


def said(job: corpus.Manifest, stored: corpus.Manifest | None) -> str:
    problems = list(validate(job, SCHEMA))
    if not any(problem.blocks_rules for problem in problems):
        problems += violations(job, stored, SCHEMA)
    return "\n".join(map(str, problems))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_is_refused_with_the_words_of_the_api_server(case: corpus.Case):
    assert case.message in said(case.update(), case.stored)


@pytest.mark.parametrize("case", [case for case in CASES if case.stored], ids=lambda case: case.name)
def test_what_an_update_starts_from_is_valid(case: corpus.Case):
    assert case.stored is not None
    assert said(case.stored, None) == ""
    assert said(case.stored, case.stored) == ""


@pytest.mark.parametrize("case", [case for case in CASES if case.stored], ids=lambda case: case.name)
def test_before_the_start_the_same_update_repairs_a_job(case: corpus.Case):
    assert case.stored is not None
    waiting = {key: value for key, value in case.stored.items() if key != "status"}
    assert said(case.job, waiting) == ""


def test_every_rule_of_the_schema_has_a_case():
    def messages(node):
        yield from (rule["message"] for rule in node.get("x-kubernetes-validations", []))
        for below in node.get("properties", {}).values():
            yield from messages(below)
        if isinstance(node.get("items"), dict):
            yield from messages(node["items"])

    assert set(messages(SCHEMA)) <= {case.message for case in CASES}
