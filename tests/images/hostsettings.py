"""How this machine reaches its package index and Debian mirror: images are built with the same and keep none.

Read from where pip, uv and apt read it; only addresses, never paths, because a build sees other files.
"""

from __future__ import annotations

import configparser
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

PIP_FILES = ("/etc/pip.conf", "/etc/xdg/pip/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")
UV_FILES = ("/etc/uv/uv.toml", "~/.config/uv/uv.toml")
ADDRESSES = re.compile(r"(INDEX|INDEX_URL|TRUSTED_HOST|INSECURE_HOST|TIMEOUT|RETRIES|INDEX_STRATEGY)$")
SAME = {
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    "PIP_EXTRA_INDEX_URL": "UV_INDEX",
    "PIP_TRUSTED_HOST": "UV_INSECURE_HOST",
}


def package_index(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """PIP_* and UV_* variables, for both clients even where only one is configured."""
    settings = _of_pip(environment) | _of_uv(environment)
    settings |= {name: value for name, value in environment.items() if name.startswith(("PIP_", "UV_"))}
    settings = {name: value for name, value in settings.items() if ADDRESSES.search(name)}
    if "UV_INDEX_URL" in settings:
        settings.setdefault("UV_DEFAULT_INDEX", settings.pop("UV_INDEX_URL"))
    for pip, uv in SAME.items():
        known = settings.get(uv) or settings.get(pip)
        if known:
            settings.setdefault(pip, known)
            settings.setdefault(uv, known)
    return settings


def certificates(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The bundle of authorities that this machine trusts."""
    bundle = Path(environment.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt"))
    return bundle.resolve() if bundle.exists() else None


def debian_mirror(root: Path = Path("/")) -> str | None:
    """Where apt fetches Debian from; None on another system: debootstrap then has its own choice."""
    release = root / "etc/os-release"
    if not release.exists() or "\nID=debian\n" not in f"\n{release.read_text()}":
        return None
    lists = root / "etc/apt"
    for path in (lists / "sources.list", *sorted(lists.glob("sources.list.d/debian.*"))):
        text = path.read_text() if path.exists() else ""
        found = re.search(r"^(?:deb(?: \[[^]]*\])? |URIs: *)(https?://\S+)", text, re.M)
        if found:
            return found[1]
    return None


def _of_pip(environment: Mapping[str, str]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for name in (*PIP_FILES, environment.get("PIP_CONFIG_FILE", "")):
        parser = configparser.RawConfigParser()
        if name and parser.read(Path(name).expanduser()):
            for section in ("global", "install"):
                if parser.has_section(section):
                    items = parser.items(section)
                    settings |= {
                        f"PIP_{key.upper().replace('-', '_')}": " ".join(value.split())
                        for key, value in items
                    }
    return settings


def _of_uv(environment: Mapping[str, str]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for name in (*UV_FILES, environment.get("UV_CONFIG_FILE", "")):
        path = Path(name).expanduser()
        if not name or not path.exists():
            continue
        content = tomllib.loads(path.read_text())
        if "index-url" in content:
            settings["UV_DEFAULT_INDEX"] = content["index-url"]
        for index in content.get("index", []):
            settings["UV_DEFAULT_INDEX" if index.get("default") else "UV_INDEX"] = index["url"]
    return settings
