"""Values that no schema has asked for: what people, generators and attackers put where something else belongs."""

from __future__ import annotations

from random import Random
from typing import Any

WORDS = (
    "", " ", "a", "A", "0", "-1", "1e400", "NaN", "null", "true", "yes", "~", "..", "../..", "/etc/passwd", ".", "a/../b",
    "x" * 46, "x" * 300, "x" * 5000, "Straße", "数据", "\u202eabc", "\ud7ff\ue000", "\U0001f600" * 20, "a\x00b", "a\nb",
    "line\r\nline", "a\tb", "{{ .Values }}", "${HOME}", "$(rm)", "%s%n", "'\"", "\\", "<script>", "--flag", "a=b", "a,b",
    "2e-5", "0x10", "1_000", "١٢٣", "１２", "64Gi", "-5Mi", "1e3Gi", "100000000000000000000Gi", "0.5", "12345678901234567890",
    "hf://a/b@c", "s3://b/k", "file:///etc", "models/x", "*.jsonl", "[", "a.b/c", "a.b/c/d", "nvidia.com/gpu", "-a", "a-",
)  # fmt: skip
NUMBERS = (
    0, -0.0, 1, -1, 2, 3, 7, 2**31, 2**53, 2**63, -(2**63), 10**30, 0.5, 1e-320, 1e308, float("inf"), float("-inf"),
    float("nan"), 1.0, 2.5, 10**400,
)  # fmt: skip


def anything(random: Random, depth: int = 3) -> Any:
    """Any JSON value, and numbers that JSON cannot carry but YAML can."""
    kind = random.randrange(9 if depth else 6)
    if kind < 2:
        return random.choice(WORDS)
    if kind < 4:
        return random.choice(NUMBERS)
    if kind == 4:
        return random.choice((None, True, False))
    if kind == 5:
        return random.choice(([], {}))
    if kind == 6:
        return [anything(random, depth - 1) for _ in range(random.randrange(4))]
    if kind == 7:
        return {random.choice(WORDS): anything(random, depth - 1) for _ in range(random.randrange(4))}
    return nested(random)


def nested(random: Random) -> Any:
    """Very deep, or very long."""
    if random.random() < 0.3:
        return [random.choice(WORDS)] * random.choice((33, 1000))
    value: Any = random.choice(WORDS)
    for _ in range(random.choice((20, 60))):
        value = [value] if random.random() < 0.5 else {"a": value}
    return value
