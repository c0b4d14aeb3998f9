"""templates/service.yaml: a name by which every pod of the operator is found."""

from __future__ import annotations

from rendering import of_kind, operator_pod, render
from sftjob_operator.settings import Settings


def test_every_pod_answers_to_it_and_not_any_one_of_them():
    (service,) = of_kind(render(), "Service")
    labels = operator_pod(render())["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True


def test_its_port_is_the_operators():
    (service,) = of_kind(render(), "Service")
    (port,) = service["spec"]["ports"]
    (named,) = operator_pod(render())["spec"]["containers"][0]["ports"]
    assert (port["port"], port["targetPort"]) == (Settings().http_port, named["name"])
