"""What the terminal shows and renders: sparkline, pods, checkpoints, the pod on the volume, the doctor's findings."""

from __future__ import annotations

import copy
import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sftjob_operator.api.crd import crd
from sftjob_operator.api.v1alpha1 import SFTJob
from sftjob_operator.cli import chat, checkpoints, live, logs, table
from sftjob_operator.cli.doctor import cluster as doctor
from sftjob_operator.cli.doctor import command, gpus, machine
from sftjob_operator.cli.doctor.rights import RIGHTS
from sftjob_operator.cli.errors import CliError
from sftjob_operator.cli.explain import command as explaining
from sftjob_operator.cli.explain.story import Facts, explain
from sftjob_operator.cli.volumepod import DEADLINE_SECONDS, reader
from sftjob_operator.desired.job import attempt_job
from sftjob_operator.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
NOW = datetime(2030, 1, 1, tzinfo=UTC)


# ------------------------------------------------------------------------- live


def test_a_sparkline_has_a_block_per_value_or_per_mean_of_neighbours():
    assert live.sparkline([1, 2, 3, 8], 10) == "▁▂▃█"
    assert live.sparkline([2, 2], 10) == "▁▁"
    assert live.sparkline([], 10) == ""
    assert live.sparkline([8, 8, 1, 1], 2) == "█▁"


def test_losses_begin_anew_where_an_attempt_goes_on_from_an_earlier_step():
    losses = live.Losses()
    for step, loss in ((1, "4"), (2, "3"), (3, "nan"), (4, "1"), (2, "3.5")):
        losses.see({"step": step, "loss": loss})
    losses.see({})
    assert losses.line(10) == "loss 4 █▁ 3.5"


def pod(
    name: str, phase: str = "Running", *, attempt: int = 1, index: int = 0, ready: bool = True
) -> dict[str, Any]:
    labels = {
        "sftjob.dev/job-name": "bot",
        "sftjob.dev/attempt": str(attempt),
        "batch.kubernetes.io/job-completion-index": str(index),
    }
    owner = {"uid": f"job-{attempt}"}
    metadata = {"name": name, "namespace": "n", "labels": labels, "ownerReferences": [owner]}
    metadata["creationTimestamp"] = f"2030-01-0{attempt}T00:00:00Z"
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {
        "metadata": metadata,
        "spec": {"nodeName": "gpu-1"},
        "status": {"phase": phase, "conditions": conditions},
    }


def test_few_pods_are_named_and_many_are_counted():
    assert live.pods_line([pod("b"), pod("a", "Pending", ready=False)]) == (
        "pods 1 of 2 ready: a on gpu-1 Pending, b on gpu-1"
    )
    assert live.pods_line([pod(str(n)) for n in range(9)]) == "pods 9 of 9 ready: 9 Running"
    assert live.pods_line([pod("b", "Succeeded")]) == ""


# ------------------------------------------------------------------------- logs


def test_the_pods_of_an_attempt_come_in_the_order_of_their_index():
    pods = [pod("c", attempt=2, index=1), pod("a"), pod("b", attempt=2, index=0)]
    assert [each["metadata"]["name"] for each in logs.of_attempt(pods, 2)] == ["b", "c"]
    assert [each["metadata"]["name"] for each in logs.of_attempt(pods, None)] == ["b", "c"], "the newest"
    assert [logs.short(each) for each in logs.of_attempt(pods, 1)] == ["bot-1-0"]
    assert logs.of_attempt(pods, 7) == logs.of_attempt([], None) == []


def test_a_rank_is_known_by_the_launchers_prefix():
    assert logs.of_rank("[rank 1] hello", 1)
    assert logs.of_rank("anything", None)
    assert not logs.of_rank("[rank 11] hello", 1)


# ------------------------------------------------------------------------- checkpoints


def test_the_best_checkpoint_and_the_one_to_resume_from_are_marked():
    held = [
        {
            "name": "step-1",
            "step": 1,
            "attempt": 1,
            "verified": True,
            "size": "1Mi",
            "evalLoss": "1.5",
            "time": "t",
        },
        {
            "name": "step-2",
            "step": 2,
            "attempt": 1,
            "verified": True,
            "size": "1Mi",
            "evalLoss": "1.7",
            "time": "t",
        },
        {"name": "step-3", "step": 3, "attempt": 1, "verified": False, "size": "1Mi", "time": "t"},
    ]
    found = checkpoints.listed({"status": {"checkpoints": held}})
    assert [(each["step"], each["best"], each["newestVerified"]) for each in found] == [
        (3, False, False),
        (2, False, True),
        (1, True, False),
    ]


