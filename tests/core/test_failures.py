"""Why an attempt failed: every row of "What Jobs do, word for word", exit codes, causes against collateral deaths."""

from __future__ import annotations

import pytest

from sft_trainer.config import EXIT_CLASSES, ExitCode, FailureClass
from sftjob_operator.api.objects import ref_of
from sftjob_operator.failure import exit_class
from worlds import Scene, exited, failed_outcome, sftjob, taken

DISRUPTED = {
    "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]
}


def running(**spec) -> Scene:
    scene = Scene(sftjob(**spec))
    scene.start()
    return scene


def failed(scene: Scene, message: str, *pods) -> dict:
    scene.end(1, message, pods)
    scene.step(5)
    return scene.attempt(1)


@pytest.mark.parametrize(
    ("message", "pods", "reason", "charged"),
    [
        pytest.param(exited(1), lambda s: [s.ended_pod(1, 1)], "Crash", True, id="exit 1"),
        pytest.param(exited(71, 1), lambda s: [s.ended_pod(1, 71)], "UserError", True, id="exit 71"),
        pytest.param(
            exited(137),
            lambda s: [s.ended_pod(1, 137, reason="OOMKilled")],
            "HostOutOfMemory",
            True,
            id="memory limit",
        ),
        pytest.param(taken(), lambda s: [], "Disrupted", False, id="eviction, the pods are gone"),
    ],
)
def test_what_jobs_do_word_for_word(message, pods, reason, charged):
    scene = running()
    record = failed(scene, message, *pods(scene))
    assert (record["reason"], record["charged"], record["state"]) == (reason, charged, "Failed")


@pytest.mark.parametrize("code", sorted(EXIT_CLASSES))
def test_the_class_of_every_exit_code_survives_in_the_jobs_message_alone(code):
    scene = running()
    record = failed(scene, exited(int(code)))
    assert record["reason"] == EXIT_CLASSES[code]
    assert record["exitCode"] == code
    assert f"exit code {int(code)}" in record["message"]


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (1, FailureClass.CRASH),
        (2, FailureClass.CRASH),
        (126, FailureClass.CRASH),
        (127, FailureClass.CRASH),
        (134, FailureClass.CRASH),
        (139, FailureClass.CRASH),
        (143, FailureClass.INTERRUPTED),
        (247, FailureClass.CRASH),
        (255, FailureClass.CRASH),
    ],
)
def test_codes_outside_the_contract_are_crashes_but_sigterm(code, cls):
    assert exit_class(code) is cls


def test_without_any_message_of_the_job_it_is_a_crash_in_the_jobs_words():
    record = failed(running(), "Job has reached the specified backoff limit")
    assert record["reason"] == "Crash"
    assert record["message"] == "Job has reached the specified backoff limit"


def test_the_pods_words_are_worth_more_than_the_jobs():
    scene = running()
    said = failed_outcome("UserError", "data/chat.jsonl line 7: no assistant turn", exit_code=71)
    said = said.replace('"reason":"UserError"', '"reason":"InvalidRow"')
    record = failed(scene, exited(71), scene.ended_pod(1, 71, said))
    assert record["reason"] == "InvalidRow"
    assert record["message"] == "data/chat.jsonl line 7: no assistant turn"
    assert record["node"] == "node-0"
    assert record["exitCode"] == 71
    assert scene.says("Failed") == ("True", "InvalidRow")
    assert scene.condition("Failed")["message"] == "data/chat.jsonl line 7: no assistant turn"
    assert scene.status["phase"] == "Failed"


