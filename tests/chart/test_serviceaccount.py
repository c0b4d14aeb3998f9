"""templates/serviceaccount.yaml: the operator's identity, and who gets its token."""

from __future__ import annotations

from rendering import of_kind, operator_pod, refusal, render


def test_its_token_goes_to_no_pod_that_does_not_ask_for_it():
    (account,) = of_kind(render(), "ServiceAccount")
    assert account["metadata"]["name"] == "sftjob"
    assert account["automountServiceAccountToken"] is False


def test_annotations_are_the_platforms():
    (account,) = of_kind(render("--set", "serviceAccount.annotations.owner=platform"), "ServiceAccount")
    assert account["metadata"]["annotations"] == {"owner": "platform"}


def test_an_account_that_exists_is_used_and_not_made():
    manifests = render("--set", "serviceAccount.create=false,serviceAccount.name=ours")
    assert of_kind(manifests, "ServiceAccount") == []
    assert operator_pod(manifests)["spec"]["serviceAccountName"] == "ours"
    assert {found["subjects"][0]["name"] for found in of_kind(manifests, "RoleBinding")} == {"ours"}


def test_an_account_that_is_not_made_must_be_named():
    assert "set serviceAccount.name to one that exists" in refusal("--set", "serviceAccount.create=false")
