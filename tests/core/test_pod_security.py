"""What a podTemplate may not ask of its node: the operator makes the pods with its own rights."""

from __future__ import annotations

import pytest

from sftjob_operator.api import names
from sftjob_operator.policy.accept import objection, read_sftjob
from sftjob_operator.settings import Settings
from worlds import Scene, sftjob


def said(level: str, spec: dict, where: str = "workers") -> str:
    job = read_sftjob(sftjob(**{where: {"podTemplate": {"spec": spec}}}))
    found = objection(job, Settings(pod_security=level))  # type: ignore[arg-type]
    assert found is None or found.reason == "PodSecurity"
    return "" if found is None else found.message


def container(**context) -> dict:
    return {"containers": [{"name": "trainer", "securityContext": context}]}


def volume(**source) -> dict:
    return {"volumes": [{"name": "extra", **source}]}


TOKEN = {"sources": [{"serviceAccountToken": {"path": "token"}}]}
BEYOND_BASELINE = {
    "volumes[0].hostPath": volume(hostPath={"path": "/"}),
    "volumes[0].projected.sources.serviceAccountToken": volume(projected=TOKEN),
    "containers[0].securityContext.privileged: true": container(privileged=True),
    "containers[0].securityContext.capabilities.add: SYS_ADMIN": container(
        capabilities={"add": ["SYS_ADMIN"]}
    ),
    "containers[0].securityContext.procMount: Unmasked": container(procMount="Unmasked"),
    "containers[0].securityContext.seccompProfile.type: Unconfined": container(
        seccompProfile={"type": "Unconfined"}
    ),
    "securityContext.seccompProfile.type: Unconfined": {
        "securityContext": {"seccompProfile": {"type": "Unconfined"}}
    },
    "securityContext.seLinuxOptions": {"securityContext": {"seLinuxOptions": {"type": "spc_t"}}},
    "securityContext.sysctls: kernel.msgmax": {
        "securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}
    },
    "securityContext.windowsOptions.hostProcess: true": {
        "securityContext": {"windowsOptions": {"hostProcess": True}}
    },
}
BEYOND_RESTRICTED = {
    "volumes[0].nfs": volume(nfs={"server": "s", "path": "/"}),
    "securityContext.runAsNonRoot: false": {"securityContext": {"runAsNonRoot": False}},
    "securityContext.runAsUser: 0": {"securityContext": {"runAsUser": 0}},
    "containers[0].securityContext.runAsUser: 0": container(runAsUser=0),
    "containers[0].securityContext.allowPrivilegeEscalation is not false": container(
        allowPrivilegeEscalation=True
    ),
    "containers[0].securityContext.capabilities.drop is without ALL": container(
        capabilities={"add": ["NET_BIND_SERVICE"]}
    ),
}


@pytest.mark.parametrize("where", ["workers", "prepare"])
@pytest.mark.parametrize("named", BEYOND_BASELINE)
def test_what_reaches_the_node_is_refused_by_default(named: str, where: str):
    spec = BEYOND_BASELINE[named]
    assert Settings().pod_security == "Baseline"
    message = said("Baseline", spec, where)
    assert message.startswith(f"spec.{where}.podTemplate.spec.{named}: the Pod Security Standard Baseline")
    assert said("Restricted", spec, where) != ""
    assert said("Privileged", spec, where) == ""


@pytest.mark.parametrize("named", BEYOND_RESTRICTED)
def test_restricted_refuses_more(named: str):
    spec = BEYOND_RESTRICTED[named]
    assert f".podTemplate.spec.{named}" in said("Restricted", spec)
    assert said("Baseline", spec) == ""


@pytest.mark.parametrize(
    "spec",
    [
        {},
        volume(secret={"secretName": "s"}),
        volume(persistentVolumeClaim={"claimName": "c"}),
        {"securityContext": {"runAsUser": 1000, "fsGroup": 1000}},
        container(capabilities={"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}),
        container(readOnlyRootFilesystem=True),
    ],
    ids=str,
)
def test_what_restricted_allows(spec: dict):
    assert said("Restricted", spec) == ""


def test_a_profile_cannot_be_taken_away_by_a_null_or_an_annotation():
    manifest = sftjob()
    manifest["spec"]["workers"]["podTemplate"] = {"spec": {"securityContext": {"seccompProfile": None}}}
    found = objection(read_sftjob(manifest), Settings(pod_security="Restricted"))
    assert found is not None
    assert "seccompProfile.type is not set" in found.message
    assert objection(read_sftjob(manifest), Settings()) is None
    name = "container.apparmor.security.beta.kubernetes.io/trainer"
    job = read_sftjob(sftjob(workers={"podTemplate": {"metadata": {"annotations": {name: "unconfined"}}}}))
    found = objection(job, Settings())
    assert found is not None
    assert f"spec.workers.podTemplate.metadata.annotations.{name}: unconfined" in found.message
    assert objection(job, Settings(pod_security="Privileged")) is None


def test_it_is_a_condition_and_no_pod_is_made():
    scene = Scene(sftjob(workers={"podTemplate": {"spec": volume(hostPath={"path": "/etc"})}}))
    assert scene.step().effects == ()
    assert scene.says("Accepted") == ("False", "PodSecurity")
    assert "operator.podSecurity" in scene.condition("Accepted")["message"]


def test_where_the_namespace_assigns_ids_a_pod_names_none():
    scene = Scene()
    scene.settings = Settings(user_ids="Assigned")
    scene.start()
    for job in (*scene.jobs(names.ROLE_PREPARE), *scene.jobs()):
        context = job["spec"]["template"]["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & context.keys()
    assert scene.jobs()
    with pytest.raises(ValueError, match="SFTJOB_OPERATOR_USER_IDS='Any': one of Fixed, Assigned"):
        Settings.from_environment({"SFTJOB_OPERATOR_USER_IDS": "Any"})


def test_a_level_that_does_not_exist_is_named():
    with pytest.raises(
        ValueError, match="SFTJOB_OPERATOR_POD_SECURITY='Strict': one of Restricted, Baseline"
    ):
        Settings.from_environment({"SFTJOB_OPERATOR_POD_SECURITY": "Strict"})
    assert (
        Settings.from_environment({"SFTJOB_OPERATOR_POD_SECURITY": "Restricted"}).pod_security == "Restricted"
    )
