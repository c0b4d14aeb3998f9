"""A cluster on one machine: the same manifests as processes, the same observable results as Kubernetes.

See docs/local.md for what it honours and what it does not.
"""

from sftjob_operator.cluster.local.cluster import LocalCluster

__all__ = ["LocalCluster"]
