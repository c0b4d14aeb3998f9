"""What becomes of Jobs and their pods: the observable results the operator relies on."""

from __future__ import annotations

import re

import pytest

from conformance.rig import CONTAINER, Rig, terminated
from sftjob_operator.cluster.base import Ref, Rejected

BATCH = "batch/v1"
WAIT = "import signal, time, sys\n{}\nprint('ready', flush=True)\nwhile True: time.sleep(0.1)"
LEAVE_WITH_74 = WAIT.format("signal.signal(signal.SIGTERM, lambda *_: sys.exit(74))")
INDEX = "import os, sys, time\nindex = os.environ['JOB_COMPLETION_INDEX']\n"

pytestmark = pytest.mark.processes


async def test_all_pods_succeed_and_the_job_is_complete(rig: Rig):
    await rig.cluster.create(rig.job("good", "print('hello from the pod')", pods=3))
    assert (await rig.finished("good", "Complete"))["reason"] == "CompletionsReached"
    job = await rig.get("Job", "good", BATCH)
    assert (job["status"]["succeeded"], job["status"]["completedIndexes"]) == (3, "0-2")
    pods = await rig.pods("good")
    assert [terminated(pod)["exitCode"] for pod in pods] == [0, 0, 0]
    assert [pod["status"]["phase"] for pod in pods] == ["Succeeded"] * 3
    log = await rig.cluster.read_log(rig.ref("Pod", pods[0]["metadata"]["name"]), 5)
    assert log == "hello from the pod\n"


async def test_pods_are_named_and_labelled_by_index(rig: Rig):
    await rig.cluster.create(rig.job("named", LEAVE_WITH_74))
    for index, pod in enumerate(await rig.running("named", 2)):
        metadata = pod["metadata"]
        assert re.fullmatch(rf"named-{index}-[a-z0-9]{{5}}", metadata["name"])
        assert metadata["labels"]["batch.kubernetes.io/job-name"] == "named"
        assert metadata["labels"]["batch.kubernetes.io/job-completion-index"] == str(index)
        assert metadata["annotations"]["batch.kubernetes.io/job-completion-index"] == str(index)
        assert pod["spec"]["hostname"] == f"named-{index}"
        assert metadata["ownerReferences"][0]["name"] == "named"
        assert pod["status"]["podIP"]
    job = await rig.get("Job", "named", BATCH)
    assert job["status"]["active"] == 2


async def test_a_pod_sees_its_environment_its_files_and_leaves_last_words(rig: Rig):
    code = INDEX + (
        "words = [index, os.environ['IP'], os.environ['POD'], os.environ['TEAM'], os.environ['JOINED']]\n"
        "words += [open('/etc/conf/key').read(), open(os.environ['CONF'] + '/key').read()]\n"
        "open('/scratch/file', 'w').write('x')\n"
        "open('/dev/termination-log', 'w').write('|'.join(words))"
    ).replace("'/etc/conf/key'", "os.environ['CONF'] + '/key'").replace(
        "'/scratch/file'", "os.environ['SCRATCH'] + '/file'"
    ).replace("'/dev/termination-log'", "os.environ['LAST']")
    env = (
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "TEAM", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['run']"}}},
        {"name": "JOINED", "value": "pod-$(POD)"},
        {"name": "CONF", "value": "/etc/conf"},
        {"name": "SCRATCH", "value": "/scratch"},
        {"name": "LAST", "value": "/dev/termination-log"},
    )
    await rig.cluster.create(rig.config_map("conf", {"key": "from the map"}))
    volumes = ({"name": "conf", "configMap": {"name": "conf"}}, {"name": "scratch", "emptyDir": {}})
    mounts = ({"name": "conf", "mountPath": "/etc/conf"}, {"name": "scratch", "mountPath": "/scratch"})
    await rig.cluster.create(rig.job("env", code, pods=1, env=env, volumes=volumes, mounts=mounts))
    await rig.finished("env", "Complete")
    (pod,) = await rig.pods("env")
    name, address = pod["metadata"]["name"], pod["status"]["podIP"]
    assert terminated(pod)["message"].split("|") == [
        "0", address, name, "env", f"pod-{name}", "from the map", "from the map",
    ]  # fmt: skip


async def test_an_exit_code_is_matched_with_its_rule_and_the_failed_pod_stays(rig: Rig):
    code = INDEX + (
        "if index == '0': time.sleep(600)\nopen(os.environ['LAST'], 'w').write('bad row 17')\nsys.exit(71)"
    )
    await rig.cluster.create(rig.job("user", code, env=({"name": "LAST", "value": "/dev/termination-log"},)))
    failed = await rig.finished("user", "Failed")
    assert failed["reason"] == "PodFailurePolicy"
    pattern = rf"Container {CONTAINER} for pod {rig.namespace}/user-1-\w{{5}} failed with exit code 71 matching FailJob rule at index 0"
    assert re.fullmatch(pattern, failed["message"])
    assert (await rig.condition("user", "FailureTarget"))["message"] == failed["message"]

    async def only_the_failed_one() -> list | None:
        pods = await rig.pods("user")
        return pods if len(pods) == 1 else None

    (pod,) = await rig.until(only_the_failed_one, "the healthy sibling is removed", lambda: rig.pods("user"))
    assert (terminated(pod)["exitCode"], terminated(pod)["message"]) == (71, "bad row 17")
    assert pod["status"]["phase"] == "Failed"


