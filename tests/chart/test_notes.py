"""templates/NOTES.txt: what helm says after an installation."""

from __future__ import annotations

import subprocess

from rendering import CHART, NAMESPACES, SYSTEM, helm


def notes(*words: str) -> str:
    """`helm template` prints no notes; an installation that only pretends does, without a cluster too."""
    command = [str(helm()), "install", "sftjob", str(CHART), "-n", SYSTEM, "--dry-run=client", *words]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.partition("\nNOTES:\n")[2]


def test_defaults_say_where_it_works_and_which_trainer_runs():
    said = notes()
    assert "The SFTJob operator works in every namespace." in said
    assert "trainer.image is not set" in said
    assert "helm test sftjob -n sftjob-system" in said
    assert "kubectl delete crd sftjobs.sftjob.dev" in said


def test_with_namespaces_the_planner_has_to_be_told_of_gpus():
    said = notes(*NAMESPACES, "--set", "crds.keep=false,trainer.image=x")
    assert "in: team-a, team-b" in said
    assert "operator.gpuMemory=80Gi" in said
    assert "kubectl delete crd" not in said
    assert "trainer.image is not set" not in said
