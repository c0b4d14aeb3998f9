"""A job trains while the operator is upgraded, rolled back, removed and installed again; and its token stays secret."""

from __future__ import annotations

import base64
import itertools
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

import audit
import tiny
from fake_hub import FakeHub
from rooms import CHART, SYSTEM, Kube, Room, make_room, release, uninstall, until
from sftjob_operator.leader import Timing

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
NAME, TOKEN = "steady", "hf_RecognisableToken"
SECRET = TOKEN.encode()


@dataclass
class Training:
    """The one job of these tests, which trains for longer than they last."""

    room: Room
    command_lines: set[bytes] = field(default_factory=set)
    """Of every process of this machine, and so of all pods, while the token was in use."""

    def step(self) -> int:
        text = (self.room.workspace / "jobs" / NAME / "report" / "metrics.jsonl").read_text()
        whole = text.rpartition("\n")[0].splitlines()  # the last line may just be written
        return max(json.loads(line).get("step", 0) for line in whole)

    def shown(self) -> int:
        return self.room.job(NAME).get("status", {}).get("progress", {}).get("step", 0)

    def identity(self) -> dict[str, Any]:
        """What may not change while the operator comes and goes."""
        job = self.room.job(NAME)
        jobs = self.room.kube.list("jobs", self.room.namespace, "sftjob.dev/role=train")
        attempts = [(each["number"], each["runs"]) for each in job["status"]["attempts"]]
        claims = self.room.kube.list("persistentvolumeclaims", self.room.namespace)
        crd = json.loads(self.room.kube.kubectl("get", "crd", "sftjobs.sftjob.dev", "-o", "json").stdout)
        pods = self.room.pods("sftjob.dev/role=train")
        starts = [pod["status"]["containerStatuses"][0]["restartCount"] for pod in pods]
        objects = [job, *jobs, *pods, *claims, crd]
        return {
            "uids": sorted(each["metadata"]["uid"] for each in objects),
            "runs": attempts,
            "starts": starts,
        }

    def goes_on(self) -> None:
        step = self.step()
        until("another step", lambda: self.step() > step, 60, diagnose=lambda: self.room.diagnose(NAME))

    def note_command_lines(self) -> None:
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                self.command_lines.add(process.read_bytes())
            except OSError:
                continue


@pytest.fixture(scope="module")
def training(operator: Kube, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Training]:
    """Its model lies on a hub that wants a token."""
    from devcluster import paths

    folder = tmp_path_factory.mktemp("upgrade")
    hub = FakeHub(tiny.model(folder / "hub", hidden=256, layers=4), "acme/tiny")
    hub.token = TOKEN
    rooms = make_room(operator, "upgrade", folder)
    found = Training(next(rooms))
    with hub.serving(paths.BRIDGE_ADDRESS):
        begin(found, hub.url)
    assert hub.requests, "the model came from the hub"
    yield found
    rooms.close()


def begin(training: Training, hub: str) -> None:
    room = training.room
    metadata = {"name": "hub", "namespace": room.namespace}
    room.kube.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"HF_TOKEN": TOKEN}}
    )
    tiny.chats(room.workspace / "datasets" / "chats.jsonl", count=40)
    spec = tiny.spec(maxSteps=100_000, globalBatchSize=4)
    spec["model"] = {"uri": "hf://acme/tiny", "secretRef": {"name": "hub"}}
    spec["data"]["maxLength"] = 512
    spec["checkpoint"] = {"periodSteps": 100, "retain": {"last": 2}}
    job = room.sftjob(NAME, spec)
    job["spec"]["prepare"]["env"].append({"name": "HF_ENDPOINT", "value": hub})
    room.kube.apply(job)

    def look() -> bool:
        training.note_command_lines()
        return training.shown() > 0

    until("a step", look, 180, diagnose=lambda: room.diagnose(NAME))


