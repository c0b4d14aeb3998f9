"""The shell with the real core: a job's whole life against a cluster in memory, and every way it breaks."""

from __future__ import annotations

import asyncio
import json

import pytest

from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.cluster.base import (
    ClusterError,
    Conflict,
    NotFound,
    Ref,
    Rejected,
)
from sftjob_operator.planning.hardware import Hardware
from sftjob_operator.reconcile import Reconciler
from sftjob_operator.settings import Settings
from shell.operating import ATTEMPT, KEY, SFTJOB, claim, operating
from worlds import exited, failed_outcome, prepared_outcome, progress, sftjob, trained_outcome

pytestmark = pytest.mark.looptime


async def test_a_whole_life_from_apply_to_complete() -> None:
    async with operating() as operator:
        cluster = operator.cluster
        cluster.put(claim())
        cluster.put(sftjob())
        await asyncio.sleep(1)
        assert [name.rsplit("-", 1)[0] for name in operator.jobs()] == ["bot-prepare"]
        assert operator.says("Running") == ("False", "Preparing")

        operator.ends(operator.prepare_job(), 0, prepared_outcome())
        await asyncio.sleep(1)
        assert ATTEMPT in cluster.objects
        assert Ref("v1", "Service", "team", "bot") in cluster.objects
        assert Ref("v1", "ConfigMap", "team", "bot-1") in cluster.objects
        assert operator.says("Planned") == ("True", "Fits")

        operator.runs(ATTEMPT)
        cluster.progress = progress(step=120).model_dump_json(by_alias=True).encode()
        await asyncio.sleep(25)
        assert operator.says("Running") == ("True", "TrainingSteps")
        assert operator.status["progress"]["display"] == "120/480"
        assert operator.reconciler.progress[KEY].step == 120

        operator.ends(ATTEMPT, 0, trained_outcome())
        await asyncio.sleep(1)
        assert operator.says("Complete") == ("True", "Trained")
        assert operator.status["result"]["export"] == "jobs/bot/export"
        assert operator.reconciler.progress == {}, "a finished job has no progress gauges"

        before = len(cluster.calls)
        await asyncio.sleep(3600)
        assert len(cluster.calls) == before, "a finished job costs nothing"
        assert set(operator.results) == {"ok"}


async def test_events_tell_the_life_in_the_order_of_the_conditions_and_after_the_status() -> None:
    async with operating() as operator:
        await operator.trains()
        operator.ends(ATTEMPT, 0, trained_outcome())
        await asyncio.sleep(1)
        reasons = [event.reason for event in operator.cluster.events]
        assert reasons[-1] == "Trained"
        assert reasons.index("DataReady") < reasons.index("Trained")
        calls = operator.cluster.calls
        first_event = calls.index(("emit_event", "Event"))
        assert ("patch_status", "SFTJob") in calls[:first_event]


async def test_a_settled_pass_writes_nothing() -> None:
    async with operating() as operator:
        await operator.trains()
        await asyncio.sleep(60)
        writes = len(operator.cluster.writes())
        for _ in range(20):
            operator.queue.add(KEY)
            await asyncio.sleep(0.1)
        assert len(operator.cluster.writes()) == writes


async def test_a_failed_attempt_is_followed_by_the_next_after_its_back_off() -> None:
    async with operating() as operator:
        await operator.trains()
        operator.ends(ATTEMPT, 70, failed_outcome("Crash", "boom"), exited(70))
        await asyncio.sleep(2)
        assert operator.says("Running") == ("False", "Restarting")
        assert "bot-2" not in operator.jobs()
        await asyncio.sleep(15)
        assert "bot-2" in operator.jobs()
        assert operator.status["restarts"] == 1
        assert operator.says("Failed") == ("False", "InProgress")


async def test_a_user_error_in_preparation_is_final_and_a_second_apply_repairs_it() -> None:
    async with operating() as operator:
        operator.cluster.put(claim())
        operator.cluster.put(sftjob())
        await asyncio.sleep(1)
        first = operator.prepare_job()
        operator.ends(
            first,
            71,
            failed_outcome("UserError", "data/chat.jsonl line 7: no assistant turn", reason="InvalidRow"),
        )
        await asyncio.sleep(60)
        assert operator.says("Failed") == ("True", "InvalidRow")
        assert "line 7" in operator.message("Failed")
        assert operator.jobs() == [first.name]

        repaired = sftjob(data={"train": [{"path": "data/repaired.jsonl"}]})["spec"]
        metadata = {**operator.cluster.objects[SFTJOB]["metadata"], "generation": 2}
        operator.cluster.update(SFTJOB, spec=repaired, metadata=metadata)
        await asyncio.sleep(1)
        assert operator.prepare_job() != first
        assert operator.says("Failed")[0] == "False"


