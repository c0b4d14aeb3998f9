"""The CustomResourceDefinition of SFTJob, made from the models."""

from __future__ import annotations

from typing import Any

from sftjob_operator.api import schema, v1alpha1


def crd() -> dict[str, Any]:
    """The CRD as a plain object, ready for the API server."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{v1alpha1.PLURAL}.{v1alpha1.GROUP}"},
        "spec": {
            "group": v1alpha1.GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": v1alpha1.KIND,
                "listKind": f"{v1alpha1.KIND}List",
                "plural": v1alpha1.PLURAL,
                "singular": v1alpha1.KIND.lower(),
                "shortNames": ["sft"],
                "categories": ["sftjob"],
            },
            "versions": [
                {
                    "name": v1alpha1.VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": _object_schema()},
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.workers.nodes",
                            "statusReplicasPath": ".status.nodes",
                        },
                    },
                    "additionalPrinterColumns": _columns(),
                }
            ],
        },
    }


def _object_schema() -> schema.Schema:
    result = schema.structural_schema(v1alpha1.SFTJob)
    properties = result["properties"]
    # Kubernetes owns these three: a CRD may only name them.
    properties["apiVersion"] = {"type": "string"}
    properties["kind"] = {"type": "string"}
    properties["metadata"] = {"type": "object"}
    result["required"] = ["spec"]
    return result


def _columns() -> list[dict[str, Any]]:
    def column(name: str, path: str, kind: str = "string", **more: Any) -> dict[str, Any]:
        return {"name": name, "type": kind, "jsonPath": path, **more}

    return [
        column("Phase", ".status.phase"),
        column("Step", ".status.progress.display"),
        column("Loss", ".status.progress.loss"),
        column("Tok/s", ".status.progress.tokensPerSecond", "integer"),
        column("ETA", ".status.progress.eta"),
        column("Ckpt", ".status.lastVerifiedStep", "integer"),
        column("Restarts", ".status.restarts", "integer"),
        column("Age", ".metadata.creationTimestamp", "date"),
        column("Reason", '.status.conditions[?(@.type=="Running")].reason', priority=1),
        column("Plan", ".status.plan.display", priority=1),
        column("Nodes", ".status.nodes", "integer", priority=1),
        column("Goodput%", ".status.goodput.percent", "integer", priority=1),
        column("MFU%", ".status.progress.mfuPercent", "integer", priority=1),
    ]
