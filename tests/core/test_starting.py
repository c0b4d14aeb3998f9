"""Between an attempt's Job and its running pods: why it does not start, and what the API server refuses."""

from __future__ import annotations

import json

import pytest

from sftjob_operator.api.objects import Ref
from sftjob_operator.effects import Create
from sftjob_operator.world import Refusal
from worlds import Scene, sftjob

PENDING = [
    (
        {
            "phase": "Pending",
            "containerStatuses": [
                {
                    "name": "trainer",
                    "image": "nope:1",
                    "state": {
                        "waiting": {
                            "reason": "ImagePullBackOff",
                            "message": 'Back-off pulling image "nope:1"',
                        }
                    },
                }
            ],
        },
        "ImagePull",
        'image nope:1: ImagePullBackOff: Back-off pulling image "nope:1"',
    ),
    (
        {
            "phase": "Pending",
            "conditions": [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "reason": "Unschedulable",
                    "message": "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.",
                }
            ],
        },
        "Unschedulable",
        "0/2 nodes are available: 2 Insufficient nvidia.com/gpu.",
    ),
    (
        {
            "phase": "Pending",
            "conditions": [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "message": 'persistentvolumeclaim "ws" not found',
                }
            ],
        },
        "VolumeMissing",
        'persistentvolumeclaim "ws" not found',
    ),
    (
        {
            "phase": "Pending",
            "conditions": [
                {
                    "type": "PodScheduled",
                    "status": "False",
                    "message": "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.",
                }
            ],
        },
        "VolumePending",
        "kubectl describe pvc says why the claim has no volume",
    ),
    (
        {
            "phase": "Pending",
            "containerStatuses": [
                {
                    "name": "trainer",
                    "image": "i",
                    "state": {"waiting": {"reason": "CreateContainerConfigError", "message": "runAsNonRoot"}},
                }
            ],
        },
        "ContainerConfig",
        "CreateContainerConfigError: runAsNonRoot",
    ),
    ({"phase": "Pending"}, "ContainerCreating", "is being created"),
    (
        {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"}],
        },
        "NodeNotReady",
        "does not answer",
    ),
]


@pytest.mark.parametrize(("status", "reason", "words"), PENDING, ids=[case[1] for case in PENDING])
@pytest.mark.parametrize("number", [None, 1], ids=["prepare", "attempt"])
def test_pods_that_do_not_start_say_why_in_one_condition(number, status, reason, words):
    scene = Scene()
    scene.step() if number is None else scene.prepare()
    if number:
        scene.step()
    count = scene.job(number)["spec"]["parallelism"]
    scene.starting(number, [scene.pod(number, index, **status) for index in range(count)])
    scene.step(1)
    quiet = {"Preparing"} if number is None else {"ContainerCreating"}
    assert scene.condition("Running")["reason"] in quiet, "pods that are a second old are not asked"
    assert not scene.needs.pods
    scene.step(4)
    expected = "Preparing" if number is None and reason == "ContainerCreating" else reason
    assert scene.says("Running") == ("False", expected)
    assert words in scene.condition("Running")["message"]


def test_an_unready_gang_is_looked_at_after_5_15_30_and_60_seconds():
    scene = Scene()
    scene.prepare()
    assert scene.step().requeue_after == 5
    scene.starting(1, [scene.pod(1, phase="Pending")])
    times = [scene.step(seconds).requeue_after for seconds in (1, 4, 10, 15, 30, 60)]
    assert times == [4, 10, 15, 30, 60, 60]


def test_a_gang_without_pods_says_where_to_look():
    scene = Scene()
    scene.prepare()
    scene.step()
    scene.starting(1)
    scene.step(5)
    assert scene.says("Running") == ("False", "PodsNotCreated")
    assert "kubectl describe job bot-1" in scene.condition("Running")["message"]


def test_a_pod_that_finishes_before_its_sibling_does_not_stop_the_job_from_running():
    scene = Scene()
    scene.start()
    scene.job(1)["status"] = {"active": 1, "ready": 1, "succeeded": 1}
    scene.step(10)
    assert scene.condition("Running")["status"] == "True"


def test_a_pod_that_has_ended_and_is_not_counted_yet_has_done_its_part():
    scene = Scene()
    scene.start()
    uncounted = {"succeeded": ["uid-of-a-pod"]}
    scene.job(1)["status"] = {"active": 1, "ready": 1, "uncountedTerminatedPods": uncounted}
    scene.step(10)
    assert scene.condition("Running")["status"] == "True"