@pytest.mark.parametrize(
    ("cause", "code"),
    [
        ("UserError", 71),
        ("VolumeFull", 72),
        ("GPUOutOfMemory", 76),
        ("HostOutOfMemory", 137),
        ("Fenced", 75),
        ("Network", 77),
        ("Crash", 70),
        ("Interrupted", 74),
    ],
)
@pytest.mark.parametrize("first_in_list", ["cause", "collateral"])
def test_a_collateral_death_never_hides_the_cause(cause, code, first_in_list):
    scene = running()
    dead, other = (0, 1) if first_in_list == "cause" else (1, 0)
    pods = [
        scene.ended_pod(1, code, failed_outcome(cause, "the cause"), dead),
        scene.ended_pod(1, 73, failed_outcome("PeerLost", "rank 1 is gone"), other),
    ]
    # the Job names whichever pod comes first in its list, except that a plain deletion is noticed by itself
    named = code if first_in_list == "cause" or cause == "Interrupted" else 73
    record = failed(scene, exited(named), *sorted(pods, key=lambda pod: pod["metadata"]["name"]))
    assert (record["reason"], record["message"], record["node"]) == (cause, "the cause", f"node-{dead}")


def test_a_sibling_that_the_job_controller_stops_is_not_the_cause_of_a_lost_peer():
    scene = running()
    record = failed(
        scene,
        exited(73),
        scene.ended_pod(1, 73, failed_outcome("PeerLost", "the network is gone"), 0),
        scene.ended_pod(1, 74, failed_outcome("Interrupted", "SIGTERM"), 1),
    )
    assert (record["reason"], record["charged"]) == ("PeerLost", True)


def test_one_rank_killed_for_memory_while_its_launcher_lives_is_out_of_memory():
    scene = running()
    record = failed(
        scene,
        exited(137),
        scene.ended_pod(1, 137, failed_outcome("HostOutOfMemory", "rank 3 was killed: 16 GiB")),
    )
    assert (record["reason"], record["message"]) == ("HostOutOfMemory", "rank 3 was killed: 16 GiB")


@pytest.mark.parametrize(
    "pod",
    [
        pytest.param(
            lambda s: s.ended_pod(1, 74, failed_outcome("Interrupted"), **DISRUPTED), id="it saved and left"
        ),
        pytest.param(lambda s: s.ended_pod(1, 137, **DISRUPTED), id="it was killed"),
        pytest.param(
            lambda s: s.ended_pod(1, 73, failed_outcome("PeerLost"), **DISRUPTED), id="its peer went first"
        ),
        pytest.param(
            lambda s: s.pod(
                1, phase="Failed", reason="Evicted", message="The node was low on resource: memory."
            ),
            id="evicted before it ran",
        ),
    ],
)
def test_what_the_cluster_takes_is_not_charged(pod):
    scene = running()
    record = failed(scene, taken(), pod(scene))
    assert (record["reason"], record["charged"]) == ("Disrupted", False)
    assert scene.status.get("restarts", 0) == 0


def test_what_a_taken_pod_found_wrong_itself_still_counts():
    scene = running()
    failed(scene, taken(), scene.ended_pod(1, 71, failed_outcome("UserError", "bad row"), **DISRUPTED))
    assert scene.says("Failed") == ("True", "UserError")


def test_a_deleted_pod_that_was_killed_after_its_grace_period_was_interrupted():
    scene = running()
    deleted = {"metadata": {"deletionTimestamp": "2026-01-01T12:00:01Z"}}
    record = failed(scene, exited(137), scene.ended_pod(1, 137, **deleted))
    assert (record["reason"], record["charged"]) == ("Interrupted", False)


def test_a_pod_that_is_deleted_before_it_ran_was_interrupted():
    scene = running()
    never = {"metadata": {"deletionTimestamp": "2026-01-01T12:00:01Z"}, "phase": "Failed"}
    assert failed(scene, exited(74), scene.pod(1, 0, **never))["reason"] == "Interrupted"


@pytest.mark.parametrize(("code", "word"), [(137, "ContainerStatusUnknown"), (255, "Unknown")])
def test_a_container_of_which_nobody_knows_after_a_reboot_is_not_charged(code, word):
    scene = running()
    record = failed(scene, exited(code), scene.ended_pod(1, code, reason=word))
    assert (record["reason"], record["charged"]) == ("Disrupted", False)


