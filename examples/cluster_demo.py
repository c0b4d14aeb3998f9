"""`make cluster-demo`: Helm-install the operator into the cluster of `make cluster` and train the example in it."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from pathlib import Path

from ruamel.yaml import YAML

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import assets  # noqa: E402 - a neighbour, not a package
import rooms  # noqa: E402

NAMESPACE, JOB = "demo", "support-bot"
FOLDER = HERE.parent / ".sftjob" / "cluster-demo"


def main() -> int:
    """0 when the job completed."""
    try:
        gguf = assets.model_gguf()
    except assets.FetchError as error:
        say(f"error: {error}")
        return 1
    kube = rooms.connect()
    say("helm install sftjob charts/sftjob --namespace sftjob-system")
    rooms.install(kube)
    FOLDER.mkdir(parents=True, exist_ok=True)
    room = next(rooms.make_room(kube, NAMESPACE, FOLDER))
    shutil.copyfile(gguf, room.workspace / "models" / gguf.name)
    for file in (HERE / "data").glob("*.jsonl"):
        shutil.copyfile(file, room.workspace / "datasets" / file.name)
    manifest = YAML(typ="safe", pure=True).load(HERE / f"{JOB}.yaml")
    spec = {**manifest["spec"], "workspace": {"claimName": "workspace"}}
    say(f"kubectl apply -f examples/{JOB}.yaml   (the pods see this machine's Python through a volume)")
    room.kube.kubectl("delete", "sftjob", JOB, "-n", NAMESPACE, "--ignore-not-found")
    room.apply(JOB, spec)
    kubectl = [str(kube.tools / "kubectl"), "--kubeconfig", str(kube.kubeconfig), "-n", NAMESPACE]
    say(f"kubectl get sftjob {JOB} -n {NAMESPACE} -w")
    watch = subprocess.Popen([*kubectl, "get", "sftjob", JOB, "-w"])
    try:
        room.wait(JOB, "Complete", seconds=3600)
    finally:
        watch.terminate()
    subprocess.run([*kubectl, "describe", "sftjob", JOB], check=False)
    say(f"the model lies in {room.workspace / 'jobs' / JOB / 'export'}")
    say(f"look around: export KUBECONFIG={kube.kubeconfig}; end it: make cluster-down")
    return 0


def say(text: str) -> None:
    sys.stdout.write(f"==> {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
