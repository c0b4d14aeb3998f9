"""What can be said of the images without building them; tests/cluster runs the operator's."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

import build
import hostsettings

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


LABELS = (
    "title",
    "description",
    "licenses",
    "version",
    "revision",
    "created",
    "source",
    "base.name",
    "base.digest",
)


def stage(name: str) -> str:
    found = re.search(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.M | re.S)
    assert found, f"the Dockerfile has no stage {name}"
    return found[1]


@pytest.mark.parametrize("target", ["operator", "trainer"])
def test_a_final_image_runs_as_a_number_and_starts_without_a_shell(target: str):
    text = stage(target)
    assert "\nUSER 65532:65532\n" in text
    assert re.search(r'^ENTRYPOINT \["/opt/sftjob/bin/python", "-m", "\w+"\]$', text, re.M)
    for label in LABELS:
        assert f"org.opencontainers.image.{label}=" in text


@pytest.mark.parametrize("target", ["operator", "trainer"])
def test_nothing_is_installed_in_a_final_image(target: str):
    assert not re.search(r"^RUN ", stage(target), re.M)


def test_no_line_of_the_operator_image_is_for_one_architecture():
    operator = stage("tools") + stage("wheel") + stage("operator-environment") + stage("operator")
    assert not re.search(r"amd64|x86|aarch64|arm64|TARGETARCH|--platform", operator)


def test_another_torch_needs_its_own_lock_and_no_host_of_an_index():
    assert "requirements/trainer${TORCH_BACKEND:+-$TORCH_BACKEND}.txt" in stage("trainer-environment")
    assert not re.search(r"https?://", DOCKERFILE)
    assert "requirements/trainer-$(TORCH_BACKEND).txt" in (ROOT / "Makefile").read_text()


def test_no_image_sets_pythonpath_because_ranks_would_inherit_it():
    assert "PYTHONPATH" not in DOCKERFILE


def test_every_package_from_an_index_is_checked_against_a_hash():
    for command in re.findall(r"(?:pip install)[^&\n]*", DOCKERFILE):
        assert "--require-hashes" in command or "--offline" in command, command
    for name in set(re.findall(r"-r (requirements/[a-z]+)", DOCKERFILE)):
        text = (ROOT / f"{name}.txt").read_text()
        assert len(re.findall(r"^\S+==", text, re.M)) <= len(re.findall(r"--hash=sha256:", text)), name


def test_every_step_that_reaches_out_can_be_given_index_and_certificates():
    for command in re.findall(r"^RUN .*--require-hashes.*$", DOCKERFILE, re.M):
        assert "id=package-index" in command
        assert "id=ca-certificates" in command


def test_the_context_is_an_allow_list_that_holds_what_is_copied():
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    allowed = {line[1:] for line in lines if line.startswith("!")}
    for copied in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M):
        assert {name.split("/")[0] for name in copied.split()} <= allowed


def test_every_source_that_is_copied_decides_the_cache_key():
    copied = {
        name
        for words in re.findall(
            r"^COPY (?!--from)(.*) \S+$", stage("wheel") + stage("operator-environment"), re.M
        )
        for name in words.split()
    }
    assert copied <= {*build.SOURCES, *build.REQUIREMENTS}
    assert build._digest("dev") == build._digest("dev") != build._digest("1.0")


def test_a_mirror_configured_for_one_client_serves_both(tmp_path: Path):
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = https://mirror.example.com/simple\ncert = /somewhere/ca.crt\n")
    found = hostsettings.package_index(
        {"PIP_CONFIG_FILE": str(config), "PIP_FIND_LINKS": "/opt/wheels", "UV_OFFLINE": "1"}
    )
    assert found["PIP_INDEX_URL"] == found["UV_DEFAULT_INDEX"] == "https://mirror.example.com/simple"
    assert not [name for name, value in found.items() if value.startswith("/")]


def test_uv_settings_of_the_environment_win():
    found = hostsettings.package_index({"UV_INDEX_URL": "https://b.example.com/simple"})
    assert found["UV_DEFAULT_INDEX"] == "https://b.example.com/simple"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sources.list", "# a comment\ndeb [signed-by=/k] http://mirror.example.com/debian bookworm main\n"),
        (
            "sources.list.d/debian.sources",
            "Types: deb\nURIs: http://mirror.example.com/debian\nSuites: bookworm\n",
        ),
    ],
    ids=["one-line", "deb822"],
)
def test_the_debian_mirror_is_that_of_apt(tmp_path: Path, name: str, text: str):
    (tmp_path / "etc/apt/sources.list.d").mkdir(parents=True)
    (tmp_path / "etc/os-release").write_text('NAME="Debian"\nID=debian\n')
    (tmp_path / "etc/apt" / name).write_text(text)
    assert hostsettings.debian_mirror(tmp_path) == "http://mirror.example.com/debian"


def test_another_distribution_leaves_the_choice_to_debootstrap(tmp_path: Path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text("ID=fedora\n")
    assert hostsettings.debian_mirror(tmp_path) is None
