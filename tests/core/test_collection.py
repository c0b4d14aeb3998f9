"""What a preparation is told to collect: the platform's rule, and what the other jobs of its volume still need."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sft_trainer.config import CollectConfig
from sftjob_operator.cli.session import SETTINGS
from sftjob_operator.desired.collect import after_preparation, with_open_jobs
from sftjob_operator.settings import Settings
from worlds import FACTS, START, Scene, sftjob

PREFIX = "SFTJOB_OPERATOR_COLLECT_"


def told(scene: Scene) -> CollectConfig | None:
    """What the prepare pod would read."""
    (files,) = [item["data"] for ref, item in scene.objects.items() if ref.kind == "ConfigMap"]
    return CollectConfig.model_validate_json(files["collect.json"]) if "collect.json" in files else None


def beside(name: str, condition: str = "Running", claim: str = "ws", facts: Any = None) -> dict[str, Any]:
    """Another SFTJob of the namespace."""
    job = sftjob(name, workspace={"claimName": claim})
    job["status"] = {"conditions": [{"type": condition, "status": "True"}], "prepared": {"facts": facts}}
    return job


def facts(model: str, data: str) -> dict[str, Any]:
    return {"model": {"directory": model}, "data": {"cache": data}}


def test_jobs_of_the_same_claim_that_are_not_over_are_listed_with_what_they_need():
    scene = Scene()
    scene.beside = [
        beside("suspended", "Suspended", facts=facts("cache/m", "cache/d")),
        beside("queued", facts=facts("cache/m", "cache/e")),
        beside("done", "Complete", facts=facts("cache/x", "cache/x")),
        beside("failed", "Failed", facts=facts("cache/x", "cache/x")),
        beside("elsewhere", claim="other", facts=facts("cache/x", "cache/x")),
        sftjob("new"),
    ]
    scene.step()
    found = told(scene)
    assert found is not None
    assert found.jobs == ("bot", "new", "queued", "suspended")
    assert found.directories == ("cache/d", "cache/e", "cache/m")
    assert (found.unused_seconds, found.limit_bytes, found.checkpoints) == (30 * 86400, None, False)
    assert found.listed_time == START.replace(minute=0, second=0, microsecond=0)


def test_a_claim_of_the_jobs_own_has_its_jobs_too():
    own = beside("own", facts=facts("m/own", "d/own"))
    own["spec"]["workspace"] = {"claimTemplate": {}}
    every = [own, beside("guest", claim="own-workspace", facts=facts("m/guest", "d/own")), beside("stranger")]
    found = with_open_jobs(CollectConfig(unused_seconds=1), "own-workspace", every)
    assert found.jobs == ("guest", "own")
    assert found.directories == ("d/own", "m/guest", "m/own")
    assert found.unused_seconds == 1


@pytest.mark.parametrize(
    "odd", [None, 7, [], {"model": 1}, {"model": {"directory": {}}, "data": []}, {"x": {}}]
)
def test_facts_that_are_none_are_no_folders(odd):
    scene = Scene()
    scene.beside = [beside("odd", facts=odd)]
    scene.step()
    found = told(scene)
    assert found is not None
    assert (found.jobs, found.directories) == (("bot", "odd"), ())


def test_the_other_jobs_of_a_volume_make_no_other_preparation():
    scene = Scene()
    scene.step()
    before = json.dumps([*scene.objects.values()])
    scene.beside = [beside("late", facts=facts("cache/m", "cache/d"))]
    scene.settings = Settings(trainer_image="sftjob-trainer:test", collect_unused_days=7)
    for seconds in (5, 600, 7200):
        assert scene.step(seconds).effects == ()
    assert json.dumps([*scene.objects.values()]) == before
    scene.prepare()
    scene.step()
    assert scene.status["prepared"]["facts"]["model"]["directory"] == FACTS["model"]["directory"]
    assert len(scene.jobs("prepare")) == 1


def test_they_are_looked_at_where_a_preparation_is_due_and_not_later():
    scene = Scene()
    asked = []
    scene.take_pass()
    asked.append(scene.needs.sftjobs)
    scene.step(5)
    asked.append(scene.needs.sftjobs)
    scene.start()
    scene.step(60)
    asked.append(scene.needs.sftjobs)
    assert asked == [True, False, False]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"collect_unused_days": 0}, None),
        ({"collect_unused_days": 0, "collect_limit": 5}, (None, 5, False)),
        ({"collect_unused_days": 2, "collect_checkpoints": True}, (2 * 86400, None, True)),
    ],
)
def test_the_platform_decides_what_goes(settings, expected):
    scene = Scene()
    scene.settings = Settings(**settings)
    scene.step()
    found = told(scene)
    assert (found and (found.unused_seconds, found.limit_bytes, found.checkpoints)) == expected


def test_on_a_laptop_nothing_is_removed_nor_where_nobody_knows_which_jobs_are_open():
    assert after_preparation(SETTINGS, "ws", [sftjob()], START) is None
    assert after_preparation(Settings(), "ws", [], START) is None


def test_more_open_jobs_than_a_config_map_can_name_let_nothing_be_collected():
    scene = Scene()
    scene.beside = [
        beside(f"job-{number}", facts=facts("m" * 200, f"{number}" * 60)) for number in range(900)
    ]
    scene.step()
    assert told(scene) is None


def test_settings_come_from_the_environment_and_a_wrong_one_is_named():
    given = {f"{PREFIX}UNUSED_DAYS": "7", f"{PREFIX}LIMIT": "2Ti", f"{PREFIX}CHECKPOINTS": "true"}
    found = Settings.from_environment(given)
    assert (found.collect_unused_days, found.collect_limit, found.collect_checkpoints) == (7, 2**41, True)
    assert Settings.from_environment({f"{PREFIX}LIMIT": ""}).collect_limit is None
    assert Settings.from_environment({f"{PREFIX}CHECKPOINTS": "false"}).collect_checkpoints is False


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"UNUSED_DAYS": "-1"}, "UNUSED_DAYS='-1': a whole number of days, 0 or more"),
        ({"UNUSED_DAYS": "soon"}, "UNUSED_DAYS='soon': a whole number of days"),
        ({"LIMIT": "much"}, "LIMIT='much': 'much' is not a quantity"),
        ({"CHECKPOINTS": "yes"}, "CHECKPOINTS='yes': true or false"),
        ({"CHECKPOINTS": "true", "UNUSED_DAYS": "0"}, "CHECKPOINTS='true': checkpoints go by their age"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_its_variable(variables, words):
    with pytest.raises(ValueError, match=PREFIX + words):
        Settings.from_environment({PREFIX + name: value for name, value in variables.items()})