@pytest.mark.parametrize(
    ("code", "reason", "phase"), [(0, "Finishing", "Running"), (70, "Stopping", "Restarting")]
)
def test_pods_that_end_are_not_said_to_be_created(code, reason, phase):
    scene = Scene()
    scene.start()
    scene.job(1)["status"]["ready"] = 1
    scene.pods = [scene.ended_pod(1, code), scene.pod(1, 1, phase="Running")]
    scene.step(10)
    assert scene.says("Running") == ("False", reason)
    assert scene.condition("Running")["message"] == "attempt 1: 1 of 2 pods have ended"
    assert scene.status["phase"] == phase


@pytest.mark.parametrize("number", [None, 1], ids=["prepare", "attempt"])
def test_a_sidecar_that_keeps_a_pod_is_named(number):
    scene = Scene(sftjob(workers={"nodes": 1}))
    scene.step() if number is None else scene.start()
    pod = scene.ended_pod(number, 0)
    ours = pod["status"]["containerStatuses"][0]
    ours["state"]["terminated"]["finishedAt"] = "2026-01-01T12:00:00Z"
    proxy = {"name": "istio-proxy", "image": "i", "state": {"running": {"startedAt": "2026-01-01T12:00:00Z"}}}
    pod["status"] |= {"phase": "Running", "containerStatuses": [ours, proxy]}
    scene.starting(number, [pod])
    scene.step(60)
    assert "istio-proxy" not in scene.condition("Running")["message"], "it may be about to end"
    scene.step(60)
    assert "cannot end, for istio-proxy still runs in it" in scene.condition("Running")["message"]


def test_istio_injects_nothing_unless_the_user_says_so():
    label = "sidecar.istio.io/inject"
    scene = Scene(sftjob(workers={"podTemplate": {"metadata": {"labels": {label: "true"}}}}))
    scene.start()
    found = [scene.job(number)["spec"]["template"]["metadata"]["labels"][label] for number in (None, 1)]
    assert found == ["false", "true"]


@pytest.mark.parametrize(
    ("code", "message", "kind", "reason", "requeue"),
    [
        (
            422,
            'Job.batch "bot-1" is invalid: spec.template.spec.tolerations[0]',
            "Accepted",
            "PodTemplateRejected",
            None,
        ),
        (403, 'pods "bot-1" is forbidden: exceeded quota: gpus', "Running", "QuotaExceeded", 60),
        (
            403,
            'jobs.batch "bot-1" is forbidden: cannot set blockOwnerDeletion in this case because cannot find '
            "RESTMapping for APIVersion sftjob.dev/v1alpha1 Kind SFTJob",
            "Running",
            "KindUnnoticed",
            5,
        ),
        (403, 'jobs.batch is forbidden: User "x" cannot create resource "jobs"', "Running", "Forbidden", 60),
    ],
)
def test_a_refused_job_is_a_condition_in_the_api_servers_words(code, message, kind, reason, requeue):
    scene = Scene()
    scene.prepare()
    ref = Ref("batch/v1", "Job", "team", "bot-1")
    scene.refusal = Refusal(ref, code, "Invalid", message)
    last = scene.step(5)
    assert scene.says(kind) == ("False", reason)
    assert message in scene.condition(kind)["message"]
    assert last.requeue_after == requeue
    assert "startTime" not in scene.status, "the spec can still be repaired"
    assert "attempts" not in scene.status
    before = json.dumps(scene.status)
    scene.step(300)
    assert json.dumps(scene.status) == before, "being refused again is no news"
    scene.refusal = None
    scene.step(300)
    assert scene.says("Accepted") == ("True", "Valid")
    made = [each.manifest["kind"] for each in scene.last.effects if isinstance(each, Create)]
    assert made == ["ConfigMap", "Job"]


def test_a_training_pod_that_would_be_refused_is_said_before_anything_is_prepared():
    scene = Scene()
    words = 'Job.batch "bot-1" is invalid: spec.template.spec.tolerations[0]'
    scene.refusal = Refusal(Ref("batch/v1", "Job", "team", "bot-1"), 422, "Invalid", words)
    scene.step()
    assert scene.says("Accepted") == ("False", "PodTemplateRejected")
    assert words in scene.condition("Accepted")["message"]
    assert scene.objects == {}
    scene.refusal = None
    scene.step(5)
    assert scene.says("Accepted") == ("True", "Valid")
    assert len(scene.jobs("prepare")) == 1


def test_a_refused_suspension_is_said_and_not_repeated_at_once():
    scene = Scene()
    scene.start()
    scene.manifest["spec"]["suspend"] = True
    scene.refusal = Refusal(Ref("batch/v1", "Job", "team", "bot-1"), 422, "Invalid", "a webhook says no")
    last = scene.step(5)
    assert last.effects == ()
    assert last.requeue_after == 60
    assert "a webhook says no" in scene.condition("Running")["message"]
