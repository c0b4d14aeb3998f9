"""spec.workers.env and spec.prepare.env: a value arrives as it was written."""

from __future__ import annotations

import pytest

from sftjob_operator.cluster.local.environment import expand
from worlds import Scene, sftjob


def environment(job: dict) -> dict[str, str]:
    variables = job["spec"]["template"]["spec"]["containers"][0]["env"]
    return {item["name"]: item["value"] for item in variables if "value" in item}


@pytest.mark.parametrize("value", ["$(HOME)", "$HOME", "100$", "a$$b", "$$(HOME)", "$(NO", "$", ""])
def test_a_value_survives_the_expansion_that_kubernetes_does(value):
    env = [{"name": "SAID", "value": value}]
    scene = Scene(sftjob(workers={"env": env}, prepare={"env": env}))
    scene.prepare()
    scene.step()
    for job in (scene.job(None), scene.job(1)):
        given = environment(job)
        assert expand(given["SAID"], given) == value
        assert given["HOME"] == "/run/sftjob/home"
