"""What an API server does to objects, whoever plays its part."""

from __future__ import annotations

import pytest

from api import corpus
from conformance.rig import Rig
from sftjob_operator.cluster.base import AlreadyExists, Conflict, NotFound, Rejected

API = "sftjob.dev/v1alpha1"


async def test_a_created_object_has_a_uid_and_its_name_is_taken(rig: Rig):
    made = await rig.cluster.create(rig.config_map("one", {"a": "1"}))
    assert made["metadata"]["uid"]
    assert made["metadata"]["resourceVersion"]
    with pytest.raises(AlreadyExists, match='"one" already exists'):
        await rig.cluster.create(rig.config_map("one", {"a": "2"}))
    assert (await rig.get("ConfigMap", "one"))["data"] == {"a": "1"}


async def test_a_name_that_is_none_is_refused(rig: Rig):
    with pytest.raises(
        Rejected, match=r'metadata.name: Invalid value: "Upper": a lowercase RFC 1123 subdomain'
    ):
        await rig.cluster.create(rig.config_map("Upper", {}))


async def test_a_dry_run_checks_and_stores_nothing(rig: Rig):
    await rig.cluster.create(rig.config_map("dry", {}), dry_run=True)
    assert await rig.cluster.get(rig.ref("ConfigMap", "dry")) is None
    with pytest.raises(Rejected, match="set exactly one of uri, path"):
        await rig.cluster.create(rig.sftjob("dry", model={}), dry_run=True)


async def test_apply_creates_changes_and_removes_what_it_no_longer_says(rig: Rig):
    await rig.cluster.apply(rig.config_map("two", {"a": "1", "b": "1"}))
    await rig.cluster.patch(rig.ref("ConfigMap", "two"), {"data": {"theirs": "kept"}})
    first = await rig.cluster.apply(rig.config_map("two", {"a": "2"}))
    assert first["data"] == {"a": "2", "theirs": "kept"}
    again = await rig.cluster.apply(rig.config_map("two", {"a": "2"}))
    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


async def test_a_merge_patch_merges_and_null_deletes(rig: Rig):
    await rig.cluster.create(rig.config_map("three", {"a": "1", "b": "1"}))
    patched = await rig.cluster.patch(rig.ref("ConfigMap", "three"), {"data": {"a": None, "c": "1"}})
    assert patched["data"] == {"b": "1", "c": "1"}
    stale = {"metadata": {"resourceVersion": "1"}, "data": {"d": "1"}}
    with pytest.raises(Conflict, match="the object has been modified"):
        await rig.cluster.patch(rig.ref("ConfigMap", "three"), stale)
    with pytest.raises(NotFound, match='"nobody" not found'):
        await rig.cluster.patch(rig.ref("ConfigMap", "nobody"), {"data": {}})


async def test_deletion_needs_the_right_uid_and_takes_the_dependents_along(rig: Rig):
    owner = await rig.cluster.create(rig.config_map("owner", {}))
    uid = owner["metadata"]["uid"]
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": uid, "controller": True}
    await rig.cluster.create(rig.config_map("child", {}, metadata={"ownerReferences": [reference]}))
    await rig.cluster.delete(rig.ref("ConfigMap", "owner"), uid="another")
    await rig.get("ConfigMap", "owner")
    await rig.cluster.delete(rig.ref("ConfigMap", "owner"), uid=uid)
    await rig.cluster.delete(rig.ref("ConfigMap", "owner"))
    assert await rig.cluster.get(rig.ref("ConfigMap", "owner")) is None

    async def is_gone() -> bool:
        return await rig.cluster.get(rig.ref("ConfigMap", "child")) is None

    await rig.until(is_gone, "the child is collected")


async def test_a_list_selects_by_labels(rig: Rig):
    for name, colour in (("a", "red"), ("b", "red"), ("c", "blue")):
        labels = {"labels": {"colour": colour, "suite": "lists"}}
        await rig.cluster.create(rig.config_map(name, {}, metadata=labels))
    found = await rig.cluster.list("v1", "ConfigMap", rig.namespace, {"suite": "lists", "colour": "red"})
    assert sorted(item["metadata"]["name"] for item in found) == ["a", "b"]