async def test_a_missing_claim_is_waited_for() -> None:
    async with operating() as operator:
        operator.cluster.put(sftjob())
        await asyncio.sleep(1)
        assert operator.says("Running") == ("False", "VolumeMissing")
        assert "ws" in operator.message("Running")
        assert operator.jobs() == []
        await asyncio.sleep(600)
        operator.cluster.put(claim())
        await asyncio.sleep(11)
        assert len(operator.jobs()) == 1


async def test_a_secret_that_may_not_be_read_is_left_to_the_pod_that_needs_it() -> None:
    async with operating() as operator:
        operator.cluster.put(claim())
        operator.cluster.fail("get", "Secret", Rejected(403, "Forbidden", "secrets is forbidden"), times=99)
        operator.cluster.put(sftjob(workers={"imagePullSecrets": [{"name": "regcred"}]}))
        await asyncio.sleep(1)
        assert set(operator.results) == {"ok"}
        assert len(operator.jobs()) == 1


async def test_an_unreadable_spec_is_a_condition_and_no_crash() -> None:
    async with operating() as operator:
        broken = sftjob()
        broken["spec"]["workers"] = {"nodes": "many"}
        operator.cluster.put(broken)
        await asyncio.sleep(5)
        assert operator.says("Accepted") == ("False", "InvalidSpec")
        assert "nodes" in operator.message("Accepted")
        assert set(operator.results) == {"ok"}


async def test_a_defect_of_the_operator_is_a_condition_and_a_traceback_and_passes_by_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = True

    async def hardware(job: SFTJob) -> Hardware:
        if broken:
            raise ZeroDivisionError("division by zero")
        return Hardware()

    async with operating() as operator:
        operator.reconciler._hardware = hardware
        operator.cluster.put(claim())
        operator.cluster.put(sftjob())
        await asyncio.sleep(30)
        assert operator.says("Accepted") == ("False", "InternalError")
        assert "ZeroDivisionError: division by zero" in operator.message("Accepted")
        assert set(operator.results) == {"error"}
        assert "Traceback" in caplog.text
        assert [event.reason for event in operator.cluster.events] == ["InternalError"]
        assert operator.cluster.calls.count(("patch_status", "SFTJob")) == 1
        broken = False
        await asyncio.sleep(60)
        assert operator.says("Accepted") == ("True", "Valid")
        assert len(operator.jobs()) == 1


# ------------------------------------------------------------------ the cluster says no


async def test_a_refused_child_is_a_condition_in_the_servers_words_and_no_retry_loop() -> None:
    words = 'pods "bot-prepare" is forbidden: exceeded quota: gpu-quota'
    async with operating() as operator:
        operator.cluster.put(claim())
        operator.cluster.fail("create", "Job", Rejected(403, "Forbidden", words), times=1000)
        operator.cluster.put(sftjob())
        await asyncio.sleep(10)
        everything = " ".join(item.get("message", "") for item in operator.status["conditions"])
        assert words in everything
        assert set(operator.results) == {"ok"}
        assert operator.cluster.calls.count(("create", "Job")) <= 3


async def test_the_config_map_of_a_job_that_was_never_made_does_not_outlive_a_change_of_the_spec() -> None:
    words = 'jobs.batch "bot-1" is forbidden: exceeded quota: jobs'
    async with operating() as operator:
        cluster = operator.cluster
        cluster.put(claim())
        cluster.put(sftjob())
        await asyncio.sleep(1)
        cluster.fail("create", "Job", Rejected(403, "Forbidden", words), times=2)
        operator.ends(operator.prepare_job(), 0, prepared_outcome())
        await asyncio.sleep(10)
        assert operator.says("Running") == ("False", "QuotaExceeded")
        assert cluster.calls.count(("create", "Job")) == 3, "one to prepare, and one again after the status"
        config = Ref("v1", "ConfigMap", "team", "bot-1")
        assert config in cluster.objects

        spec = cluster.objects[SFTJOB]["spec"] | {"workers": {"nodes": 4, "gpusPerNode": 0}}
        metadata = {**cluster.objects[SFTJOB]["metadata"], "generation": 2}
        cluster.update(SFTJOB, spec=spec, metadata=metadata)
        await asyncio.sleep(10)
        assert ATTEMPT in cluster.objects
        assert len(cluster.objects[config]["data"]["hostfile"].splitlines()) == 4
        assert (operator.status["nodes"], operator.status["plan"]["worldSize"]) == (4, 4)


