"""Failures that are borne: a command that looks on outlives an API server, or a kubelet, that is being restarted."""

from __future__ import annotations

from sftjob_operator.cluster.base import ClusterError, Rejected

_MOST = 5


class Patience:
    """With a few failures in a row; what was refused is refused again."""

    def __init__(self) -> None:
        """Nothing has failed."""
        self._failures = 0

    def bear(self, error: ClusterError) -> None:
        """`error` again where it is one too many, or a refusal."""
        self._failures += 1
        if self._failures > _MOST or isinstance(error, Rejected):
            raise error

    def renew(self) -> None:
        """It went well."""
        self._failures = 0