async def test_another_exit_code_takes_the_last_rule(rig: Rig):
    await rig.cluster.create(rig.job("crash", "raise SystemExit(1)", pods=1))
    words = (await rig.finished("crash", "Failed"))["message"]
    assert words.endswith("failed with exit code 1 matching FailJob rule at index 2")


async def test_a_command_that_is_not_there_fails_the_job(rig: Rig):
    job = rig.job("typo", "", pods=1)
    job["spec"]["template"]["spec"]["containers"][0]["command"] = ["no-such-program"]
    await rig.cluster.create(job)
    assert "failed with exit code 128 matching" in (await rig.finished("typo", "Failed"))["message"]


async def test_without_a_policy_the_backoff_limit_speaks(rig: Rig):
    job = rig.job("plain", "raise SystemExit(3)", pods=1)
    del job["spec"]["podFailurePolicy"], job["spec"]["podReplacementPolicy"]
    job["spec"]["completionMode"] = "NonIndexed"
    await rig.cluster.create(job)
    failed = await rig.finished("plain", "Failed")
    assert (failed["reason"], failed["message"]) == (
        "BackoffLimitExceeded", "Job has reached the specified backoff limit",
    )  # fmt: skip


async def test_a_deleted_pod_fails_the_job_with_its_own_exit_code(rig: Rig):
    await rig.cluster.create(rig.job("deleted", LEAVE_WITH_74))
    first, _ = await rig.running("deleted", 2)
    await _settled(rig, "deleted")
    await rig.cluster.delete(rig.ref("Pod", first["metadata"]["name"]))
    failed = await rig.finished("deleted", "Failed")
    assert "failed with exit code 74 matching FailJob rule at index 1" in failed["message"]


async def test_exit_0_on_sigterm_counts_as_success(rig: Rig):
    code = WAIT.format("signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))")
    await rig.cluster.create(rig.job("polite", code, pods=1))
    (pod,) = await rig.running("polite", 1)
    await _settled(rig, "polite")
    await rig.cluster.delete(rig.ref("Pod", pod["metadata"]["name"]))
    await rig.finished("polite", "Complete")


async def test_suspend_ends_the_pods_and_resume_runs_the_same_job_again(rig: Rig):
    job = rig.job("pause", LEAVE_WITH_74)
    # A FailJob rule would take the pods that leave with a code of their own (tests/local/test_jobs.py).
    job["spec"]["podFailurePolicy"]["rules"][1]["action"] = "Ignore"
    made = await rig.cluster.create(job)
    before = await rig.running("pause", 2)
    await _settled(rig, "pause")
    await rig.cluster.patch(rig.ref("Job", "pause", BATCH), {"spec": {"suspend": True}})
    suspended = await rig.finished("pause", "Suspended")
    assert suspended["reason"] == "JobSuspended"

    async def no_pods() -> bool:
        return not await rig.pods("pause")

    await rig.until(no_pods, "the pods are gone", lambda: rig.pods("pause"))
    await rig.cluster.patch(rig.ref("Job", "pause", BATCH), {"spec": {"suspend": False}})
    after = await rig.running("pause", 2)
    uids = {pod["metadata"]["uid"] for pod in after}
    assert not uids & {pod["metadata"]["uid"] for pod in before}
    assert (await rig.get("Job", "pause", BATCH))["metadata"]["uid"] == made["metadata"]["uid"]
    assert await rig.condition("pause", "Failed") is None
    assert await rig.condition("pause", "Suspended") is None


async def test_a_job_that_starts_suspended_has_no_pods(rig: Rig):
    await rig.cluster.create(rig.job("later", "pass", pods=1, suspend=True))
    await rig.finished("later", "Suspended")
    assert await rig.pods("later") == []
    await rig.cluster.patch(rig.ref("Job", "later", BATCH), {"spec": {"suspend": False}})
    await rig.finished("later", "Complete")