async def test_a_conflict_with_the_quotas_count_is_tried_again_at_once() -> None:
    words = 'Operation cannot be fulfilled on resourcequotas "jobs": the object has been modified'
    async with operating() as operator:
        operator.cluster.put(claim())
        operator.cluster.fail("create", "Job", Conflict(409, "Conflict", words), times=1)
        operator.cluster.put(sftjob())
        await asyncio.sleep(2)
        assert operator.results[0] == "retry"
        assert len(operator.jobs()) == 1


async def test_a_5xx_is_tried_again_by_the_queue_until_it_passes() -> None:
    async with operating() as operator:
        operator.cluster.put(claim())
        operator.cluster.fail("create", "Job", ClusterError("InternalError (500): etcd is away"), times=4)
        operator.cluster.put(sftjob())
        await asyncio.sleep(30)
        assert operator.results.count("retry") == 4
        assert operator.results[-1] == "ok"
        assert len(operator.jobs()) == 1
        assert len(operator.cluster.of_kind("ConfigMap")) == 1, "what was there already is fine"


async def test_a_status_write_that_fails_is_made_up_for_and_its_events_come_then() -> None:
    async with operating() as operator:
        operator.cluster.put(claim())
        operator.cluster.fail("patch_status", "SFTJob", ClusterError("503"), times=1)
        operator.cluster.put(sftjob())
        await asyncio.sleep(5)
        assert operator.results[0] == "retry"
        assert operator.says("Accepted") == ("True", "Valid")
        assert len(operator.jobs()) == 1


async def test_a_child_of_an_earlier_sftjob_of_this_name_is_waited_out() -> None:
    async with operating() as operator:
        await operator.trains()
        config = Ref("v1", "ConfigMap", "team", "bot-1")
        stale = operator.cluster.objects[config]
        await operator.cluster.delete(SFTJOB)
        stale["metadata"]["ownerReferences"][0]["uid"] = "uid-of-an-earlier-job"
        operator.cluster.put(stale)  # the garbage collector is slow
        operator.cluster.put(sftjob())
        await asyncio.sleep(1)
        operator.ends(operator.prepare_job(), 0, prepared_outcome())
        await asyncio.sleep(20)
        assert ATTEMPT not in operator.cluster.objects, "it would run with the other job's configuration"
        assert operator.says("Running") == ("False", "NameTaken")
        assert operator.message("Running") == (
            "ConfigMap bot-1 exists already and belongs to an earlier SFTJob bot: "
            "delete it if it does not go by itself, or create this job under another name"
        )
        assert set(operator.results) == {"ok"}
        del operator.cluster.objects[config]
        await asyncio.sleep(60)
        assert ATTEMPT in operator.cluster.objects
        assert operator.cluster.objects[config]["metadata"]["uid"] != stale["metadata"]["uid"]


async def test_a_service_of_someone_elses_with_the_jobs_name_is_left_alone() -> None:
    theirs = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "team", "name": "bot"},
        "spec": {"selector": {"app": "bot"}},
    }
    async with operating() as operator:
        before = operator.cluster.put(theirs)
        operator.cluster.put(claim())
        operator.cluster.put(sftjob())
        await asyncio.sleep(1)
        operator.ends(operator.prepare_job(), 0, prepared_outcome())
        await asyncio.sleep(20)
        service = Ref("v1", "Service", "team", "bot")
        assert operator.cluster.objects[service] == before
        assert operator.says("Running") == ("False", "NameTaken")
        assert "Service bot exists already and is not of this SFTJob" in operator.message("Running")
        assert set(operator.results) == {"ok"}
        await operator.cluster.delete(service)
        await asyncio.sleep(60)
        assert ATTEMPT in operator.cluster.objects


async def test_our_own_service_is_brought_up_to_date_with_every_attempt() -> None:
    async with operating() as operator:
        await operator.trains()
        service = Ref("v1", "Service", "team", "bot")
        spec = operator.cluster.objects[service]["spec"]
        operator.cluster.update(service, spec={**spec, "publishNotReadyAddresses": False})
        operator.ends(ATTEMPT, 70, failed_outcome("Crash", "boom"), exited(70))
        await asyncio.sleep(20)
        assert "bot-2" in operator.jobs()
        assert operator.cluster.objects[service]["spec"] == spec


