"""Every manifest of a few whole jobs, as files that a person can read; UPDATE_GOLDEN=1 writes them anew."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from sftjob_operator.effects import Apply, Create, Delete, Patch
from sftjob_operator.planning.hardware import Hardware
from sftjob_operator.step import Step
from worlds import Scene, prepared_outcome, sftjob

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.name for path in GOLDEN.iterdir())
NEWEST = kubernetes_validate.latest_version()


def scene(case: str) -> Scene:
    manifest = yaml.safe_load((GOLDEN / case / "sftjob.yaml").read_text())
    manifest["metadata"] = {**sftjob()["metadata"], **manifest["metadata"]}
    return Scene(manifest, Hardware(gpu_memory_bytes=80 * 2**30))


def told(step: Step) -> list[dict[str, Any]]:
    result: list[dict[str, Any]] = []
    for effect in step.effects:
        match effect:
            case Create(manifest) | Apply(manifest):
                result.append({type(effect).__name__: manifest})
            case Patch(ref, patch):
                result.append({"Patch": {"ref": list(ref), "patch": patch}})
            case Delete(ref, _):
                result.append({"Delete": list(ref)})
    return result


def passes(case: str) -> dict[str, list[dict[str, Any]]]:
    """The effects of the passes of a job's life, up to its running."""
    world = scene(case)
    found = {"applied": told(world.step())}
    world.end(None, None, [world.ended_pod(None, 0, message=prepared_outcome(), reason="Completed")])
    found["prepared"] = told(world.step(5))
    if case == "suspend":
        world.run(1)
        world.step(5)
        world.manifest["spec"]["suspend"] = True
        found["suspended"] = told(world.step(5))
        world.suspend(1)
        world.manifest["spec"]["suspend"] = False
        found["resumed"] = told(world.step(5))
    return found


class _Readable(yaml.SafeDumper):
    """Texts of several lines as blocks: train.json is meant to be read."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Readable.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar(
        "tag:yaml.org,2002:str", text, style="|" if "\n" in text else None
    ),
)


@pytest.mark.parametrize("case", CASES)
def test_the_manifests_are_those_of_the_golden_file(case):
    found = yaml.dump(passes(case), Dumper=_Readable, sort_keys=False, width=110)
    file = GOLDEN / case / "expected.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        file.write_text(found)
    assert found == file.read_text(), "if this is meant, run again with UPDATE_GOLDEN=1 and review the diff"


@pytest.mark.parametrize("version", ["1.34", NEWEST])
@pytest.mark.parametrize("case", CASES)
def test_kubernetes_knows_every_field_of_every_manifest(case, version):
    manifests = [
        effect.get("Create") or effect.get("Apply") for told in passes(case).values() for effect in told
    ]
    for manifest in filter(None, manifests):
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("case", CASES)
def test_a_secret_is_seen_by_the_prepare_pod_and_by_no_training_pod(case):
    found = passes(case)
    text = yaml.dump(found["prepared"])
    assert "envFrom" not in text
    assert "secretKeyRef" not in text
    if case.startswith("lora"):
        assert "envFrom" in yaml.dump(found["applied"])


@pytest.mark.parametrize("case", CASES)
def test_every_pod_passes_the_restricted_pod_security_standard(case):
    for effects in passes(case).values():
        for manifest in (effect["Create"] for effect in effects if "Create" in effect):
            if manifest["kind"] != "Job":
                continue
            pod = manifest["spec"]["template"]["spec"]
            container = pod["containers"][0]
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["runAsUser"] > 0
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert pod["automountServiceAccountToken"] is False
            assert all(not {"hostPath", "secret"} & volume.keys() for volume in pod["volumes"])
