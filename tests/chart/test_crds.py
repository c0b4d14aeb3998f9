"""templates/crds.yaml: the definition of SFTJob."""

from __future__ import annotations

from rendering import of_kind, render
from sftjob_operator.api.crd import crd


def test_the_definition_is_the_generated_one_and_stays_after_an_uninstall():
    (kept,) = of_kind(render(), "CustomResourceDefinition")
    assert kept["spec"] == crd()["spec"]
    assert kept["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_with_keep_false_it_goes_with_the_release():
    (plain,) = of_kind(render("--set", "crds.keep=false"), "CustomResourceDefinition")
    assert plain == crd()


def test_with_install_false_it_is_left_to_others():
    assert of_kind(render("--set", "crds.install=false"), "CustomResourceDefinition") == []
