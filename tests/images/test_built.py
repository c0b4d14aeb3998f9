"""The operator image as it was built for the tests; tests/cluster runs it."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import build
import buildah
import inside

from machine import skip_or_fail

pytestmark = pytest.mark.cluster

MEGABYTE = 1_000_000
NOBODY = 1_234_567
MANAGERS = re.compile(
    r"(^|/)s?bin/(apt|apt-get|dpkg|pip[\d.]*|uv|conda|gcc[-\d]*|g\+\+|clang|nvcc|make|sh|bash|dash)$|/cc1(plus)?$"
)


@pytest.fixture(scope="module")
def archive() -> Path:
    try:
        return build.operator()
    except buildah.Missing as error:
        skip_or_fail(str(error))


def test_what_the_operator_adds_to_its_base_is_below_sixty_megabytes(archive: Path):
    base, *ours = [size for size, _ in inside.layers(archive)]
    assert 0 < sum(ours) < 60 * MEGABYTE < base + 60 * MEGABYTE


def test_the_operator_image_holds_no_compiler_and_no_package_manager(archive: Path):
    for _, names in inside.layers(archive):
        assert not [name for name in names if MANAGERS.search(name)]


def test_every_label_of_the_operator_image_is_filled(archive: Path):
    labels = inside.config(archive)["Labels"]
    prefix = "org.opencontainers.image."
    found = {name.removeprefix(prefix): value for name, value in labels.items() if name.startswith(prefix)}
    names = ("title", "description", "licenses", "version", "revision", "created", "source")
    assert found.keys() == {*names, "base.name", "base.digest"}
    assert all(found.values())
    assert found["base.digest"].startswith("sha256:")


def test_the_operator_starts_as_any_user_on_a_root_that_nobody_may_write(archive: Path):
    config = inside.config(archive)
    with buildah.locked(), inside.root(build.OPERATOR) as root:
        environment = inside.environment(config) | {"SFTJOB_OPERATOR_WORKERS": "many"}
        done = inside.run(root, *config["Entrypoint"], environment=environment, user=NOBODY)
        touched = "import os, pathlib; print(os.getuid()); pathlib.Path('/opt/x').write_text('')"
        spoiled = inside.run(
            root, "/opt/sftjob/bin/python", "-c", touched, environment=environment, user=NOBODY
        )
    assert (done.returncode, "SFTJOB_OPERATOR_WORKERS='many'" in done.stderr) == (2, True), done.stderr
    assert spoiled.stdout == f"{NOBODY}\n"
    assert "Read-only file system" in spoiled.stderr
