"""Numbers as people read them."""

from __future__ import annotations

import math
from datetime import UTC, datetime

ABSENT = "–"


def count(value: float | None) -> str:
    """12,345."""
    return ABSENT if value is None or not math.isfinite(value) else f"{value:,.0f}"


def decimal(value: float | None, digits: int = 3) -> str:
    """With so many decimals."""
    return ABSENT if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def percent(share: float | None) -> str:
    """0.123 as 12 %."""
    return ABSENT if share is None or not math.isfinite(share) else f"{100 * share:.0f} %"


def perplexity(loss: float) -> float:
    """exp(loss), as sft_trainer.evaluate has it, which needs torch."""
    return math.exp(min(loss, 700.0))


def change(before: float | None, after: float | None) -> str:
    """From before to after, as -12 %."""
    if before is None or after is None or before == 0:
        return ABSENT
    return f"{100 * (after / before - 1):+.0f} %"


def size(value: float | None) -> str:
    """Bytes as 12.3 GiB."""
    if value is None:
        return ABSENT
    for unit in ("bytes", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}"
        value /= 1024
    return f"{value:,.1f} GiB"


def duration(seconds: float | None) -> str:
    """45 s, 2 min 10 s or 3 h 05 min."""
    if seconds is None:
        return ABSENT
    if seconds == 0:
        return "0 s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def moment(seconds: float | None) -> str:
    """Seconds since 1970 as 2026-03-01 14:02 UTC."""
    if seconds is None:
        return ABSENT
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def parameters(value: int | None) -> str:
    """8.0 billion, 135 million."""
    if value is None:
        return ABSENT
    if value >= 10**9:
        return f"{value / 10**9:.1f} billion"
    return f"{value / 10**6:.0f} million" if value >= 10**7 else f"{value:,}"
