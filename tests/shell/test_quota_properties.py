"""A namespace with a quota and whatever may happen to its jobs, in any order, with writes that are lost and restarts of
the operator: never do more run than the quota allows, none waits for what is free, and all come to their end.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from datetime import timedelta
from random import Random

import pytest

from sftjob_operator.cluster.base import Key, Manifest
from sftjob_operator.places import Places
from sftjob_operator.planning.hardware import Hardware
from sftjob_operator.policy.quota import next_in_line, standing
from sftjob_operator.quotas import Quotas
from worlds import Scene, exited, failed_outcome, sftjob, trained_outcome

JOBS, EVENTS = 6, 120
SIZES = ((1, 0), (1, 1), (2, 1), (1, 4), (2, 2), (4, 1))


class Team:
    """The namespace, the view of it, and a queue of those that are to be looked at."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.quotas = Quotas(jobs=random.choice([None, 2, 3]), gpus=random.choice([4, 6]))
        self.due: set[str] = set()
        self.scenes: dict[str, Scene] = {}
        for number in range(JOBS):
            self.add(f"job-{number}")
        self.restart()

    def add(self, name: str) -> None:
        nodes, per_node = self.random.choice(SIZES)
        body = sftjob(
            name, workers={"nodes": nodes, "gpusPerNode": per_node}, failurePolicy={"maxRestarts": 99}
        )
        body["metadata"]["creationTimestamp"] = f"2026-01-01T12:00:0{self.random.randrange(9)}Z"
        scene = self.scenes[name] = Scene(body, Hardware(gpu_memory_bytes=80 * 2**30))
        scene.settings = replace(scene.settings, quotas=self.quotas)
        scene.prepare()
        self.due.add(name)

    def restart(self) -> None:
        """A new process: nothing is remembered."""
        self.places = Places(self, self.quotas, self.call)
        self.due |= set(self.scenes)

    # ------------------------------------------------------------------ the view

    def keys(self) -> list[Key]:
        return [Key("team", name) for name in self.scenes]

    def sftjob(self, key: Key) -> Manifest | None:
        return self.scenes[key.name].manifest if key.name in self.scenes else None

    def jobs(self, key: Key) -> list[Manifest]:
        raise AssertionError("the status says it all")

    def call(self, key: Key) -> None:
        self.due.add(key.name)

    # ------------------------------------------------------------------ what happens

    def look(self, name: str) -> None:
        """One pass; now and then its status is not written, and it is tried again."""
        self.due.discard(name)
        scene, key = self.scenes[name], Key("team", name)
        before = copy.deepcopy(scene.manifest)
        scene.neighbours = self.places.neighbours(key)
        after = scene.take_pass().requeue_after
        self.places.settle(key, scene.manifest)
        is_lost = self.random.random() < 0.1
        if is_lost:
            scene.manifest = before
        if after == 0 or is_lost or scene.manifest.get("status") != before.get("status"):
            self.due.add(name)

    def happen(self, name: str) -> None:
        """Something to this job."""
        scene = self.scenes[name]
        spec = scene.manifest["spec"]
        match self.random.choice(
            ["pods", "pods", "pods", "ends", "fails", "suspend", "scale", "delete", "restart"]
        ):
            case "pods":
                for number in self.open(name):
                    act = scene.suspend if scene.job(number)["spec"].get("suspend") else scene.run
                    act(number)
            case "ends" | "fails" as how:
                for number in self.open(name):
                    self.end(name, number, how == "ends")
            case "suspend":
                self.change(name, suspend=not spec.get("suspend"))
            case "scale":
                self.change(name, workers={**spec["workers"], "nodes": self.random.choice([1, 2, 4])})
            case "delete" if self.random.random() < 0.3:
                del self.scenes[name]
                self.due.discard(name)
                self.places.settle(Key("team", name), None)
                self.add(name)
            case "restart" if self.random.random() < 0.3:
                self.restart()

    def end(self, name: str, number: int, well: bool) -> None:
        scene = self.scenes[name]
        if well:
            scene.end(number, None, [scene.ended_pod(number, 0, trained_outcome(), reason="Completed")])
        else:
            lost = failed_outcome("HostOutOfMemory")
            scene.end(number, exited(137), [scene.ended_pod(number, 137, lost)])
        self.due.add(name)

    def change(self, name: str, **spec: object) -> None:
        manifest = self.scenes[name].manifest
        manifest["spec"] = {**manifest["spec"], **spec}
        manifest["metadata"]["generation"] += 1
        self.due.add(name)

    def calm_down(self) -> None:
        """Nothing happens any more but passes over those that are due; every pause is over."""
        for scene in self.scenes.values():
            scene.now += timedelta(seconds=700)
        self.due |= {
            name for name, scene in self.scenes.items() if scene.last.requeue_after not in (None, 60.0)
        }
        for _ in range(400):
            if not self.due:
                return
            self.look(self.random.choice(sorted(self.due)))
            self.check()
        raise AssertionError(f"no end of {self.due}")

    # ------------------------------------------------------------------ what is always true

    def open(self, name: str) -> list[int]:
        """Attempts whose Job lives."""
        return [
            int(job["metadata"]["labels"]["sftjob.dev/attempt"])
            for job in self.scenes[name].jobs()
            if not job.get("status", {}).get("conditions")
            or job["status"]["conditions"][0]["type"] == "Suspended"
        ]

    def check(self) -> None:
        """Of the Jobs that may have pods."""
        found = [scene.job(number) for name, scene in self.scenes.items() for number in self.open(name)]
        running = [job for job in found if not job["spec"].get("suspend")]
        assert sum(map(gpus, running)) <= (self.quotas.gpus or 0)
        assert self.quotas.jobs is None or len(running) <= self.quotas.jobs

    def check_nobody_waits_in_vain(self) -> None:
        found = [standing(scene.manifest) for scene in self.scenes.values()]
        assert next_in_line(self.quotas, [one for one in found if one is not None]) == []


def gpus(job: Manifest) -> int:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    each = container["resources"].get("limits", {}).get("nvidia.com/gpu", 0)
    return int(each) * int(job["spec"]["parallelism"])


@pytest.mark.parametrize("seed", [*range(8), 11, 23])
def test_a_quota_is_kept_and_used_whatever_happens(seed: int) -> None:
    team = Team(Random(seed))
    for _ in range(EVENTS):
        if team.due and team.random.random() < 0.7:
            team.look(team.random.choice(sorted(team.due)))
        else:
            team.happen(team.random.choice(sorted(team.scenes)))
        team.check()
        if team.random.random() < 0.05:
            team.calm_down()
            team.check_nobody_waits_in_vain()
    for name in team.scenes:
        team.change(name, suspend=False, workers={"nodes": 1, "gpusPerNode": 1})
    for _ in range(10 * JOBS):
        team.calm_down()
        team.check_nobody_waits_in_vain()
        for name, scene in team.scenes.items():
            for number in team.open(name):
                if scene.job(number)["spec"].get("suspend"):
                    scene.suspend(number)
                    team.due.add(name)
                else:
                    team.end(name, number, well=True)
    assert {scene.status["phase"] for scene in team.scenes.values()} == {"Succeeded"}