async def test_the_grace_period_ends_with_sigkill(rig: Rig):
    code = WAIT.format("signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    await rig.cluster.create(rig.job("stubborn", code, pods=1, grace=1))
    (pod,) = await rig.running("stubborn", 1)
    await _settled(rig, "stubborn")
    await rig.cluster.delete(rig.ref("Pod", pod["metadata"]["name"]))
    assert "exit code 137" in (await rig.finished("stubborn", "Failed"))["message"]


async def test_a_deadline_fails_the_job(rig: Rig):
    await rig.cluster.create(rig.job("late", LEAVE_WITH_74, pods=1, activeDeadlineSeconds=1))
    failed = await rig.finished("late", "Failed")
    assert (failed["reason"], failed["message"]) == (
        "DeadlineExceeded", "Job was active longer than specified deadline",
    )  # fmt: skip


async def test_the_deletion_of_a_job_takes_its_pods_along(rig: Rig):
    await rig.cluster.create(rig.job("gone", LEAVE_WITH_74))
    await rig.running("gone", 2)
    await rig.cluster.delete(rig.ref("Job", "gone", BATCH))

    async def no_pods() -> bool:
        return not await rig.pods("gone")

    await rig.until(no_pods, "the pods are gone", lambda: rig.pods("gone"))


async def test_in_the_foreground_a_job_goes_after_its_pods(rig: Rig):
    await rig.cluster.create(rig.job("last", LEAVE_WITH_74))
    await rig.running("last", 2)
    ref = rig.ref("Job", "last", BATCH)
    await rig.cluster.delete(ref, foreground=True)
    going = await rig.cluster.get(ref)
    assert going is not None
    assert going["metadata"]["deletionTimestamp"]

    async def gone() -> bool:
        pods = await rig.pods("last")
        job = await rig.cluster.get(ref)
        assert job is not None or not pods
        return job is None

    await rig.until(gone, "the Job is gone", lambda: rig.pods("last"))


async def test_a_missing_config_map_is_waited_for(rig: Rig):
    volumes = ({"name": "conf", "configMap": {"name": "not-yet"}},)
    mounts = ({"name": "conf", "mountPath": "/etc/conf"},)
    await rig.cluster.create(rig.job("waits", "pass", pods=1, volumes=volumes, mounts=mounts))

    async def creating() -> bool:
        pods = await rig.pods("waits")
        states = [one["state"] for pod in pods for one in pod.get("status", {}).get("containerStatuses", [])]
        return [state.get("waiting", {}).get("reason") for state in states] == ["ContainerCreating"]

    await rig.until(creating, "the container is being created", lambda: rig.pods("waits"))
    await rig.cluster.create(rig.config_map("not-yet", {}))
    if rig.image != "any":  # a kubelet tries again after up to two minutes
        return
    await rig.finished("waits", "Complete")


async def test_a_missing_secret_is_a_container_config_error(rig: Rig):
    job = rig.job("secretive", "pass", pods=1)
    job["spec"]["template"]["spec"]["containers"][0]["envFrom"] = [{"secretRef": {"name": "token"}}]
    await rig.cluster.create(job)

    async def waiting() -> dict | None:
        pods = await rig.pods("secretive")
        states = [one["state"] for pod in pods for one in pod.get("status", {}).get("containerStatuses", [])]
        found = next((state["waiting"] for state in states if "waiting" in state), {})
        return found if found.get("reason") == "CreateContainerConfigError" else None

    found = await rig.until(waiting, "the reason is told", lambda: rig.pods("secretive"))
    assert found["message"] == 'secret "token" not found'


async def test_a_missing_claim_is_unschedulable(rig: Rig):
    volumes = ({"name": "data", "persistentVolumeClaim": {"claimName": "nowhere"}},)
    mounts = ({"name": "data", "mountPath": "/data"},)
    await rig.cluster.create(rig.job("unbound", "pass", pods=1, volumes=volumes, mounts=mounts))

    async def unscheduled() -> dict | None:
        for pod in await rig.pods("unbound"):
            for condition in pod.get("status", {}).get("conditions", []):
                if (condition["type"], condition["status"]) == ("PodScheduled", "False"):
                    return condition
        return None

    condition = await rig.until(unscheduled, "the reason is told", lambda: rig.pods("unbound"))
    assert condition["reason"] == "Unschedulable"
    assert 'persistentvolumeclaim "nowhere" not found' in condition["message"]


async def test_the_pod_template_of_a_job_is_immutable(rig: Rig):
    await rig.cluster.create(rig.job("fixed", "pass", pods=1, suspend=True))
    patch = {"spec": {"template": {"spec": {"subdomain": "another"}}}}
    with pytest.raises(Rejected, match="field is immutable"):
        await rig.cluster.patch(rig.ref("Job", "fixed", BATCH), patch)


async def _settled(rig: Rig, job: str) -> None:
    """All its pods have their handlers of SIGTERM in place."""
    for pod in await rig.pods(job):
        ref = rig.ref("Pod", pod["metadata"]["name"])

        async def said(ref: Ref = ref) -> bool:
            return await rig.cluster.read_log(ref, 1) == "ready\n"

        await rig.until(said, f"{ref.name} is ready")
