"""templates/pdb.yaml: a drain takes one replica at a time, and is never blocked."""

from __future__ import annotations

from rendering import of_kind, operator_pod, render


def test_two_replicas_may_lose_one_at_a_time():
    manifests = render()
    (budget,) = of_kind(manifests, "PodDisruptionBudget")
    assert budget["spec"]["maxUnavailable"] == 1
    labels = operator_pod(manifests)["metadata"]["labels"]
    assert budget["spec"]["selector"]["matchLabels"].items() <= labels.items()


def test_one_replica_has_none_for_it_would_block_every_drain():
    assert of_kind(render("--set", "replicas=1"), "PodDisruptionBudget") == []