def test_a_dead_node_that_the_peers_notice_first_is_not_charged():
    scene = running()
    told = failed_outcome("PeerLost", "rank 1 cannot be reached", last_verified_step=40)
    dead = scene.pod(1, 1, phase="Running", metadata={"deletionTimestamp": "2026-01-01T12:00:10Z"})
    scene.end(1, exited(73), [scene.ended_pod(1, 73, told), dead], kind="FailureTarget")
    scene.step(60)
    record = scene.attempt(1)
    assert (record["reason"], record["charged"]) == ("NodeLost", False)
    assert scene.status["lastVerifiedStep"] == 40, "what the peers said of the checkpoints counts"


def test_a_cause_that_only_the_jobs_message_knows_counts_although_a_survivor_was_heard():
    scene = running()
    record = failed(scene, exited(137), scene.ended_pod(1, 73, failed_outcome("PeerLost"), 1))
    assert record["reason"] == "HostOutOfMemory"


@pytest.mark.parametrize(
    "message",
    [
        "not json at all",
        '{"outcome": "Failed"',
        '{"outcome":"Failed","reason":"x","failureClass":"NoSuchClass"}',
        '{"outcome":"Failed","reason":"x","exitCode":-5}',
        '{"outcome":"Failed","reason":"x","lastStep":99999999999999999999}',
        "[]",
        "{" * 4000,
    ],
    ids=["text", "cut", "class", "negative", "huge", "array", "deep"],
)
def test_a_malformed_message_is_no_message_and_its_text_a_note(message):
    scene = running()
    record = failed(scene, exited(70), scene.ended_pod(1, 70, message))
    assert record["reason"] == "Crash"
    assert record["message"].startswith("pod 0 (exit code 70): the trainer ended unexpectedly: ")
    assert len(record["message"]) <= 512


def test_the_kubelets_words_are_kept_when_the_container_could_not_start():
    scene = running()
    words = 'exec: "python": executable file not found in $PATH'
    record = failed(scene, exited(128), scene.ended_pod(1, 128, words, reason="StartError"))
    assert record["message"] == f"pod 0 (exit code 128, StartError): the trainer ended unexpectedly: {words}"


def test_a_reason_that_is_no_word_is_replaced_by_its_class():
    scene = running()
    said = failed_outcome("UserError", "bad").replace('"reason":"UserError"', '"reason":"rm -rf /"')
    failed(scene, exited(71), scene.ended_pod(1, 71, said))
    assert scene.says("Failed") == ("True", "UserError")


def test_control_characters_do_not_reach_the_status():
    scene = running()
    said = failed_outcome("Crash", "red \x1b[31mtext\nand a new line")
    assert failed(scene, exited(70), scene.ended_pod(1, 70, said))["message"] == "red [31mtext and a new line"


def test_an_attempt_is_not_judged_before_its_last_pod_is_down():
    scene = running()
    pods = [scene.ended_pod(1, 73, failed_outcome("PeerLost")), scene.pod(1, 1, phase="Running")]
    scene.end(1, exited(73), pods, kind="FailureTarget")
    scene.job(1)["status"]["active"] = 1
    scene.step(1)
    assert scene.says("Running") == ("False", "Stopping")
    assert scene.attempt(1)["state"] == "Running"
    scene.end(1, exited(73), [pods[0], scene.ended_pod(1, 70, failed_outcome("Crash", "the cause"), 1)])
    scene.step(5)
    assert (scene.attempt(1)["reason"], scene.attempt(1)["message"]) == ("Crash", "the cause")


def test_pods_of_another_job_with_the_same_labels_are_not_heard():
    scene = running()
    stranger = scene.ended_pod(1, 71, failed_outcome("UserError", "not mine"))
    stranger["metadata"]["ownerReferences"][0]["uid"] = "another"
    assert failed(scene, exited(70), stranger)["reason"] == "Crash"


