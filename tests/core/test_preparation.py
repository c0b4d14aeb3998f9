"""Before the start: waiting for what is missing, trying again, and repair by a second apply."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sft_trainer.config import Outcome, PrepareConfig
from sftjob_operator.api.objects import Ref
from sftjob_operator.api.v1alpha1.workers import Prepare
from sftjob_operator.desired import prepare
from sftjob_operator.desired.config import prepare_config
from sftjob_operator.effects import Create
from sftjob_operator.policy.accept import read_sftjob
from worlds import FACTS, Scene, exited, failed_outcome, prepared_outcome, sftjob, taken

CLAIM = Ref("v1", "PersistentVolumeClaim", "team", "ws")
SECRET = Ref("v1", "Secret", "team", "hf-token")
PULL = Ref("v1", "Secret", "team", "regcred")


def fail(scene: Scene, code: int, message: str = "", words: str | None = None) -> None:
    scene.end(None, words or exited(code), [scene.ended_pod(None, code, message)] if code else [])
    scene.step(5)


def test_the_claim_and_the_secrets_are_looked_at_before_anything_is_made():
    scene = Scene(
        sftjob(
            model={"path": None, "uri": "hf://a/b", "secretRef": {"name": "hf-token"}},
            workers={"imagePullSecrets": [{"name": "regcred"}, {"name": "hf-token"}]},
        )
    )
    scene.step()
    assert scene.needs.prerequisites == (CLAIM, PULL, SECRET)


def test_the_first_attempt_waits_for_pods_of_a_deleted_job_of_this_name_that_still_save():
    scene = Scene()
    scene.step()
    scene.end(None, None, [scene.ended_pod(None, 0, prepared_outcome(), reason="Completed")])
    old = {"name": "bot-7-0-x", "deletionTimestamp": "2026-01-01T12:02:00Z"}
    old["labels"] = {"sftjob.dev/job-name": "bot", "sftjob.dev/role": "train", "sftjob.dev/attempt": "7"}
    old["ownerReferences"] = [{"kind": "Job", "uid": "of-an-earlier-job"}]
    scene.pods.append(scene.pod(None, 0, phase="Running", metadata=old))
    scene.step(5)
    assert scene.jobs() == []
    assert scene.says("Running") == ("False", "NameTaken")
    assert scene.condition("Running")["message"] == (
        "pods of an earlier SFTJob of this name still save and stop: pod bot-7-0-x on node node-0"
    )
    assert scene.last.requeue_after == 5
    scene.step(60)
    assert scene.jobs() == []
    scene.step(120)
    assert scene.attempt(1)["state"] == "Pending", "a dead node holds nothing up"


WORKERS = {"nodeSelector": {"pool": "gpu"}, "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists"}]}


@pytest.mark.parametrize(
    ("modes", "own", "place"),
    [
        (["ReadWriteOnce"], {}, {"pool": "gpu"}),
        (["ReadWriteOnce"], {"nodeSelector": {"pool": "cpu"}}, {"pool": "cpu"}),
        (["ReadWriteMany"], {}, None),
        (None, {}, None),
    ],
    ids=["on one node", "the user says where", "shared", "unknown"],
)
def test_on_a_volume_of_one_node_preparation_runs_where_training_will(modes, own, place):
    workers = {"nodes": 1, "podTemplate": {"spec": WORKERS}}
    scene = Scene(sftjob(workers=workers, prepare={"podTemplate": {"spec": own}}))
    if modes is not None:
        scene.found[CLAIM] = {"spec": {"accessModes": modes}}
    scene.step()
    pod = scene.job(None)["spec"]["template"]["spec"]
    assert pod.get("nodeSelector") == place
    assert ("tolerations" in pod) == (place == {"pool": "gpu"})


def test_a_place_that_is_corrected_is_taken_up_by_preparation():
    scene = Scene(sftjob(workers={"nodes": 1, "podTemplate": {"spec": {"nodeSelector": {"pool": "gpus"}}}}))
    scene.found[CLAIM] = {"spec": {"accessModes": ["ReadWriteOnce"]}}
    scene.step()
    scene.manifest["spec"]["workers"]["podTemplate"]["spec"]["nodeSelector"]["pool"] = "gpu"
    scene.step(5)
    assert scene.job(None)["spec"]["template"]["spec"]["nodeSelector"] == {"pool": "gpu"}


def test_a_release_that_knows_more_fields_prepares_nothing_again(monkeypatch):
    class NewerConfig(PrepareConfig):
        schema_version: int = 99
        added: int = 5

    class NewerPrepare(Prepare):
        added: str = "new"

    def newer(job):
        old = dict(prepare_config(job))
        del old["schema_version"]
        return NewerConfig(**old)

    job = read_sftjob(sftjob(data={"maxLength": 1024}))
    before = prepare.prepare_input(job)
    monkeypatch.setattr(prepare, "prepare_config", newer)
    spec = job.spec.model_copy(update={"prepare": NewerPrepare()})
    assert prepare.prepare_input(job.model_copy(update={"spec": spec})) == before


@pytest.mark.parametrize(
    ("missing", "reason", "words"),
    [
        (
            CLAIM,
            "VolumeMissing",
            "spec.workspace.claimName: waiting for PersistentVolumeClaim ws in namespace team",
        ),
        (SECRET, "SecretMissing", "spec.model.secretRef: waiting for Secret hf-token in namespace team"),
        (
            PULL,
            "SecretMissing",
            "spec.workers.imagePullSecrets: waiting for Secret regcred in namespace team",
        ),
    ],
)
def test_what_is_missing_is_waited_for_and_goes_on_when_it_appears(missing, reason, words):
    scene = Scene(
        sftjob(
            model={"path": None, "uri": "hf://a/b", "secretRef": {"name": "hf-token"}},
            workers={"imagePullSecrets": [{"name": "regcred"}]},
        )
    )
    scene.missing = [missing]
    waits = []
    for seconds in (0, 5, 10, 15, 30, 600):
        last = scene.step(seconds)
        assert last.effects == ()
        waits.append(last.requeue_after)
    assert waits == [5, 10, 10, 10, 10, 10]
    assert scene.says("Running") == ("False", reason)
    assert scene.condition("Running")["message"] == words
    assert scene.says("Failed") == ("False", "InProgress")
    assert [event.reason for event in scene.events] == ["Valid", reason]
    scene.missing = []
    scene.step(60)
    assert scene.says("Running") == ("False", "Preparing")


def test_every_stores_secret_is_waited_for_and_has_its_own_names_in_the_pod():
    refs = [{"uri": "s3://a/x", "secretRef": {"name": name}} for name in ("hf-token", "one", "two", "one")]
    scene = Scene(
        sftjob(
            model={"path": None, "uri": "s3://b/m", "secretRef": {"name": "hf-token"}},
            data={"train": refs[:3], "eval": {"sources": refs[3:]}},
        )
    )
    last_secret = Ref("v1", "Secret", "team", "two")
    scene.missing = [last_secret]
    scene.step()
    assert scene.condition("Running")["message"] == (
        "spec.data.train[2].secretRef: waiting for Secret two in namespace team"
    )
    scene.missing = []
    created = [effect.manifest for effect in scene.step(10).effects if isinstance(effect, Create)]
    pod = next(each for each in created if each["kind"] == "Job")["spec"]["template"]["spec"]
    assert pod["containers"][0]["envFrom"] == [
        {"secretRef": {"name": "hf-token"}},
        {"prefix": "SFTJOB_DATA_0_", "secretRef": {"name": "one"}},
        {"prefix": "SFTJOB_DATA_1_", "secretRef": {"name": "two"}},
    ]
    config = json.loads(next(each for each in created if each["kind"] == "ConfigMap")["data"]["prepare.json"])
    prefixes = [each.get("secretPrefix") for each in config["data"]["train"]]
    assert prefixes == [None, "SFTJOB_DATA_0_", "SFTJOB_DATA_1_"]
    assert config["data"]["eval"]["sources"][0]["secretPrefix"] == "SFTJOB_DATA_0_"


def test_a_restart_does_without_the_secret_that_only_preparation_uses():
    scene = Scene(sftjob(model={"path": None, "uri": "hf://a/b", "secretRef": {"name": "hf-token"}}))
    scene.start()
    scene.missing = [SECRET]
    scene.end(1, exited(70), [scene.ended_pod(1, 70)])
    scene.step(5)
    scene.step(10)
    assert scene.attempt(2)["state"] == "Pending"


@pytest.mark.parametrize(
    ("nodes", "claim", "shared"),
    [
        (2, {"spec": {"accessModes": ["ReadWriteMany"]}}, True),
        (2, {"spec": {"accessModes": ["ReadWriteOnce"]}}, False),
        (2, {"spec": {"accessModes": ["ReadWriteOncePod"]}}, False),
        (1, {"spec": {"accessModes": ["ReadWriteOnce"]}}, True),
        (
            2,
            {
                "spec": {"accessModes": ["ReadWriteOnce"]},
                "status": {"accessModes": ["ReadWriteOnce", "ReadWriteMany"]},
            },
            True,
        ),
    ],
    ids=["shared", "one node's", "one pod's", "one node", "bound to a shared volume"],
)
def test_a_volume_that_the_nodes_cannot_share_is_said_before_anything_is_made(nodes, claim, shared):
    scene = Scene(sftjob(workers={"nodes": nodes}))
    scene.found = {CLAIM: claim}
    last = scene.step()
    if shared:
        assert scene.says("Running") == ("False", "Preparing")
        return
    assert last.effects == ()
    assert scene.says("Running") == ("False", "VolumeNotShared")
    assert scene.condition("Running")["message"] == (
        f"spec.workspace.claimName: PersistentVolumeClaim ws is {claim['spec']['accessModes'][0]}, which 2 nodes "
        "cannot share: name a ReadWriteMany claim, or set spec.workers.nodes: 1"
    )
    assert last.requeue_after == 5
    scene.manifest["spec"]["workers"]["nodes"] = 1
    scene.step(5)
    assert scene.says("Running") == ("False", "Preparing")


def test_nothing_is_read_while_nothing_depends_on_it():
    scene = Scene()
    scene.start()
    scene.step(10)
    assert (scene.needs.prerequisites, scene.needs.pods, scene.needs.hardware) == ((), False, False)
    assert scene.needs.progress


def test_a_user_error_fails_the_job_before_its_start_in_the_pods_words():
    scene = Scene()
    scene.step()
    said = failed_outcome("UserError", "data/chat.jsonl line 3 is no JSON").replace(
        '"reason":"UserError"', '"reason":"InvalidRow"'
    )
    fail(scene, 71, said)
    assert scene.says("Failed") == ("True", "InvalidRow")
    assert scene.says("Prepared") == ("False", "InvalidRow")
    assert scene.condition("Prepared")["message"] == "data/chat.jsonl line 3 is no JSON"
    assert scene.says("Running") == ("False", "Failed")
    assert "startTime" not in scene.status
    assert scene.status["completionTime"]
    assert len(scene.jobs("prepare")) == 1
    assert scene.condition("Failed")["message"] == (
        "data/chat.jsonl line 3 is no JSON; apply the job again with a corrected spec; if only a file in the "
        "workspace was wrong, repair it, delete the job and apply it again"
    )
    before = dict(scene.status)
    last = scene.step(3600)
    assert (last.effects, last.status, last.requeue_after) == ((), None, None)
    assert scene.status == before


def test_a_second_apply_repairs_a_failed_preparation():
    scene = Scene()
    scene.step()
    fail(scene, 71, failed_outcome("UserError", "data/chat.jsonl does not exist"))
    old = scene.job()["metadata"]["name"]
    scene.manifest["spec"]["data"] = {"train": [{"path": "data/other.jsonl"}]}
    scene.manifest["metadata"]["generation"] = 2
    scene.step(5)
    assert scene.says("Failed") == ("False", "InProgress")
    assert scene.says("Prepared") == ("Unknown", "Preparing")
    assert "completionTime" not in scene.status
    assert [job["metadata"]["name"] for job in scene.jobs("prepare")] != [old]
    assert not [ref for ref in scene.objects if ref.name == old], "its ConfigMap and Job have gone"
    scene.end(None, None, [scene.ended_pod(None, 0, prepared_outcome(), reason="Completed")])
    scene.step(5)
    assert scene.attempt(1)["state"] == "Pending"


@pytest.mark.parametrize("at", ["failed", "preparing"])
def test_another_image_of_the_operators_is_no_reason_to_prepare_again(at):
    scene = Scene(sftjob(failurePolicy={"maxRestarts": 0}))
    scene.step()
    if at == "failed":
        fail(scene, 77, failed_outcome("Network", "no route"))
        assert scene.says("Failed") == ("True", "Network")
    before = scene.condition("Failed")
    scene.settings = replace(scene.settings, trainer_image="sftjob-trainer:next")
    scene.objects = {ref: item for ref, item in scene.objects.items() if at == "preparing"}
    assert scene.step(5).effects == ()
    assert scene.condition("Failed") == before


def test_a_repaired_image_is_another_preparation():
    scene = Scene(sftjob(workers={"image": "nope:1"}))
    scene.step()
    old = scene.job()["metadata"]["name"]
    scene.starting(None)
    scene.manifest["spec"]["workers"]["image"] = "right:1"
    scene.step(60)
    assert scene.job()["metadata"]["name"] != old
    assert len(scene.jobs("prepare")) == 1


def test_what_does_not_concern_preparation_does_not_repeat_it():
    scene = Scene()
    scene.step()
    scene.manifest["spec"]["failurePolicy"] = {"maxRestarts": 9}
    scene.manifest["spec"]["training"] = {"learningRate": 0.5}
    assert scene.step(5).effects == ()


@pytest.mark.parametrize(
    ("code", "message", "words", "reason"),
    [
        (77, failed_outcome("Network", "huggingface does not answer"), None, "Network"),
        (137, "", None, "HostOutOfMemory"),
        (70, "Traceback", None, "Crash"),
        (0, "", taken("bot-prepare-x"), "Disrupted"),
    ],
)
def test_what_may_pass_is_tried_again_after_a_pause(code, message, words, reason):
    scene = Scene()
    scene.step()
    first = scene.job()["metadata"]["name"]
    fail(scene, code, message, words)
    assert scene.says("Running") == ("False", "Restarting")
    assert f"preparation failed ({reason})" in scene.condition("Running")["message"]
    assert scene.says("Prepared") == ("Unknown", "Preparing")
    assert scene.last.requeue_after == 5
    scene.step(5)
    assert len(scene.jobs("prepare")) == 2
    assert scene.job()["metadata"]["name"] != first
    scene.end(None, None, [scene.ended_pod(None, 0, prepared_outcome(), reason="Completed")])
    scene.step(5)
    assert scene.attempt(1)["state"] == "Pending"
    assert scene.status["restarts"] == 0, "the budget of training is its own"


def test_tries_are_bounded_by_the_budget():
    scene = Scene(sftjob(failurePolicy={"maxRestarts": 1, "backoffSeconds": 0}))
    scene.step()
    fail(scene, 77, failed_outcome("Network", "no route"))
    assert len(scene.jobs("prepare")) == 2
    fail(scene, 77, failed_outcome("Network", "no route"))
    assert scene.says("Failed") == ("True", "Network")
    assert scene.condition("Failed")["message"] == ("spec.failurePolicy.maxRestarts (1) is used up: no route")
    assert scene.step(600).status is None
    scene.manifest["spec"]["failurePolicy"]["maxRestarts"] = 2
    scene.manifest["metadata"]["generation"] = 2
    scene.step(5)
    assert len(scene.jobs("prepare")) == 3, "a larger budget is a repair, too"


@pytest.mark.parametrize(
    "message",
    [
        "",
        "garbage",
        '{"outcome":"Succeeded","reason":"Succeeded"}',
        prepared_outcome(cache="../../etc"),
        prepared_outcome(cache="/etc"),
        prepared_outcome(rows=-1),
    ],
    ids=["none", "garbage", "no facts", "leaves the volume", "absolute", "negative"],
)
def test_success_without_readable_facts_is_done_again_and_bounded(message):
    scene = Scene(sftjob(failurePolicy={"maxRestarts": 1, "backoffSeconds": 0}))
    scene.step()
    scene.end(None, None, [scene.ended_pod(None, 0, message, reason="Completed")])
    scene.step(5)
    assert len(scene.jobs("prepare")) == 2
    scene.end(None, None, [scene.ended_pod(None, 0, message, reason="Completed")])
    scene.step(5)
    assert scene.says("Failed") == ("True", "Crash")
    assert "no readable result" in scene.condition("Failed")["message"]


def test_a_result_that_went_with_its_pod_is_fetched_again_without_charge():
    scene = Scene(sftjob(failurePolicy={"maxRestarts": 0, "backoffSeconds": 0}))
    scene.step()
    scene.end(None, None, [])
    scene.step(5)
    assert len(scene.jobs("prepare")) == 2


def test_a_deleted_prepare_job_is_made_again():
    scene = Scene()
    scene.step()
    scene.objects.clear()
    scene.step(5)
    assert len(scene.jobs("prepare")) == 1


def test_facts_beyond_all_measure_are_planned_with_like_any_others():
    """The image is the user's: what its pod says may be large, but never stops the operator."""
    scene = Scene()
    huge = {**FACTS["model"], "hidden_size": 2**52, "layers": 2**52, "vocabulary_size": 2**52}
    message = Outcome.model_validate(
        {"outcome": "Succeeded", "reason": "Succeeded", "prepare": {**FACTS, "model": huge}}
    ).to_json()
    scene.step()
    scene.end(None, None, [scene.ended_pod(None, 0, message, reason="Completed")])
    scene.step(5)
    assert scene.says("Planned") == ("True", "Fits"), "the memory of a CPU is unknown here"
    scene.step(5)


