"""A cluster of dictionaries for tests of the pure core: applies effects, plays the Job controller as told."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sft_trainer.config import Outcome, Progress
from sftjob_operator.api import names
from sftjob_operator.api.objects import Manifest, Ref, ref_of
from sftjob_operator.effects import Apply, Check, Create, Delete, Patch
from sftjob_operator.needs import Needs, needs
from sftjob_operator.planning.hardware import Hardware
from sftjob_operator.policy.accept import read_sftjob
from sftjob_operator.settings import Settings
from sftjob_operator.step import Step, step
from sftjob_operator.world import Refusal, Standing, World

START = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
GIB = 2**30
FACTS: dict[str, Any] = {
    "model": {
        "directory": ".sftjob/cache/models/0a1b2c",
        "resolved": "path:models/smollm2#sha256:0a1b2c",
        "architecture": "LlamaForCausalLM",
        "parameters": 134_515_008,
        "embedding_parameters": 28_311_552,
        "lora_parameters_per_rank": 305_280,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "layers": 30,
        "heads": 9,
        "vocabulary_size": 49_152,
        "max_positions": 8192,
        "tied_embeddings": True,
    },
    "data": {
        "cache": ".sftjob/cache/data/c0ffee",
        "hash": "c0ffee",
        "rows": 1000,
        "eval_rows": 50,
        "tokens": 200_000,
        "supervised_tokens": 90_000,
        "truncated_rows": 12,
        "dropped_rows": 0,
        "skipped_rows": 0,
        "longest_row": 2100,
        "packs": 100,
        "fill_percent": 97,
    },
}


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """JSON merge patch."""
    result = dict(base)
    for key, value in over.items():
        if value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            below = result.get(key)
            result[key] = merge(below if isinstance(below, dict) else {}, value)
        else:
            result[key] = value
    return result


def sftjob(name: str = "bot", labels: dict[str, str] | None = None, **spec: Any) -> Manifest:
    """An SFTJob as the API server stores it: a CPU job of two nodes, with these parts of the spec merged."""
    base = {
        "model": {"path": "models/smollm2"},
        "data": {"train": [{"path": "data/chat.jsonl"}]},
        "workers": {"nodes": 2, "gpusPerNode": 0},
        "workspace": {"claimName": "ws"},
    }
    return {
        "apiVersion": "sftjob.dev/v1alpha1",
        "kind": "SFTJob",
        "metadata": {
            "name": name,
            "namespace": "team",
            "uid": "uid-of-the-job",
            "generation": 1,
            "creationTimestamp": "2026-01-01T12:00:00Z",
            **({"labels": labels} if labels else {}),
        },
        "spec": merge(base, spec),
    }


def failed_outcome(cls: str, message: str = "", **more: Any) -> str:
    """The termination message of a pod that failed."""
    values = {"outcome": "Failed", "reason": cls, "failure_class": cls, "message": message, **more}
    return Outcome.model_validate(values).to_json()


def prepared_outcome(**data: Any) -> str:
    """The termination message of a preparation that succeeded."""
    facts = {**FACTS, "data": {**FACTS["data"], **data}}
    return Outcome.model_validate({"outcome": "Succeeded", "reason": "Succeeded", "prepare": facts}).to_json()


def trained_outcome(**more: Any) -> str:
    """The termination message of index 0 of a training that succeeded."""
    train = {"steps": 480, "loss": 0.49, "export_directory": "jobs/bot/export", "export_bytes": 270_000_000}
    values = {
        "outcome": "Succeeded",
        "reason": "Succeeded",
        "train": train,
        "last_verified_step": 480,
        **more,
    }
    return Outcome.model_validate(values).to_json()


def progress(attempt: int = 1, step: int = 120, **more: Any) -> Progress:
    """What /progress of rank 0 answers."""
    values = {
        "attempt": attempt,
        "run_id": "r",
        "state": "Training",
        "step": step,
        "total_steps": 480,
        "loss": 1.8342,
        "tokens_per_second": 41250.7,
        "estimated_remaining_seconds": 6720,
        "time": "2026-01-01T12:10:00Z",
        **more,
    }
    return Progress.model_validate(values)


class Scene:
    """One SFTJob, its children, and the time."""

    def __init__(self, manifest: Manifest | None = None, hardware: Hardware | None = None) -> None:
        self.manifest = manifest or sftjob()
        self.now = START
        self.objects: dict[Ref, Manifest] = {}
        self.beside: list[Manifest] = []  # other SFTJobs of the namespace
        self.pods: list[Manifest] = []
        self.missing: list[Ref] = []
        self.found: dict[Ref, Manifest] = {}  # prerequisites of which more than their existence matters
        self.progress: Progress | None = None
        self.refusal: Refusal | None = None
        self.hidden: set[str] = set()  # Jobs that the view does not show (yet)
        self.hardware = hardware or Hardware()
        self.settings = Settings(trainer_image="sftjob-trainer:test")
        self.neighbours: Sequence[Standing] = ()
        self.events: list[Any] = []
        self.last = Step()
        self.needs = Needs()
        self._uids = 0

    # ------------------------------------------------------------------ what the shell does

    def world(self) -> World:
        job = read_sftjob(self.manifest)
        found = [item for ref, item in self.objects.items() if ref.kind == "Job"]
        visible = [item for item in found if item["metadata"]["name"] not in self.hidden]
        self.needs = need = needs(job, visible, self.now)
        asked = [self.objects[ref] for ref in need.jobs if ref in self.objects]
        wanted = dict(need.pod_labels).items()
        return World(
            job=job,
            now=self.now,
            jobs=copy.deepcopy([*visible, *asked]),
            sftjobs=copy.deepcopy([self.manifest, *self.beside]) if need.sftjobs else (),
            pods=[p for p in self.pods if wanted <= p["metadata"]["labels"].items()] if need.pods else None,
            prerequisites={
                ref: self.objects.get(ref) or (None if ref in self.missing else self.found.get(ref, {}))
                for ref in need.prerequisites
            },
            progress=self.progress if need.progress else None,
            hardware=self.hardware if need.hardware else Hardware(),
            settings=self.settings,
            neighbours=self.neighbours,
        )

    def step(self, seconds: float = 0.0) -> Step:
        """Let time pass, then one pass, and those that it wants at once."""
        self.now += timedelta(seconds=seconds)
        while self.take_pass().requeue_after == 0:
            pass
        return self.last

    def take_pass(self) -> Step:
        """One pass with its effects, its status and its events."""
        world = self.world()
        self.last = step(world)
        if self.refusal is not None and any(_target(e) == self.refusal.ref for e in self.last.effects):
            self.last = step(replace(world, refusal=self.refusal))
        for effect in self.last.effects:
            self._carry_out(effect)
        if self.last.status is not None:
            self.manifest["status"] = json.loads(json.dumps(self.last.status))
        self.events += self.last.events
        return self.last

    def _carry_out(self, effect: Any) -> None:
        match effect:
            case Create(manifest):
                self.objects.setdefault(ref_of(manifest), self._stored(manifest))
            case Check():
                pass
            case Apply(manifest):
                self.objects[ref_of(manifest)] = self._stored(manifest)
            case Patch(ref, patch):
                self.objects[ref] = merge(self.objects[ref], patch)
            case Delete(ref, uid, foreground):
                there = self.objects.get(ref)
                if there is None or uid not in (None, there["metadata"]["uid"]):
                    return
                if foreground:  # until `gone`
                    there["metadata"]["deletionTimestamp"] = _time(self.now)
                else:
                    del self.objects[ref]

    def _stored(self, manifest: Manifest) -> Manifest:
        stored = json.loads(json.dumps(manifest))
        self._uids += 1
        stored["metadata"] |= {"uid": f"uid-{self._uids}", "creationTimestamp": _time(self.now)}
        return stored

    # ------------------------------------------------------------------ what the cluster does

    def jobs(self, role: str = names.ROLE_TRAIN) -> list[Manifest]:
        found = [item for ref, item in self.objects.items() if ref.kind == "Job"]
        return [item for item in found if item["metadata"]["labels"][names.LABEL_ROLE] == role]

    def job(self, number: int | None = None) -> Manifest:
        """Attempt `number`; None = the newest prepare Job."""
        if number is None:
            return self.jobs(names.ROLE_PREPARE)[-1]
        ref = Ref("batch/v1", "Job", "team", f"{self.manifest['metadata']['name']}-{number}")
        return self.objects[ref]

    def run(self, number: int | None = None) -> None:
        """Every pod is ready."""
        child = self.job(number)
        pods = child["spec"]["parallelism"]
        child["status"] = {"active": pods, "ready": pods, "startTime": _time(self.now)}

    def starting(self, number: int | None, pods: Sequence[Manifest] = ()) -> None:
        """Pods exist and are not ready."""
        child = self.job(number)
        child["status"] = {"active": child["spec"]["parallelism"], "ready": 0, "startTime": _time(self.now)}
        self.pods = list(pods)

    def suspend(self, number: int | None, *, active: int = 0) -> None:
        """The controller has seen spec.suspend."""
        self.job(number)["status"] = {
            "active": active,
            "conditions": [{"type": "Suspended", "status": "True", "reason": "JobSuspended"}],
        }

    def gone(self, number: int | None) -> None:
        """The pods of a Job that is being deleted are down, and so it goes, too."""
        child = self.job(number)
        assert child["metadata"]["deletionTimestamp"]
        del self.objects[ref_of(child)]
        self.pods = []

    def end(
        self,
        number: int | None,
        message: str | None = None,
        pods: Sequence[Manifest] = (),
        kind: str | None = None,
    ) -> None:
        """The Job has ended: Failed with this message, or Complete where there is none."""
        kind = kind or ("Complete" if message is None else "Failed")
        condition = {
            "type": kind,
            "status": "True",
            "reason": "PodFailurePolicy" if message else "Completed",
            "message": message or "",
            "lastTransitionTime": _time(self.now),
        }
        self.job(number)["status"] = {"conditions": [condition]}
        self.pods = list(pods)

    def pod(self, number: int | None, index: int = 0, **status: Any) -> Manifest:
        """A pod of that Job; `status` is core/v1 PodStatus, `metadata` and `spec` are merged."""
        child = self.job(number)
        metadata = status.pop("metadata", {})
        spec = status.pop("spec", {})
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": f"{child['metadata']['name']}-{index}-x",
                "namespace": "team",
                "labels": {
                    **child["spec"]["template"]["metadata"]["labels"],
                    "batch.kubernetes.io/job-completion-index": str(index),
                },
                "ownerReferences": [{"kind": "Job", "uid": child["metadata"]["uid"]}],
                **metadata,
            },
            "spec": {"nodeName": f"node-{index}", "containers": [{"name": "trainer", "image": "i"}], **spec},
            "status": status,
        }

    def ended_pod(
        self,
        number: int | None,
        code: int,
        message: str = "",
        index: int = 0,
        reason: str = "Error",
        **more: Any,
    ) -> Manifest:
        """A pod whose container has ended."""
        terminated = {"exitCode": code, "reason": reason, "message": message}
        return self.pod(
            number,
            index,
            phase="Succeeded" if code == 0 else "Failed",
            containerStatuses=[{"name": "trainer", "image": "i", "state": {"terminated": terminated}}],
            **more,
        )

    def prepare(self, **data: Any) -> None:
        """Preparation is made and succeeds; the next pass starts the first attempt."""
        self.step()
        self.end(None, None, [self.ended_pod(None, 0, prepared_outcome(**data), reason="Completed")])

    def start(self) -> None:
        """Attempt 1 exists and all its pods run."""
        self.prepare()
        self.step()
        self.run(1)
        self.step(5)

    # ------------------------------------------------------------------ what is seen

    @property
    def status(self) -> dict[str, Any]:
        return self.manifest.get("status") or {}

    def condition(self, kind: str) -> dict[str, Any]:
        return next(item for item in self.status["conditions"] if item["type"] == kind)

    def says(self, kind: str) -> tuple[str, str]:
        found = self.condition(kind)
        return found["status"], found["reason"]

    def attempt(self, number: int) -> dict[str, Any]:
        return next(item for item in self.status["attempts"] if item["number"] == number)


def exited(code: int, rule: int = 2, pod: str = "bot-1-0-x") -> str:
    """The Failed message of a Job, word for word as Kubernetes 1.34 writes it."""
    rule_text = f"matching FailJob rule at index {rule}"
    return f"Container trainer for pod team/{pod} failed with exit code {code} {rule_text}"


def taken(pod: str = "bot-1-0-x") -> str:
    """The same for an evicted pod."""
    return f"Pod team/{pod} has condition DisruptionTarget matching FailJob rule at index 0"


def _target(effect: Any) -> Ref:
    return ref_of(effect.manifest) if isinstance(effect, Create | Check | Apply) else effect.ref


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
