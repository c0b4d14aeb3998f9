"""SFTJob v1alpha1: the single source of the CRD, of the API reference and of parsing.

Defaults live in these models and not in the schema, so that what is unset stays visible as unset. `None`
means "decide for me" where the description says so. Cross-field rules are CEL, refused at once. A module has
the fields of one section of the spec, or what several have in common.
"""

from __future__ import annotations

from sftjob_operator.api.v1alpha1.job import SFTJob, Spec

GROUP = "sftjob.dev"
VERSION = "v1alpha1"
KIND = "SFTJob"
PLURAL = "sftjobs"
API_VERSION = f"{GROUP}/{VERSION}"

__all__ = ["API_VERSION", "GROUP", "KIND", "PLURAL", "VERSION", "SFTJob", "Spec"]
