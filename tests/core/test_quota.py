"""Quotas of namespaces: who holds, who waits, whose turn it is, and what each of them is told."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sftjob_operator.effects import Create, Patch
from sftjob_operator.planning.hardware import Hardware
from sftjob_operator.policy.quota import next_in_line, standing
from sftjob_operator.quotas import Quota, Quotas
from sftjob_operator.settings import Settings
from sftjob_operator.world import Standing
from worlds import Scene, exited, failed_outcome, progress, sftjob

GPUS = Hardware(gpu_memory_bytes=80 * 2**30)


def scene(per_node: int = 4, **quota: int) -> Scene:
    """A job of two nodes in a namespace with this quota."""
    made = Scene(sftjob(workers={"gpusPerNode": per_node}), GPUS)
    allow(made, **quota)
    return made


def allow(made: Scene, **quota: int) -> None:
    made.settings = replace(made.settings, quotas=Quotas(jobs=0, namespaces={"team": Quota(**quota)}))


def holder(name: str, gpus: int = 0, created: str = "2026-01-01T11:00:00Z") -> Standing:
    return Standing(name, created, gpus, True)


def waiter(name: str, gpus: int = 0, created: str = "2026-01-01T11:00:00Z") -> Standing:
    return Standing(name, created, gpus, False)


def stands(made: Scene) -> tuple[int, bool] | None:
    """GPUs, and whether they are held."""
    found = standing(made.manifest)
    return None if found is None else (found.gpus, found.holds)


def scale(made: Scene, nodes: int) -> None:
    made.manifest["spec"]["workers"]["nodes"] = nodes
    made.manifest["metadata"]["generation"] += 1


def fails(made: Scene, seconds: int = 5) -> None:
    """Its pods end by themselves."""
    made.progress = None
    made.end(1, exited(137), [made.ended_pod(1, 137, failed_outcome("HostOutOfMemory"))])
    made.step(seconds)


def pods_of(made: Scene, number: int) -> int:
    return made.job(number)["spec"]["parallelism"]


def stops(made: Scene) -> None:
    """It is suspended, and its pods are down."""
    made.manifest["spec"]["suspend"] = True
    made.step(5)
    made.suspend(1)
    made.step(5)


# ------------------------------------------------------------------ the setting


def test_a_namespace_that_is_named_has_its_own_quota_and_nothing_of_the_default() -> None:
    text = '{"jobs": 5, "gpus": null, "namespaces": {"team-a": {"gpus": 64}, "free": {}}}'
    quotas = Settings.from_environment({"SFTJOB_OPERATOR_QUOTAS": text}).quotas
    assert quotas.of("other").jobs == 5
    assert (quotas.of("team-a").jobs, quotas.of("team-a").gpus) == (None, 64)
    assert not quotas.of("free").is_set
    assert not Settings().quotas.of("other").is_set


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("jobs: 5", "no JSON"),
        ("[]", "the whole: Input should be a valid dict"),
        ('{"gpu": 5}', "gpu: Extra inputs are not permitted"),
        (
            '{"namespaces": {"team-a": {"gpus": -1}}}',
            r"namespaces\.team-a\.gpus: .*greater than or equal to 0",
        ),
        ('{"jobs": "5"}', "jobs: Input should be a valid integer"),
        ('{"jobs": true}', "jobs: Input should be a valid integer"),
    ],
)
def test_a_wrong_setting_is_named_with_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=rf"SFTJOB_OPERATOR_QUOTAS=.*{words}"):
        Settings.from_environment({"SFTJOB_OPERATOR_QUOTAS": text})


# ------------------------------------------------------------------ whose turn it is


@pytest.mark.parametrize(
    ("quota", "standings", "turn"),
    [
        pytest.param({"jobs": 2}, [holder("a"), waiter("b"), waiter("c")], ["b"], id="one place"),
        pytest.param({"jobs": 1}, [holder("a"), waiter("b")], [], id="no place"),
        pytest.param({"gpus": 8}, [holder("a", 4), waiter("b", 8), waiter("c", 4)], [], id="nobody passes"),
        pytest.param(
            {"gpus": 8}, [holder("a", 4), waiter("b", 8), waiter("c", 0)], ["c"], id="but without GPUs"
        ),
        pytest.param(
            {"gpus": 8, "jobs": 2},
            [holder("a", 4), waiter("b", 8), waiter("c", 0)],
            [],
            id="unless for its place",
        ),
        pytest.param(
            {"gpus": 8}, [waiter("z", 4), waiter("y", 4, "2026-01-01T12:00:00Z")], ["z", "y"], id="by time"
        ),
        pytest.param({"gpus": 8}, [waiter("b", 8), waiter("a", 4)], ["a"], id="by name in the same second"),
        pytest.param(
            {"gpus": 8}, [waiter("a", 16), waiter("b", 8)], ["b"], id="nobody waits for the impossible"
        ),
        pytest.param({"gpus": 8}, [holder("a", 16), waiter("b", 1)], [], id="a quota made smaller"),
        pytest.param({}, [holder("a", 16), waiter("b", 1)], ["b"], id="no quota"),
    ],
)
def test_a_job_starts_when_it_fits_beside_those_that_run_and_those_that_wait_before_it(
    quota: dict[str, int], standings: list[Standing], turn: list[str]
) -> None:
    assert next_in_line(Quota(**quota), standings) == turn


# ------------------------------------------------------------------ a job and its neighbours


def test_without_room_no_attempt_is_made_and_the_condition_says_who_has_what() -> None:
    made = scene(8, gpus=24)
    made.neighbours = [holder("a", 8), holder("b", 0), holder("c", 4), waiter("old", 16)]
    made.prepare()
    last = made.step()
    assert last.effects == ()
    assert made.says("Running") == ("False", "NamespaceQuota")
    assert made.condition("Running")["message"] == (
        "namespace team may have 24 GPUs at a time: 12 in use (a 8, c 4), 16 asked for; "
        "it is number 2 in the line, after old, and starts by itself"
    )
    assert made.status["phase"] == "Queued"
    assert made.says("Planned") == ("True", "Fits")
    assert "startTime" not in made.status, "the spec can still be changed"
    assert stands(made) == (16, False)
    made.neighbours = [holder("a", 8)]
    made.step(5)
    assert made.says("Running") == ("False", "ContainerCreating")
    assert (made.status["nodes"], made.status["gpus"]) == (2, 16)
    assert stands(made) == (16, True)


def test_what_is_free_is_kept_for_an_earlier_job_that_needs_more_of_it() -> None:
    made = scene(1, gpus=8)
    made.neighbours = [holder("a", 4), waiter("large", 8)]
    made.prepare()
    made.step()
    assert "number 2 in the line, after large" in made.condition("Running")["message"]
    made.neighbours = [holder("a", 4), waiter("large", 8, "2026-01-01T13:00:00Z")]
    made.step(5)
    assert made.job(1)["spec"]["parallelism"] == 2


def test_the_number_of_jobs_is_limited_alike() -> None:
    made = scene(0, jobs=4)
    made.neighbours = [holder(name) for name in "abcd"]
    made.prepare()
    made.step()
    assert made.condition("Running")["message"] == (
        "namespace team may have 4 jobs at a time: 4 in use (a, b, c and 1 more), 1 asked for; "
        "it is number 1 in the line, and starts by itself"
    )


def test_preparation_takes_no_gpu_and_waits_for_nobody() -> None:
    made = scene(jobs=1)
    made.neighbours = [holder("a", 8)]
    made.step()
    assert made.says("Running") == ("False", "Preparing")
    assert stands(made) is None


@pytest.mark.parametrize(
    ("quota", "words"),
    [
        (
            {"gpus": 7},
            "spec.workers asks for 8 GPUs (nodes 2 x gpusPerNode 4), and namespace team may have 7 at a time: ask for "
            "fewer, or ask the platform's owner for another quota",
        ),
        (
            {"jobs": 0},
            "namespace team may have no SFTJobs: create it in another namespace, or ask the platform's owner for "
            "another quota",
        ),
    ],
)
def test_what_the_whole_quota_is_too_small_for_is_told_before_anything_is_prepared(
    quota: dict[str, int], words: str
) -> None:
    made = scene(**quota)
    assert made.step().effects == ()
    assert made.says("Accepted") == ("False", "NamespaceQuotaTooSmall")
    assert made.condition("Accepted")["message"] == words
    assert (made.says("Running"), made.status["phase"]) == (("False", "NotAccepted"), "Rejected")
    assert made.last.requeue_after is None, "no loop"
    allow(made, gpus=8)
    made.step()
    assert made.says("Running") == ("False", "Preparing")


def test_a_restart_keeps_its_share_though_the_quota_was_made_smaller_and_others_wait() -> None:
    made = scene(8)
    made.start()
    made.neighbours = [holder("a", 8), waiter("old", 8)]
    allow(made, gpus=16)
    assert stands(made) == (16, True)
    fails(made)
    assert made.says("Running") == ("False", "Restarting")
    assert stands(made) == (16, True)
    made.step(60)
    assert [job["metadata"]["name"] for job in made.jobs()][-1] == "bot-2"


def test_a_quota_that_a_job_no_longer_fits_into_takes_nothing_from_it_while_it_has_its_share() -> None:
    made = scene(8)
    made.start()
    allow(made, gpus=8)
    made.step(5)
    assert made.says("Accepted")[0] == "True"
    fails(made)
    made.step(60)
    assert pods_of(made, 2) == 2
    assert stands(made) == (16, True)


def test_what_gave_its_share_away_is_told_that_the_quota_has_become_too_small() -> None:
    made = scene(4, gpus=8)
    made.start()
    stops(made)
    allow(made, gpus=4)
    made.manifest["spec"]["suspend"] = False
    made.step(5)
    assert made.says("Accepted") == ("False", "NamespaceQuotaTooSmall")
    assert made.says("Running") == ("False", "NotAccepted")
    assert stands(made) is None
    allow(made, gpus=8)
    made.step(5)
    assert made.job(1)["spec"]["suspend"] is False


@pytest.mark.parametrize("others", [[holder("a", 4)], [waiter("old", 8)]], ids=["full", "line"])
def test_a_restart_with_more_nodes_keeps_the_size_it_has_until_there_is_room(others: list[Standing]) -> None:
    made = scene(2, gpus=8)
    made.start()
    made.progress = progress()
    made.neighbours = others
    scale(made, 4)
    made.step(10)
    fails(made)
    made.step(60)
    assert pods_of(made, 2) == 2
    made.starting(2, [made.pod(2, phase="Pending")])
    made.step(5)
    assert stands(made) == (4, True)
    assert [job["metadata"]["name"] for job in made.jobs()] == ["bot-1", "bot-2"], (
        "not replaced again and again"
    )


def test_more_nodes_while_the_pods_start_are_no_way_past_the_line() -> None:
    made = scene(1, gpus=8)
    made.prepare()
    made.step()
    made.starting(1, [made.pod(1, phase="Pending")])
    made.neighbours = [waiter("old", 8)]
    scale(made, 8)
    for _ in range(4):
        made.step(5)
    assert pods_of(made, 1) == 2
    assert stands(made) == (2, True)
    made.neighbours = []
    for _ in range(4):
        made.step(5)
    assert pods_of(made, 2) == 8


def test_a_gang_that_stopped_for_another_size_goes_on_in_its_own_where_there_is_no_room_for_a_third() -> None:
    made = scene(2, gpus=8)
    made.start()
    made.progress = progress()
    made.neighbours = [holder("a", 4)]
    scale(made, 1)
    made.step(10)
    assert made.says("Running") == ("False", "Resizing")
    made.progress = None
    scale(made, 4)
    made.step(5)
    made.suspend(1)
    made.step(5)
    assert (pods_of(made, 1), made.job(1)["spec"]["suspend"]) == (2, False)
    assert stands(made) == (4, True)


def test_time_in_the_line_is_not_active_time() -> None:
    made = scene(2, gpus=8)
    made.manifest["spec"]["activeDeadlineSeconds"] = 3600
    made.start()
    stops(made)
    made.neighbours = [holder("a", 8)]
    made.manifest["spec"]["suspend"] = False
    scale(made, 1)
    made.step(5)
    made.step(3700)
    assert made.says("Running") == ("False", "NamespaceQuota")
    assert made.says("Failed")[0] == "False"
    made.neighbours = []
    for _ in range(4):
        made.step(5)
    assert pods_of(made, 2) == 1
    made.step(3000)
    assert made.says("Failed")[0] == "False"
    made.step(700)
    assert made.says("Failed") == ("True", "DeadlineExceeded")


def test_a_job_that_cannot_go_on_between_two_attempts_gives_its_share_away() -> None:
    made = scene()
    made.start()
    fails(made)
    made.missing = list(made.needs.prerequisites)
    made.step(60)
    assert made.says("Running") == ("False", "VolumeMissing")
    assert stands(made) is None


def test_a_suspended_job_gives_its_share_away_when_its_pods_are_down_and_asks_for_it_again() -> None:
    made = scene(4, gpus=8)
    made.start()
    made.manifest["spec"]["suspend"] = True
    made.step(5)
    assert stands(made) == (8, True), "its pods still save"
    made.suspend(1)
    made.step(5)
    assert stands(made) is None
    made.neighbours = [holder("a", 4)]
    made.manifest["spec"]["suspend"] = False
    made.step(5)
    assert made.says("Running") == ("False", "NamespaceQuota")
    assert made.job(1)["spec"]["suspend"] is True
    assert stands(made) == (8, False)
    made.neighbours = []
    assert [type(effect) for effect in made.step(5).effects] == [Patch]
    assert made.job(1)["spec"]["suspend"] is False
    assert stands(made) == (8, True)


def test_a_pause_after_a_failure_is_no_share_for_a_job_that_was_suspended_in_it() -> None:
    made = scene(gpus=8)
    made.start()
    fails(made, 1)
    made.manifest["spec"]["suspend"] = True
    made.step(1)
    made.manifest["spec"]["suspend"] = False
    made.step(1)
    assert made.says("Running") == ("False", "Pending")
    assert stands(made) is None
    made.neighbours = [holder("a", 8)]
    made.step(60)
    assert made.says("Running") == ("False", "NamespaceQuota")


def test_another_size_for_a_suspended_job_is_no_way_past_the_line() -> None:
    made = scene(2, gpus=8)
    made.start()
    stops(made)
    made.neighbours = [holder("a", 8)]
    made.manifest["spec"]["suspend"] = False
    scale(made, 1)
    made.step(5)
    assert made.says("Running") == ("False", "NamespaceQuota")
    assert not made.jobs()
    made.neighbours = []
    made.step(5)
    assert made.job(2)["spec"]["parallelism"] == 1


def test_what_a_queue_holds_does_not_count_until_the_queue_lets_it_go() -> None:
    made = scene()
    made.prepare()
    made.step()
    made.job(1)["spec"]["suspend"] = True
    made.step(5)
    assert made.says("Running") == ("False", "Queued")
    assert stands(made) is None
    made.job(1)["spec"]["suspend"] = False
    made.run(1)
    made.step(5)
    assert stands(made) == (8, True)


def test_a_gang_is_not_stopped_for_a_larger_one_that_has_no_room() -> None:
    made = scene(2, gpus=8)
    made.start()
    made.progress = progress()
    made.neighbours = [waiter("b", 2, "2026-01-02T00:00:00Z"), holder("a", 2)]
    scale(made, 4)
    assert made.step(10).effects == ()
    assert made.says("Running")[0] == "True"
    assert made.condition("Running")["message"].endswith(
        "spec.workers.nodes: 4 is not taken up: namespace team may have 8 GPUs at a time: 2 in use (a 2), 8 asked for, "
        "and before it waits b"
    )
    assert stands(made) == (4, True)
    made.neighbours = []
    made.step(10)
    assert made.says("Running") == ("False", "Resizing")
    assert stands(made) == (8, True), "nobody may take it while the pods stop"
    made.progress = None
    made.suspend(1)
    made.step(5)
    assert made.job(2)["spec"]["parallelism"] == 4
    assert stands(made) == (8, True)


def test_fewer_gpus_in_the_spec_do_not_hide_those_that_the_attempt_has() -> None:
    made = scene(8, gpus=16)
    made.start()
    made.manifest["spec"]["workers"]["gpusPerNode"] = 1
    made.manifest["metadata"]["generation"] += 1
    made.step(5)
    assert stands(made) == (16, True)


def test_a_gang_that_no_node_has_room_for_holds_its_share() -> None:
    made = scene()
    made.prepare()
    made.step()
    waiting = made.pod(
        1,
        phase="Pending",
        conditions=[{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}],
    )
    made.starting(1, [waiting])
    made.step(60)
    assert made.says("Running") == ("False", "Unschedulable")
    assert stands(made) == (8, True)


def test_who_waits_and_is_suspended_paused_or_another_controllers_leaves_the_line() -> None:
    made = scene(jobs=1)
    made.neighbours = [holder("a")]
    made.prepare()
    made.step()
    assert stands(made) == (8, False)
    before = json.dumps(made.manifest)
    made.manifest["spec"]["suspend"] = True
    assert stands(made) is None
    made.manifest = json.loads(before)
    made.manifest["metadata"]["annotations"] = {"sftjob.dev/paused": "true"}
    assert stands(made) is None
    made.manifest = json.loads(before)
    made.manifest["spec"]["managedBy"] = "kueue.x-k8s.io/multikueue"
    assert stands(made) is None


def test_a_job_of_an_operator_that_wrote_no_gpus_down_counts_by_its_spec() -> None:
    made = scene()
    made.start()
    del made.manifest["status"]["gpus"]
    assert stands(made) == (8, True)


def test_what_ended_holds_nothing() -> None:
    made = scene()
    made.start()
    made.manifest["spec"]["activeDeadlineSeconds"] = 60
    made.step(120)
    assert made.says("Failed") == ("True", "DeadlineExceeded")
    assert stands(made) is None


def test_an_announced_attempt_holds_before_anything_of_it_is_made() -> None:
    made = scene(jobs=1)
    made.prepare()
    made.take_pass()
    assert not any(isinstance(effect, Create) for effect in made.last.effects)
    assert stands(made) == (8, True)