# ------------------------------------------------------------------ late views, lost objects, new processes


async def test_a_view_that_lags_behind_makes_no_second_job() -> None:
    async with operating() as operator:
        operator.cluster.put(claim())
        operator.cluster.put(sftjob())
        operator.cluster.freeze()  # nothing of what this pass writes will be seen
        for _ in range(40):
            operator.queue.add(KEY)
            await asyncio.sleep(0.1)
        assert operator.cluster.calls.count(("create", "Job")) == 1
        operator.cluster.thaw()
        await asyncio.sleep(1)
        assert len(operator.jobs()) == 1


async def test_a_view_that_does_not_catch_up_makes_nothing_twice_and_one_attempt_in_the_end() -> None:
    async with operating() as operator:
        await operator.trains()
        operator.ends(ATTEMPT, 70, failed_outcome("Crash", "boom"), exited(70))
        await asyncio.sleep(2)
        operator.cluster.freeze()
        for _ in range(300):
            operator.queue.add(KEY)
            await asyncio.sleep(0.2)
        assert [name for name in operator.jobs() if "prepare" not in name] == ["bot-1"]
        operator.cluster.thaw()
        await asyncio.sleep(1)
        assert [name for name in operator.jobs() if "prepare" not in name] == ["bot-1", "bot-2"]
        assert operator.status["restarts"] == 1


async def test_a_status_write_that_is_lost_as_the_attempt_is_made_costs_nothing() -> None:
    async with operating() as operator:
        operator.cluster.put(claim())
        operator.cluster.put(sftjob())
        await asyncio.sleep(1)
        operator.cluster.fail("create", "Job", ClusterError("503"), times=1)
        operator.ends(operator.prepare_job(), 0, prepared_outcome())
        await asyncio.sleep(0.1)
        assert ATTEMPT not in operator.cluster.objects
        assert operator.status["startTime"]
        operator.cluster.fail("patch_status", "SFTJob", ClusterError("503"), times=1)
        await asyncio.sleep(10)
        assert ATTEMPT in operator.cluster.objects
        assert operator.status["plan"]["worldSize"] == 2
        assert operator.status["attempts"][0]["runs"] == 1


async def test_a_spec_edited_while_a_pass_decides_is_looked_at_before_the_start_freezes_it() -> None:
    async with operating() as operator:
        cluster = operator.cluster
        cluster.put(claim())
        cluster.put(sftjob())
        await asyncio.sleep(1)
        operator.ends(operator.prepare_job(), 0, prepared_outcome())
        cluster.freeze()  # the pass that this wakes does not see what follows
        edited = sftjob(training={"learningRate": 0.5})["spec"]
        metadata = {**cluster.objects[SFTJOB]["metadata"], "generation": 2}
        cluster.update(SFTJOB, spec=edited, metadata=metadata)
        await asyncio.sleep(20)
        assert "startTime" not in operator.status
        cluster.thaw()
        await asyncio.sleep(5)
        config = cluster.objects[Ref("v1", "ConfigMap", "team", "bot-1")]
        assert json.loads(config["data"]["train.json"])["training"]["learningRate"] == 0.5


async def test_an_attempt_that_would_be_refused_does_not_start_the_job() -> None:
    words = 'Job.batch "bot-1" is invalid: spec.template.spec.tolerations[0]'
    async with operating() as operator:
        operator.cluster.put(claim())
        operator.cluster.put(sftjob())
        await asyncio.sleep(1)
        operator.cluster.fail("dry_run", "Job", Rejected(422, "Invalid", words), times=1000)
        operator.ends(operator.prepare_job(), 0, prepared_outcome())
        await asyncio.sleep(10)
        assert operator.says("Accepted") == ("False", "PodTemplateRejected")
        assert words in operator.message("Accepted")
        assert "startTime" not in operator.status


async def test_a_webhook_that_cannot_be_asked_is_not_in_the_way() -> None:
    words = 'admission webhook "quota.example.com" does not support dry run'
    async with operating() as operator:
        operator.cluster.fail("dry_run", "Job", Rejected(400, "BadRequest", words), times=1000)
        await operator.trains()
        assert operator.says("Running")[0] == "True"


