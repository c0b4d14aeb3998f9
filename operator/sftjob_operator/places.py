"""Who holds and who waits, in each namespace that has a quota: the newest decisions, which the watch may not show yet.

What one worker has decided counts for all the others at once, before it is written down. After a restart it is read
from the SFTJobs' status. Whoever gives up a share calls those for whom there is room now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sftjob_operator.cluster.base import Key, Manifest, View, sftjobs_of
from sftjob_operator.policy.quota import next_in_line, standing
from sftjob_operator.quotas import Quotas
from sftjob_operator.world import Standing


class Places:
    """Nothing in it waits for anything, so what is read and then settled without an await between is one decision."""

    def __init__(self, view: View, quotas: Quotas, call: Callable[[Key], None]) -> None:
        """`call` brings back the key of a job for which there is room."""
        self._view, self._quotas, self._call = view, quotas, call
        self._known: dict[str, dict[str, Standing]] = {}  # by namespace and name

    def neighbours(self, key: Key) -> Sequence[Standing]:
        """The others of its namespace."""
        if not self._quotas.of(key.namespace).is_set:
            return ()
        return [one for name, one in self._there(key.namespace).items() if name != key.name]

    def settle(self, key: Key, body: Manifest | None) -> None:
        """This is how it has been decided on, with the status that it is about to have; None = it is gone."""
        quota = self._quotas.of(key.namespace)
        if not quota.is_set:
            return
        known = self._of(key.namespace)
        before, now = known.pop(key.name, None), None if body is None else standing(body)
        if now is not None:
            known[key.name] = now
        if now != before:
            for name in next_in_line(quota, self._there(key.namespace).values()):
                if name != key.name:
                    self._call(Key(key.namespace, name))

    def shares(self) -> Iterator[tuple[tuple[str, str, str], int]]:
        """For metrics: namespace, resource and type (limit, held or waiting), of namespaces that have SFTJobs."""
        inhabited = {key.namespace for key in self._view.keys()}
        for namespace in [one for one in self._known if one not in inhabited]:
            del self._known[namespace]
        for namespace in self._known:
            quota, known = self._quotas.of(namespace), self._there(namespace)
            for resource, limit in (("jobs", quota.jobs), ("gpus", quota.gpus)):
                if limit is None:
                    continue
                yield (namespace, resource, "limit"), limit
                for kind, holds in (("held", True), ("waiting", False)):
                    found = [
                        one.gpus if resource == "gpus" else 1 for one in known.values() if one.holds is holds
                    ]
                    yield (namespace, resource, kind), sum(found)

    def _there(self, namespace: str) -> dict[str, Standing]:
        """Without those whose deletion nobody has told of."""
        known = self._of(namespace).items()
        return {name: one for name, one in known if self._view.sftjob(Key(namespace, name)) is not None}

    def _of(self, namespace: str) -> dict[str, Standing]:
        if namespace not in self._known:
            found = [standing(body) for body in sftjobs_of(self._view, namespace)]
            self._known[namespace] = {one.name: one for one in found if one is not None}
        return self._known[namespace]