def test_a_lost_node_is_gone_on_without():
    """The pod stays Running+Terminating for ever: new names, and the old Job is released."""
    scene = running()
    scene.job(1)["status"] = {"active": 1, "ready": 1, "terminating": 1, "startTime": "2026-01-01T12:00:05Z"}
    stuck = scene.pod(1, 1, phase="Running", metadata={"deletionTimestamp": "2026-01-01T12:05:00Z"})
    scene.pods = [scene.pod(1, 0, phase="Running"), stuck]
    scene.step(300)
    assert scene.says("Running")[1] != "Restarting", "it still has half a minute"
    scene.step(31)
    assert (scene.attempt(1)["reason"], scene.attempt(1)["charged"]) == ("NodeLost", False)
    assert not scene.jobs()
    scene.step(10)
    assert [job["metadata"]["name"] for job in scene.jobs()] == ["bot-2"]


def test_a_job_that_somebody_deleted_counts_as_disrupted():
    scene = running()
    del scene.objects[next(ref for ref in scene.objects if ref.name == "bot-1" and ref.kind == "Job")]
    scene.step(5)
    assert scene.attempt(1)["reason"] == "Disrupted"
    assert "Job bot-1 was deleted" in scene.attempt(1)["message"]
    scene.step(10)
    assert scene.jobs()[0]["metadata"]["name"] == "bot-2"


def test_a_job_that_the_view_does_not_show_yet_is_asked_for_and_not_replaced():
    scene = running()
    scene.end(1, exited(70), [scene.ended_pod(1, 70)])
    scene.step(5)
    scene.step(10)
    scene.run(2)
    scene.hidden = {"bot-2"}
    last = scene.step(5)
    assert [ref.name for ref in scene.needs.jobs] == ["bot-2"]
    assert last.effects == ()
    assert scene.attempt(2)["state"] == "Running"


def test_a_job_that_status_does_not_know_yet_is_adopted():
    scene = running()
    before = dict(scene.status)
    scene.end(1, exited(70), [scene.ended_pod(1, 70)])
    scene.step(5)
    scene.step(10)
    scene.run(2)
    scene.manifest["status"] = before
    last = scene.step(5)
    assert last.effects == ()
    assert scene.attempt(2)["state"] == "Running"


def beside(*jobs) -> Scene:
    """A new SFTJob under the name of an earlier one that has left these Jobs."""
    scene = Scene()
    scene.manifest["metadata"]["uid"] = "another"
    scene.objects = {ref_of(job): job for job in jobs}
    return scene


@pytest.mark.parametrize(
    ("going", "words"),
    [
        (True, "Job bot-1 of an earlier SFTJob of this name is still being removed"),
        (False, "Job bot-1 is labelled as one of this SFTJob and belongs to another owner: delete it if it"),
    ],
    ids=["being deleted", "not yet"],
)
def test_jobs_of_an_earlier_job_of_this_name_are_waited_for_less_and_less_often(going, words):
    old = running()
    if going:
        old.job(1)["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:00Z"
    scene = beside(old.job(1))
    waits = []
    for seconds in (0, 5, 10, 15, 30, 600):
        last = scene.step(seconds)
        assert last.effects == ()
        waits.append(last.requeue_after)
    assert waits == [5, 10, 15, 30, 60, 60]
    assert scene.says("Running") == ("False", "NameTaken")
    assert scene.condition("Running")["message"].startswith(words)
    scene.objects = {}
    scene.step(2)
    assert scene.says("Running") == ("False", "Preparing")


def test_jobs_that_kubectl_delete_has_orphaned_are_not_waited_for():
    old = running()
    orphan = old.job(1)
    del orphan["metadata"]["ownerReferences"]
    scene = beside(orphan)
    scene.step()
    assert scene.says("Running") == ("False", "Preparing")


def test_137_of_the_contract_is_the_hosts_memory():
    assert EXIT_CLASSES[ExitCode.KILLED] is FailureClass.HOST_OUT_OF_MEMORY