async def test_an_sftjob_deleted_in_the_middle_of_a_pass_is_let_go() -> None:
    async with operating() as operator:
        operator.cluster.put(claim())
        operator.cluster.fail("patch_status", "SFTJob", NotFound(404, "NotFound", "gone"))
        operator.cluster.put(sftjob())
        operator.cluster.freeze()
        await asyncio.sleep(0.1)
        assert operator.results == ["ok"]
        assert operator.cluster.events == []


async def test_a_deleted_sftjob_leaves_nothing_but_the_claim_and_is_forgotten() -> None:
    async with operating() as operator:
        await operator.trains()
        await operator.cluster.delete(SFTJOB)
        await asyncio.sleep(60)
        kinds = {ref.kind for ref in operator.cluster.objects}
        assert kinds == {"PersistentVolumeClaim"}
        assert operator.reconciler.progress == {}
        assert set(operator.results) == {"ok"}


async def test_an_sftjob_that_is_being_deleted_gets_no_new_children() -> None:
    async with operating() as operator:
        going = sftjob()
        going["metadata"]["deletionTimestamp"] = "2026-01-01T12:00:00Z"
        operator.cluster.put(claim())
        operator.cluster.put(going)
        await asyncio.sleep(10)
        assert operator.cluster.writes() == []


@pytest.mark.parametrize("at", ["prepare", "attempt", "running"])
async def test_a_new_process_goes_on_where_the_killed_one_was(at: str) -> None:
    async with operating() as operator:
        operator.cluster.put(claim())
        operator.cluster.put(sftjob())
        await asyncio.sleep(1)
        if at != "prepare":
            operator.ends(operator.prepare_job(), 0, prepared_outcome())
            await asyncio.sleep(1)
        if at == "running":
            operator.runs(ATTEMPT)
            await asyncio.sleep(1)
        uids = {ref: body["metadata"]["uid"] for ref, body in operator.cluster.objects.items()}
        fresh = Reconciler(operator.cluster, operator.cluster, Settings(), now=operator.now)
        for _ in range(3):
            await fresh.reconcile(KEY)
        after = {ref: body["metadata"]["uid"] for ref, body in operator.cluster.objects.items()}
        assert after == uids


async def test_a_preparation_is_told_of_the_open_jobs_of_its_namespace() -> None:
    async with operating() as operator:
        operator.cluster.put(claim())
        for name, namespace in (("other", "team"), ("stranger", "elsewhere")):
            body = sftjob(name, suspend=True)
            body["metadata"] |= {"namespace": namespace, "uid": f"uid-of-{name}"}
            operator.cluster.put(body)
        await asyncio.sleep(1)
        operator.cluster.put(sftjob())
        await asyncio.sleep(1)
        (files,) = [item["data"] for item in operator.cluster.of_kind("ConfigMap")]
        assert json.loads(files["collect.json"])["jobs"] == ["bot", "other"]


async def test_a_status_meant_for_a_deleted_job_never_reaches_its_namesake() -> None:
    async with operating() as operator:
        operator.cluster.put(claim())
        operator.cluster.put(sftjob())
        operator.cluster.freeze()
        del operator.cluster.objects[SFTJOB]
        namesake = sftjob()
        namesake["metadata"]["uid"] = "another"
        operator.cluster.put(namesake)
        await asyncio.sleep(1)
        assert "status" not in operator.cluster.objects[SFTJOB]


async def test_suspending_patches_the_running_job_and_resuming_runs_the_same_again() -> None:
    async with operating() as operator:
        await operator.trains()
        spec = operator.cluster.objects[SFTJOB]["spec"]
        operator.cluster.update(SFTJOB, spec={**spec, "suspend": True})
        await asyncio.sleep(1)
        assert operator.cluster.objects[ATTEMPT]["spec"]["suspend"] is True
        suspended = {"type": "Suspended", "status": "True", "reason": "JobSuspended"}
        operator.cluster.update(ATTEMPT, status={"conditions": [suspended]})
        await asyncio.sleep(1)
        assert operator.says("Suspended") == ("True", "SuspendedByUser")
        operator.cluster.update(SFTJOB, spec={**spec, "suspend": False})
        await asyncio.sleep(1)
        assert operator.cluster.objects[ATTEMPT]["spec"]["suspend"] is False
        assert [name for name in operator.jobs() if "prepare" not in name] == ["bot-1"]