def test_a_token_is_nowhere_but_in_its_secret(training: Training):
    room, kube = training.room, training.room.kube
    kinds = "configmaps,pods,jobs,services,events,sftjobs,persistentvolumeclaims,serviceaccounts"
    seen = {
        "objects": kube.kubectl("get", kinds, "-n", room.namespace, "-o", "yaml", check=True).stdout,
        "log of the operator": kube.kubectl("logs", "-n", SYSTEM, "deploy/sftjob", check=True).stdout,
    }
    for pod in room.pods(f"sftjob.dev/job-name={NAME}"):
        name = pod["metadata"]["name"]
        seen[f"log of {name}"] = kube.kubectl("logs", "-n", room.namespace, name, check=True).stdout
    assert any("prepare" in name for name in seen), seen.keys()
    found = [
        name for name, text in seen.items() if TOKEN in text or base64.b64encode(SECRET).decode() in text
    ]
    assert found == []
    files = [path for path in room.workspace.rglob("*") if path.is_file()]
    assert [path for path in files if SECRET in read(path)] == []
    training.note_command_lines()
    assert any(b"sft_trainer" in line for line in training.command_lines)
    assert not [line for line in training.command_lines if SECRET in line]
    environments = {path: read(path) for path in Path("/proc").glob("[0-9]*/environ")}
    assert not [path for path, text in environments.items() if SECRET in text], "training pods never have it"


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The chart as if released again, with an image of its own."""
    from devcluster import node, paths

    for one in paths.NODES:
        tags = ("sftjob.local/operator:dev", "sftjob.local/operator:next")
        node.ctr(one, "images", "tag", "--force", *tags)
    chart = tmp_path_factory.mktemp("chart") / "sftjob"
    shutil.copytree(CHART, chart)
    about = yaml.safe_load((chart / "Chart.yaml").read_text())
    (chart / "Chart.yaml").write_text(yaml.safe_dump(about | {"version": "99.0.0", "appVersion": "next"}))
    return chart


def works(room: Room, name: str) -> None:
    """The operator that leads now takes up a new job."""
    room.apply(name, {**tiny.spec(), "model": {"path": "models/none", "secretRef": {"name": "missing"}}})
    room.waits_for(name, "SecretMissing", 30)
    room.kube.kubectl("delete", "sftjob", name, "-n", room.namespace, check=True)


def images(kube: Kube) -> set[str]:
    pods = kube.list("pods", SYSTEM, "app.kubernetes.io/name=sftjob")
    return {
        pod["spec"]["containers"][0]["image"] for pod in pods if "deletionTimestamp" not in pod["metadata"]
    }


def test_an_upgrade_and_a_rollback_leave_a_training_alone(training: Training, next_version: Path):
    kube, before = training.room.kube, training.identity()
    settings = {"image.tag": "next", "replicas": "2", "operator.logLevel": "DEBUG", "operator.workers": "4"}
    release(kube, next_version, **settings)
    assert images(kube) == {"sftjob.local/operator:next"}
    works(training.room, "upgraded")
    training.goes_on()
    kube.run("helm", "rollback", "sftjob", "--namespace", SYSTEM, "--wait", "--timeout", "120s")
    assert images(kube) == {"sftjob.local/operator:dev"}
    works(training.room, "rolled-back")
    training.goes_on()
    assert training.identity() == before


def test_leaders_followed_one_another_without_an_overlap(training: Training, began: datetime):
    found = audit.operator(began)
    leaders = audit.terms(found)
    assert len(leaders) >= 3, leaders
    for one, following in itertools.pairwise(leaders):
        assert one.ended < following.began, (
            "the new one takes the Lease when the old one has written for the last time"
        )
    assert audit.written_by_others(found, leaders) == []
    upgrade = leaders[-2:]
    waited = (upgrade[1].began - upgrade[0].ended).total_seconds()
    assert waited < Timing().lease, "sooner than a Lease that nobody has released runs out"


def test_removal_leaves_the_jobs_and_an_installation_takes_them_up_again(training: Training):
    kube, before = training.room.kube, training.identity()
    uninstall(kube)
    assert not kube.list("deployments", SYSTEM)
    training.goes_on()
    assert training.identity() == before
    shown = training.step()
    release(kube)
    until(
        "the status goes on",
        lambda: training.shown() > shown,
        90,
        diagnose=lambda: training.room.diagnose(NAME),
    )
    assert training.identity() == before