def test_a_preparation_on_a_lost_node_is_tried_again_elsewhere_without_charge():
    """The pod stays Running+Terminating for ever: the Job is released and another takes its place."""
    scene = Scene(sftjob(failurePolicy={"maxRestarts": 0}))
    scene.step()
    first = scene.job()["metadata"]["name"]
    deleted = {"deletionTimestamp": "2026-01-01T12:05:00Z"}
    scene.starting(None, [scene.pod(None, phase="Running", metadata=deleted)])
    scene.step(320)
    assert scene.says("Running")[1] != "Restarting", "it still has half a minute"
    scene.step(11)
    assert scene.says("Running") == ("False", "Restarting")
    assert (
        "preparation failed (NodeLost): node node-0 does not answer" in scene.condition("Running")["message"]
    )
    assert not [ref for ref in scene.objects if ref.name == first], "its ConfigMap and Job have gone"
    scene.step(10)
    assert len(scene.jobs("prepare")) == 1
    assert scene.says("Failed") == ("False", "InProgress")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"suspend": True}, ("False", "Suspended")),
        ({"workers": {"nodes": 3, "gpusPerNode": 0}}, ("False", "NotAccepted")),
        ({"workspace": {"claimName": "other"}}, ("False", "VolumeMissing")),
    ],
    ids=["suspended", "refused", "blocked"],
)
def test_what_prepares_for_a_spec_that_is_no_more_is_removed_whatever_stands_still(change, says):
    scene = Scene()
    scene.missing = [Ref("v1", "PersistentVolumeClaim", "team", "other")]
    scene.step()
    scene.run(None)
    scene.manifest["spec"] |= {"data": {"train": [{"path": "data/other.jsonl"}]}, **change}
    scene.step(5)
    assert scene.says("Running") == says
    assert not scene.jobs("prepare")
    assert scene.step(5).effects == ()