async def test_an_immutable_config_map_stays_as_it_is(rig: Rig):
    await rig.cluster.create(rig.config_map("fixed", {"a": "1"}, immutable=True))
    with pytest.raises(Rejected, match="field is immutable when `immutable` is set"):
        await rig.cluster.patch(rig.ref("ConfigMap", "fixed"), {"data": {"a": "2"}})


async def test_an_unknown_kind_is_not_found(rig: Rig):
    manifest = {"apiVersion": "v1", "kind": "Nonsense", "metadata": {"name": "x", "namespace": rig.namespace}}
    with pytest.raises(NotFound, match="could not find the requested resource"):
        await rig.cluster.create(manifest)


async def test_status_is_a_subresource(rig: Rig):
    made = await rig.cluster.create(rig.sftjob("status"))
    ref, uid = rig.ref("SFTJob", "status", API), made["metadata"]["uid"]
    assert made["metadata"]["generation"] == 1
    await rig.cluster.patch_status(ref, {"phase": "Running", "restarts": 1}, uid=uid)
    written = await rig.cluster.patch_status(ref, {"phase": "Pending"}, uid=uid)
    assert written["status"] == {"phase": "Pending"}
    assert written["metadata"]["generation"] == 1
    patched = await rig.cluster.patch(ref, {"spec": {"suspend": True}, "status": {"phase": "Lie"}})
    assert (patched["status"], patched["spec"]["suspend"]) == ({"phase": "Pending"}, True)
    assert patched["metadata"]["generation"] == 2
    with pytest.raises(NotFound):
        await rig.cluster.patch_status(ref, {}, uid="another", generation=2)
    with pytest.raises(Conflict):
        await rig.cluster.patch_status(ref, {}, uid=uid, generation=1)
    assert (await rig.cluster.patch_status(ref, {}, uid=uid, generation=2))["status"] == {}


async def test_unknown_fields_are_pruned(rig: Rig):
    made = await rig.cluster.create(rig.sftjob("pruned", futureField={"a": 1}))
    assert "futureField" not in made["spec"]


async def test_small_numbers_stay_numbers(rig: Rig):
    await rig.cluster.create(rig.sftjob("numbers", training={"learningRate": 2e-5}))
    found = await rig.get("SFTJob", "numbers", API)
    assert found["spec"]["training"]["learningRate"] == 2e-5


async def test_what_started_is_immutable_and_what_did_not_can_be_repaired(rig: Rig):
    await rig.cluster.create(rig.sftjob("started", training={"epochs": 1}))
    ref = rig.ref("SFTJob", "started", API)
    await rig.cluster.patch(ref, {"spec": {"training": {"epochs": 2}}})
    await rig.cluster.patch_status(ref, {"startTime": "2030-01-01T00:00:00Z"})
    with pytest.raises(Rejected, match="spec.training cannot change once the job has started"):
        await rig.cluster.patch(ref, {"spec": {"training": {"epochs": 3}}})
    await rig.cluster.patch(ref, {"spec": {"suspend": True}})


@pytest.mark.slow
async def test_every_bad_sftjob_is_refused_with_the_same_words(rig: Rig):
    for case in corpus.cases():
        for name in {corpus_name(case.job), corpus_name(case.stored or case.job)}:
            await rig.cluster.delete(rig.ref("SFTJob", name, API))
        job = {**case.job, "metadata": {**case.job["metadata"], "namespace": rig.namespace}}
        if case.stored is not None:
            stored = {**case.stored, "metadata": job["metadata"]}
            await rig.cluster.apply({key: stored[key] for key in stored if key != "status"})
            await rig.cluster.patch_status(rig.ref("SFTJob", corpus_name(job), API), stored.get("status", {}))
        with pytest.raises(Rejected) as refused:
            await (rig.cluster.create(job) if case.stored is None else rig.cluster.apply(job))
        assert refused.value.code == 422, case.name
        assert case.message in refused.value.message, case.name


def corpus_name(job: corpus.Manifest) -> str:
    return job["metadata"]["name"]
