#!/bin/sh
# Makes .venv from a locked requirements file and installs the project in it, editable.
# Needs Python 3.11, 3.12 or 3.13 and nothing else: uv is taken from PATH, or installed into the environment.
# Usage: sh requirements/install.sh [requirements/dev.txt]
set -eu
lock=${1:-requirements/dev.txt}
stamp=.venv/.installed
wanted=$(cat "$lock" pyproject.toml "$0" | sha256sum | cut -c1-64)
[ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] && exit 0

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
for candidate in python3.11 python3.12 python3.13 python3; do
    command -v "$candidate" >/dev/null 2>&1 || continue
    "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && python=$candidate && break
done
if [ -z "${python:-}" ]; then
    found=$(python3 --version 2>/dev/null || echo "no python3")
    say "Python 3.11, 3.12 or 3.13 is needed, and here is $found: install one (with uv: uv python install 3.13, and put it on PATH)"
    exit 1
fi

if [ ! -x .venv/bin/python ]; then
    say "creating .venv with $("$python" --version)"
    if ! "$python" -c 'import ensurepip' 2>/dev/null && ! command -v uv >/dev/null 2>&1; then
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
            say "installing python3-venv (Debian keeps it apart)"
            apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null
        else
            say "this Python has no venv module: install it (Debian, Ubuntu: apt-get install python3-venv)"; exit 1
        fi
    fi
    if command -v uv >/dev/null 2>&1; then uv venv -q --python "$python" .venv; else "$python" -m venv .venv; fi
fi
if command -v uv >/dev/null 2>&1; then uv=uv; else
    [ -x .venv/bin/uv ] || { say "installing uv"; .venv/bin/python -m pip install -q --disable-pip-version-check uv; }
    uv=.venv/bin/uv
fi
say "installing $(grep -c '==' "$lock") locked packages (about 6 GB on disk with torch; a minute or a few)"
"$uv" pip install --python .venv/bin/python --require-hashes -r "$lock"
say "installing sftjob itself, editable"
"$uv" pip install -q --python .venv/bin/python --no-deps --no-build-isolation -e .
printf '%s' "$wanted" > "$stamp"