def test_the_manual_shows_tables_as_they_are():
    text = (ROOT / "docs" / "cli.md").read_text()
    held = {"name": "step-20", "step": 20, "attempt": 1, "verified": True, "size": "96Gi", "loss": "1.85"}
    found = checkpoints.listed(
        {"status": {"checkpoints": [{**held, "evalLoss": "1.91", "time": "2030-01-01T00:00:20Z"}]}}
    )
    assert f"```\n{checkpoints.shown(found)}\n```" in text
    progress = {"display": "8/14", "loss": "1.8000", "tokensPerSecond": 812, "eta": "3s"}
    over = {
        "phase": "Succeeded",
        "completionTime": "2029-12-31T23:59:07Z",
        "lastVerifiedStep": 10,
        "restarts": 1,
    }
    jobs = [
        {
            "metadata": {"name": "bot", "creationTimestamp": "2029-12-31T23:59:56Z"},
            "status": {"phase": "Running", "progress": progress, "lastVerifiedStep": 5},
        },
        {
            "metadata": {"name": "old", "creationTimestamp": "2029-12-31T23:59:00Z"},
            "status": {**over, "progress": {"display": "14/14", "loss": "0.5000", "eta": "0s"}},
        },
    ]
    assert f"```\n{table.columns(table.COLUMNS, [table.row(job, NOW) for job in jobs])}\n```" in text


def test_the_wide_table_says_the_plan_and_what_the_time_was_worth():
    job = {
        "metadata": {"name": "bot", "creationTimestamp": "2029-12-31T23:59:56Z"},
        "status": {
            "conditions": [{"type": "Running", "status": "True", "reason": "TrainingSteps"}],
            "plan": {"display": "ZeRO-2+SP4"},
            "nodes": 2,
            "goodput": {"percent": 0},
            "progress": {"mfuPercent": 41},
        },
    }
    assert table.wide(job) == ("TrainingSteps", "ZeRO-2+SP4", "2", "0", "41")
    assert table.wide({"metadata": {}, "status": {}}) == ("-",) * len(table.WIDE)


def test_a_line_of_the_launcher_itself_has_no_rank():
    assert json.loads(logs.as_json("bot-1-0", "[rank 3] a [rank 4] b")) == {
        "pod": "bot-1-0",
        "rank": 3,
        "line": "a [rank 4] b",
    }
    assert json.loads(logs.as_json("bot-1-0", "waiting"))["rank"] is None


# ------------------------------------------------------------------------- the pod on the volume


def attempt() -> tuple[dict[str, Any], dict[str, Any]]:
    manifest = {
        "apiVersion": "sftjob.dev/v1alpha1",
        "kind": "SFTJob",
        "metadata": {"name": "bot", "namespace": "team", "uid": "u"},
        "spec": {
            "model": {"path": "models/base"},
            "data": {"train": [{"path": "a.jsonl"}]},
            "workers": {
                "nodes": 2,
                "gpusPerNode": 8,
                "image": "trainer:1",
                "imagePullSecrets": [{"name": "cred"}],
                "podTemplate": {"spec": {"nodeSelector": {"pool": "a"}, "tolerations": [{"key": "gpu"}]}},
            },
            "workspace": {"claimName": "shared", "subPath": "team-a"},
        },
    }
    return manifest, attempt_job(SFTJob.model_validate(manifest), Settings(), 1)["spec"]["template"]


def test_the_pod_on_the_volume_is_less_than_a_training_pod():
    job, template = attempt()
    made = reader(job, template, "abc123")
    spec, container = made["spec"], made["spec"]["containers"][0]
    assert made["metadata"]["name"] == "bot-read-abc123"
    assert "sftjob.dev/job-name" not in made["metadata"]["labels"], (
        "the operator and `logs` take it for a worker"
    )
    assert made["metadata"]["ownerReferences"][0]["uid"] == "u"
    assert (spec["activeDeadlineSeconds"], spec["restartPolicy"]) == (DEADLINE_SECONDS, "Never")
    assert spec["automountServiceAccountToken"] is False
    assert (spec["nodeSelector"], spec["imagePullSecrets"]) == ({"pool": "a"}, [{"name": "cred"}])
    assert "affinity" not in spec, "that keeps the pods of a gang apart"
    assert container["command"] == ["python", "-m", "sft_trainer", "volume"]
    assert (container["image"], container["stdin"], container["stdinOnce"]) == ("trainer:1", True, True)
    assert "nvidia.com/gpu" not in str(container["resources"])
    workspace = next(mount for mount in container["volumeMounts"] if mount["name"] == "workspace")
    assert workspace == {
        "name": "workspace",
        "mountPath": "/workspace",
        "subPath": "team-a",
        "readOnly": True,
    }
    assert {mount["name"] for mount in container["volumeMounts"]} == {one["name"] for one in spec["volumes"]}
    assert "config" not in {one["name"] for one in spec["volumes"]}, "it goes with its attempt"
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    _, again = attempt()
    assert template == again, "the template of the Job is left as it was"


