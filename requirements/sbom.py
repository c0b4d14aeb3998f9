"""`make sbom`: dist/sbom-operator.json and dist/sbom-trainer.json, what is in each image as CycloneDX.

Versions and hashes are those of the lock files, which is all that an image installs; licences are what the installed
packages say of themselves. Runs in the environment of requirements/supply.txt.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import sys
import tomllib
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense, License
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ("operator", "trainer")
_ENTRY = re.compile(r"^([a-z0-9._-]+)==([^\s;]+)(?: *;.*?)?((?: *\\\n +--hash=sha256:[0-9a-f]{64})+)", re.M)


class Locked(NamedTuple):
    """One package of a lock file."""

    name: str
    version: str
    hashes: tuple[str, ...]


def locked(text: str) -> Iterator[Locked]:
    """The packages of a lock file with hashes."""
    for name, version, hashes in _ENTRY.findall(text):
        yield Locked(name, version, tuple(re.findall(r"sha256:([0-9a-f]{64})", hashes)))


def licences(environment: Path) -> dict[str, str]:
    """What the packages installed in `environment` say of their licence, by name."""
    folders = [str(folder) for folder in environment.glob("lib/python3*/site-packages")]
    found = {}
    for one in importlib.metadata.distributions(path=folders):
        stated = (
            one.metadata.get("License-Expression") or _classified(one.metadata) or one.metadata.get("License")
        )
        if stated and stated.strip() not in ("", "UNKNOWN"):
            name = re.sub(r"[-_.]+", "-", one.metadata["Name"]).lower()
            found[name] = stated.strip().splitlines()[0][:200]
    return found


def document(image: str, lock: str, known: Mapping[str, str], version: str) -> str:
    """The CycloneDX document of `image`, checked against the schema; ValueError if it does not hold to it."""
    bom = Bom(serial_number=uuid.uuid5(uuid.NAMESPACE_OID, f"{image} {version} {lock}"))
    bom.metadata.component = Component(name=f"sftjob-{image}", version=version, type=ComponentType.CONTAINER)
    packages = list(locked(lock))
    for one in packages:
        purl = PackageURL("pypi", None, one.name, one.version)
        hashes = [HashType(alg=HashAlgorithm.SHA_256, content=content) for content in one.hashes]
        stated = known.get(one.name)
        bom.components.add(
            Component(
                name=one.name,
                version=one.version,
                type=ComponentType.LIBRARY,
                bom_ref=str(purl),
                purl=purl,
                hashes=hashes,
                licenses=[_licence(stated)] if stated else [],
            )
        )
    bom.register_dependency(bom.metadata.component, bom.components)
    text = JsonV1Dot6(bom).output_as_string(indent=1)
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise ValueError(f"{image}: {error}")
    return str(text)


def _classified(metadata: importlib.metadata.PackageMetadata) -> str:
    names = [
        line.rpartition(" :: ")[2]
        for line in metadata.get_all("Classifier") or ()
        if line.startswith("License")
    ]
    return " AND ".join(names) if len(names) == 1 else ", ".join(names)


def _licence(stated: str) -> License:
    made = LicenseFactory().make_from_string(stated)
    return made if not isinstance(made, DisjunctiveLicense) or made.id else DisjunctiveLicense(name=stated)


def main() -> int:
    """Write both; the last line says where."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--environment", type=Path, default=ROOT / ".venv", help="where the packages are installed"
    )
    parser.add_argument("--to", type=Path, default=ROOT / "dist")
    chosen = parser.parse_args()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chosen.to.mkdir(parents=True, exist_ok=True)
    known = licences(chosen.environment)
    for image in IMAGES:
        text = document(image, (ROOT / "requirements" / f"{image}.txt").read_text(), known, version)
        path = chosen.to / f"sbom-{image}.json"
        path.write_text(text + "\n")
        sys.stdout.write(f"{path}: {len(json.loads(text)['components'])} packages\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
