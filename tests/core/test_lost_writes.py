"""The operator may be killed between any two of its effects, and before any status write: nothing of it shows later."""

from __future__ import annotations

import pytest

from sftjob_operator.step import Step, step
from worlds import Scene, exited, failed_outcome, prepared_outcome, progress, sftjob, trained_outcome


class Interrupted(Scene):
    """A scene whose pass number `cut` ends after its first `done` effects, without a status; the next makes up."""

    def __init__(self, cut: int = 0, done: int = 0) -> None:
        super().__init__(sftjob(failurePolicy={"backoffSeconds": 0}))
        self.cut, self.done, self.effects = cut, done, list[int]()

    def take_pass(self) -> Step:
        planned = step(self.world())
        self.effects.append(len(planned.effects))
        if len(self.effects) == self.cut:
            for effect in planned.effects[: self.done]:
                self._carry_out(effect)
        return super().take_pass()


def live(scene: Scene) -> None:
    """Preparation, an attempt that crashes, a suspension, and an attempt that completes."""
    scene.step()
    scene.end(None, None, [scene.ended_pod(None, 0, prepared_outcome(), reason="Completed")])
    scene.step(5)
    scene.run(1)
    scene.progress = progress(last_verified_step=110)
    scene.step(10)
    scene.end(1, exited(70), [scene.ended_pod(1, 70, failed_outcome("Crash", "boom"))])
    scene.step(5)
    scene.run(2)
    scene.progress = progress(attempt=2, step=130)
    scene.step(10)
    scene.manifest["spec"]["suspend"] = True
    scene.step(5)
    scene.suspend(2)
    scene.step(5)
    scene.manifest["spec"]["suspend"] = False
    scene.step(5)
    scene.run(2)
    scene.step(5)
    scene.end(2, None, [scene.ended_pod(2, 0, trained_outcome(), reason="Completed")])
    scene.step(5)


def cuts() -> list[tuple[int, int]]:
    whole = Interrupted()
    live(whole)
    return [(number, done) for number, effects in enumerate(whole.effects, 1) for done in range(effects + 1)]


@pytest.mark.parametrize(("cut", "done"), cuts(), ids=str)
def test_a_pass_that_is_cut_off_anywhere_leaves_no_trace(cut, done):
    undisturbed, scene = Interrupted(), Interrupted(cut, done)
    live(undisturbed)
    live(scene)
    assert _without_times(scene) == _without_times(undisturbed)
    assert scene.objects.keys() == undisturbed.objects.keys()


def _without_times(scene):
    """Seconds that a lost pass took are charged to what the status said meanwhile."""
    return {key: value for key, value in scene.status.items() if key != "goodput"}


@pytest.mark.parametrize(("cut", "done"), cuts(), ids=str)
def test_no_attempt_exists_before_status_says_that_the_job_has_started(cut, done):
    class Watched(Interrupted):
        def _carry_out(self, effect):
            super()._carry_out(effect)
            if self.jobs():
                assert self.status["startTime"]
                assert self.status["plan"]
                assert self.attempt(len(self.jobs()))

    live(Watched(cut, done))


def test_an_attempt_is_announced_by_one_pass_and_made_by_the_next():
    scene = Scene()
    scene.prepare()
    scene.take_pass()
    assert scene.jobs() == []
    assert (scene.attempt(1)["state"], scene.attempt(1)["runs"]) == ("Pending", 0)
    scene.take_pass()
    assert [job["metadata"]["name"] for job in scene.jobs()] == ["bot-1"]
    assert (scene.attempt(1)["state"], scene.attempt(1)["runs"]) == ("Pending", 1)


def test_a_suspension_between_announcement_and_creation_is_obeyed():
    scene = Scene()
    scene.prepare()
    scene.take_pass()
    scene.manifest["spec"]["suspend"] = True
    scene.step(1)
    assert scene.jobs() == []
    assert scene.says("Suspended") == ("True", "SuspendedByUser")
    scene.manifest["spec"]["suspend"] = False
    scene.step(1)
    assert [job["metadata"]["name"] for job in scene.jobs()] == ["bot-1"]