def test_only_the_pod_that_cleans_may_write_to_the_volume():
    job, template = attempt()
    made = reader(job, template, "abc123", writable=True)
    mounts = made["spec"]["containers"][0]["volumeMounts"]
    assert "readOnly" not in next(mount for mount in mounts if mount["name"] == "workspace")


def test_chat_asks_for_memory_by_the_size_of_the_models():
    job = {"metadata": {"name": "bot"}, "spec": {}, "status": {"model": {"parameters": 10**9}}}
    asked = chat.resources(job, chat.Options("bot", [], gpus=2), 2)
    assert asked["limits"] == {"nvidia.com/gpu": "2"}
    assert int(asked["requests"]["memory"].removesuffix("Mi")) > 2 * 4 * 10**9 / 2**20


def test_chat_needs_an_export_and_knows_the_base():
    over = {"conditions": [{"type": "Complete", "status": "True", "reason": "Trained"}]}
    job = {"metadata": {"name": "bot"}, "spec": {}, "status": over}
    assert chat.models(job, base=False) == {"tuned": "jobs/bot/export"}
    with pytest.raises(CliError, match="leave --base out"):
        chat.models(job, base=True)
    over["prepared"] = {"facts": {"model": {"directory": "models/base"}}}
    assert chat.models(job, base=True) == {"base": "models/base", "tuned": "jobs/bot/export"}
    with pytest.raises(CliError, match="has no model to talk to yet"):
        chat.models({**job, "status": {}}, base=False)


# ------------------------------------------------------------------------- doctor


def node(name: str, gpus: int = 0, **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": labels},
        "status": {"allocatable": {"nvidia.com/gpu": str(gpus)} if gpus else {}},
    }


def deployment(ready: int) -> dict[str, Any]:
    template = {"spec": {"containers": [{"image": "operator:1"}]}}
    spec = {"replicas": 1, "template": template}
    return {
        "metadata": {"namespace": "sys", "name": "sftjob"},
        "spec": spec,
        "status": {"readyReplicas": ready},
    }


def lease(at: str) -> dict[str, Any]:
    return {"metadata": {"name": "sftjob"}, "spec": {"holderIdentity": "pod-1", "renewTime": at}}


LABELS = {gpus.MEMORY_LABEL: "81920", gpus.DRIVER_LABELS[0]: "590"}
HEALTHY: dict[str, Any] = {
    "where": "context prod, namespace team",
    "namespace": "team",
    "now": NOW,
    "version": "v1.34.4",
    "serves_sftjobs": True,
    "crd": crd(),
    "deployments": [deployment(1)],
    "leases": [lease("2029-12-31T23:59:55.000000Z")],
    "rights": dict.fromkeys(RIGHTS, True),
    "nodes": [node("a", 8, **LABELS), node("b")],
    "claims": [
        {"metadata": {"name": "w"}, "spec": {"accessModes": ["ReadWriteMany"]}, "status": {"phase": "Bound"}}
    ],
    "storage_classes": [],
    "kueue": True,
    "queues": [{"metadata": {"name": "team-a"}}],
    "prometheus": True,
}


def found(name: str, **changed: Any) -> list[Any]:
    return [each for each in doctor.checks(doctor.Facts(**{**HEALTHY, **changed})) if each.name == name]


def test_a_healthy_cluster_has_nothing_to_repair():
    every = list(doctor.checks(doctor.Facts(**HEALTHY)))
    assert {each.state for each in every} == {"ok"}
    assert not any(each.fix for each in every)
    assert "8 nvidia.com/gpu on 1 nodes, of 80Gi" in {each.found for each in every}