def test_an_unreadable_record_of_preparation_is_only_a_reason_to_prepare_again():
    scene = Scene()
    scene.start()
    scene.manifest["status"]["prepared"] = {"input": 7, "facts": "?"}
    scene.end(1, exited(70), [scene.ended_pod(1, 70)])
    scene.step(5)
    scene.step(10)
    assert scene.says("Running") == ("False", "Preparing")


def test_what_does_not_fit_takes_no_gpu_and_says_what_would():
    scene = Scene(sftjob(workers={"nodes": 1, "gpusPerNode": 2}))
    big = {**FACTS["model"], "parameters": 70_000_000_000, "layers": 80, "hidden_size": 8192}
    message = Outcome.model_validate(
        {"outcome": "Succeeded", "reason": "Succeeded", "prepare": {**FACTS, "model": big}}
    ).to_json()
    scene.step()
    scene.end(None, None, [scene.ended_pod(None, 0, message, reason="Completed")])
    last = scene.step(5)
    assert last.effects == ()
    assert scene.says("Planned") == ("False", "DoesNotFit")
    assert scene.says("Running") == ("False", "DoesNotFit")
    assert scene.says("Failed") == ("False", "InProgress"), "more nodes are one apply away"
    words = scene.condition("Planned")["message"]
    assert "but there are 40.0 GiB" in words
    assert "spec.workers.nodes: 32 (and spec.training.globalBatchSize: 64)" in words
    assert [event.reason for event in last.events] == ["DataReady", "DoesNotFit"]
