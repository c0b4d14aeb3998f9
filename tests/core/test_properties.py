"""What holds whatever happens: passes converge, names are legal, children are ours, the status fits its model."""

from __future__ import annotations

import copy
import json

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sft_trainer.config import FailureClass
from sftjob_operator.api import names
from sftjob_operator.api.status import CONDITION_TYPES, Status
from sftjob_operator.effects import Apply, Create
from sftjob_operator.planning.hardware import Hardware
from sftjob_operator.step import as_json, step
from worlds import Scene, exited, failed_outcome, prepared_outcome, progress, sftjob, taken, trained_outcome


class Life(RuleBasedStateMachine):
    """An SFTJob with the longest legal name, and everything that can happen to it."""

    @initialize(
        nodes=st.sampled_from([1, 2, 1024]), gpus=st.sampled_from([0, 1, 8]), restarts=st.integers(0, 3)
    )
    def apply(self, nodes, gpus, restarts):
        manifest = sftjob(
            name="a" * 45,
            workers={"nodes": nodes, "gpusPerNode": gpus},
            training={"globalBatchSize": 8192},
            failurePolicy={"maxRestarts": restarts},
        )
        self.scene = Scene(manifest, Hardware(gpu_memory_bytes=80 * 2**30))
        self.settle()

    def settle(self, seconds: float = 1.0) -> None:
        """One pass; a second one at the same moment must have nothing left to do."""
        last = self.scene.step(seconds)
        for effect in last.effects:
            if isinstance(effect, Create | Apply):
                self.check_child(effect.manifest)
        before = copy.deepcopy(self.scene.manifest)
        again = self.scene.step(0)
        assert again.effects == ()
        assert step(self.scene.world()) == step(self.scene.world())
        after = self.scene.step(0)
        assert (after.effects, after.events) == ((), ())
        assert self.scene.manifest["spec"] == before["spec"]

    def check_child(self, manifest):
        metadata = manifest["metadata"]
        assert len(metadata["name"]) <= 63
        assert all(len(value) <= 63 for value in metadata["labels"].values())
        assert metadata["labels"][names.LABEL_JOB] == "a" * 45
        assert metadata["ownerReferences"][0]["controller"] is True
        if manifest["kind"] == "Job" and manifest["spec"].get("completionMode") == "Indexed":
            last_host = f"{metadata['name']}-{manifest['spec']['completions'] - 1}"
            assert len(last_host) <= 63

    @property
    def open_job(self) -> int | None:
        """Number of the newest attempt's Job if it has not ended."""
        number = max(
            (int(j["metadata"]["labels"][names.LABEL_ATTEMPT]) for j in self.scene.jobs()), default=None
        )
        if number is None or self.has_ended(self.scene.job(number)):
            return None
        return number

    @staticmethod
    def has_ended(job) -> bool:
        return any(
            item["type"] in ("Failed", "Complete") for item in job.get("status", {}).get("conditions", ())
        )

    @precondition(lambda self: self.scene.jobs("prepare") and not self.has_ended(self.scene.job()))
    @rule(message=st.sampled_from([prepared_outcome(), "garbage", ""]))
    def prepare_succeeds(self, message):
        pods = [self.scene.ended_pod(None, 0, message, reason="Completed")]
        self.scene.end(None, None, pods)
        self.settle()

    @precondition(lambda self: self.scene.jobs("prepare") and not self.has_ended(self.scene.job()))
    @rule(cls=st.sampled_from(list(FailureClass)))
    def prepare_fails(self, cls):
        self.scene.end(None, exited(70), [self.scene.ended_pod(None, 70, failed_outcome(cls))])
        self.settle()

    @precondition(lambda self: self.open_job)
    @rule(heard=st.booleans())
    def attempt_runs(self, heard):
        number = self.open_job
        if self.scene.job(number)["spec"].get("suspend"):
            self.scene.suspend(number)
        else:
            self.scene.run(number)
            self.scene.progress = progress(attempt=number) if heard else None
        self.settle(10)

    @precondition(lambda self: self.open_job)
    @rule(cls=st.sampled_from(list(FailureClass)), gone=st.booleans())
    def attempt_fails(self, cls, gone):
        pods = [] if gone else [self.scene.ended_pod(self.open_job, 70, failed_outcome(cls, "x" * 2000))]
        self.scene.end(self.open_job, taken() if gone else exited(70), pods)
        self.settle()

    @precondition(lambda self: self.open_job)
    @rule(checked=st.booleans())
    def attempt_completes(self, checked):
        message = trained_outcome() if checked else ""
        self.scene.end(
            self.open_job, None, [self.scene.ended_pod(self.open_job, 0, message, reason="Completed")]
        )
        self.settle()

    @precondition(lambda self: self.scene.jobs())
    @rule()
    def somebody_deletes_the_newest_job(self):
        newest = max(self.scene.jobs(), key=lambda job: int(job["metadata"]["labels"][names.LABEL_ATTEMPT]))
        for ref in [
            ref for ref in self.scene.objects if ref.kind == "Job" and ref.name == newest["metadata"]["name"]
        ]:
            del self.scene.objects[ref]
        self.settle()

    @rule(wanted=st.booleans())
    def user_suspends(self, wanted):
        self.scene.manifest["spec"]["suspend"] = wanted
        self.scene.manifest["metadata"]["generation"] += 1
        self.settle()

    @rule(seconds=st.sampled_from([1, 30, 3600]))
    def time_passes(self, seconds):
        self.settle(seconds)

    @invariant()
    def the_status_fits_its_model_and_is_small(self):
        stored = self.scene.status
        if not stored:
            return
        assert as_json(Status.model_validate(stored)) == stored
        assert [item["type"] for item in stored["conditions"]] == list(CONDITION_TYPES)
        assert len(json.dumps(stored)) < 32_000

    @invariant()
    def never_more_than_one_attempt_lives(self):
        living = [job for job in self.scene.jobs() if not self.has_ended(job)]
        assert len(living) <= 1

    @invariant()
    def every_event_says_something(self):
        assert all(" " in event.message for event in self.scene.events)

    @invariant()
    def the_end_is_one_of_two(self):
        if self.scene.status:
            true = {item["type"] for item in self.scene.status["conditions"] if item["status"] == "True"}
            assert not {"Complete", "Failed"} <= true
            assert not ({"Complete", "Failed"} & true and "Running" in true)


Life.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
TestLife = Life.TestCase