@pytest.mark.parametrize(
    ("name", "changed", "state", "words"),
    [
        ("SFTJob CRD", {"serves_sftjobs": False}, "missing", "helm install"),
        ("SFTJob CRD", {"crd": None}, "ok", "may not be read"),
        ("operator", {"deployments": []}, "missing", "helm install"),
        ("operator", {"deployments": [deployment(0)]}, "missing", "describe pods"),
        ("operator", {"deployments": None}, "unknown", "may not list deployments"),
        ("operator", {"leases": [lease("2029-12-31T23:00:00Z")]}, "missing", "nobody leads"),
        ("operator", {"leases": None}, "ok", "1 of 1"),
        ("your rights", {"rights": None}, "unknown", "does not tell"),
        ("GPUs", {"nodes": [node("b")]}, "warning", "gpusPerNode: 0"),
        ("GPUs", {"nodes": [node("a", 8)]}, "warning", "operator.gpuMemory"),
        ("GPUs", {"nodes": None}, "unknown", "may not list nodes"),
        (
            "GPU driver",
            {"nodes": [node("a", 8, **LABELS), node("b", 8, **LABELS | {gpus.DRIVER_LABELS[0]: "570"})]},
            "warning",
            "570 on b; CUDA 13 of the trainer image needs 580 or newer update the driver",
        ),
        ("GPU driver", {"nodes": [node("a", 8, **{gpus.DRIVER_LABELS[1]: "535"})]}, "warning", "535 on a"),
        ("GPU driver", {"nodes": [node("a", 8)]}, "unknown", gpus.DRIVER_LABELS[0]),
        ("GPU driver", {"nodes": [node("a", 8, **LABELS)]}, "ok", "590; CUDA 13"),
        ("shared volume", {"claims": []}, "warning", "accessModes [ReadWriteMany]"),
        (
            "shared volume",
            {
                "claims": [],
                "storage_classes": [{"metadata": {"name": "fast-nfs"}, "provisioner": "nfs.csi.k8s.io"}],
            },
            "warning",
            "storageClassName fast-nfs",
        ),
        ("shared volume", {"claims": None}, "unknown", "may not list"),
        ("Kueue", {"kueue": False}, "unknown", "not installed"),
        ("Kueue", {"queues": []}, "warning", "create a LocalQueue"),
        ("Prometheus", {"prometheus": False}, "unknown", "no Prometheus operator"),
    ],
)
def test_what_is_wrong_is_named_with_its_repair(name: str, changed: dict[str, Any], state: str, words: str):
    (check,) = found(name, **changed)
    assert check.state == state
    assert words in f"{check.found} {check.fix}"


def test_a_cluster_without_nvidia_gpus_has_no_driver_to_check():
    assert not found("GPU driver", nodes=[node("b")])
    assert not found("GPU driver", nodes=None)


def test_the_doctor_knows_the_cuda_of_the_torch_that_is_locked():
    locked = (ROOT / "requirements" / "trainer.txt").read_text()
    assert f"\ncuda-toolkit=={gpus.CUDA_MAJOR}." in locked
    assert f"{gpus.OLDEST_DRIVER} series" in (ROOT / "docs" / "install.md").read_text()


def test_a_crd_of_another_release_is_told_by_its_fields_and_not_by_its_words():
    other = copy.deepcopy(crd())
    spec = other["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    spec["description"] = "other words"
    assert found("SFTJob CRD", crd=other)[0].state == "ok"
    del spec["properties"]["export"]
    assert "fields of spec: export" in found("SFTJob CRD", crd=other)[0].found


def test_rights_that_are_needed_and_rights_that_help_are_told_apart():
    rights = {right: right.is_needed or right.resource != "pods" for right in RIGHTS}
    (check,) = found("your rights", rights=rights)
    assert check.state == "warning"
    assert "create pods/attach" in check.found
    rights = {right: right.verb != "list" for right in RIGHTS}
    assert [each.state for each in found("your rights", rights=rights)] == ["missing", "warning"]


def test_the_doctor_of_a_machine_says_what_to_install():
    assert machine.trainer({"torch": "2", "deepspeed": None}).fix.startswith("pip install 'sftjob[trainer]'")
    assert machine.trainer({"torch": "2"}).state == "ok"


def test_the_manual_shows_a_doctor_and_an_explanation_as_they_are():
    text = (ROOT / "docs" / "cli.md").read_text()
    old = {gpus.DRIVER_LABELS[0]: "570"}
    changed = {
        "nodes": [node("gpu-1", 8, **old), node("gpu-2", 8, **old)],
        "claims": [],
        "storage_classes": [{"metadata": {"name": "nfs"}, "provisioner": "nfs.csi.k8s.io"}],
        "kueue": False,
    }
    out = io.StringIO()
    command.show(list(doctor.checks(doctor.Facts(**{**HEALTHY, **changed}))), Console(file=out))
    assert f"```\n{out.getvalue()}```" in text
    failed = {
        "type": "Failed",
        "status": "True",
        "reason": "InvalidRow",
        "message": "a.jsonl line 7 is broken",
    }
    job = {"metadata": {"name": "bot"}, "spec": {}, "status": {"conditions": [failed]}}
    out = io.StringIO()
    explaining.say(explain(Facts(job, NOW), lambda line: f"sftjob {line}"), Console(file=out))
    assert f"```\n{out.getvalue()}```" in text
