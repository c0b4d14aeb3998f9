"""What a live view shows beside the table: the loss as a line of blocks, and how the pods stand. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from sftjob_operator.api.objects import Manifest, is_true

_BLOCKS = "▁▂▃▄▅▆▇█"
_NAMED = 4  # pods that are named one by one
KEPT = 4096


def sparkline(values: Sequence[float], width: int) -> str:
    """One block per value, or per mean of neighbours where there are more values than `width`."""
    if not values:
        return ""
    groups = min(width, len(values))
    edges = [len(values) * number // groups for number in range(groups + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    low, high = min(means), max(means)
    scale = (len(_BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BLOCKS[round((value - low) * scale)] for value in means)


class Losses:
    """Those that were seen while we watched, one a step."""

    def __init__(self) -> None:
        """None yet."""
        self._steps: dict[int, float] = {}

    def see(self, progress: Manifest) -> None:
        """Take what status.progress says; a restart from an earlier step replaces what followed it."""
        step, loss = progress.get("step"), _number(progress.get("loss"))
        if step is None or loss is None:
            return
        if self._steps and step < max(self._steps):
            self._steps = {known: value for known, value in self._steps.items() if known < step}
        self._steps[step] = loss
        if len(self._steps) > KEPT:
            del self._steps[min(self._steps)]

    def line(self, width: int) -> str:
        """`loss 2.31 ▇▅▃▂▁ 0.72`; empty before the second value."""
        values = [self._steps[step] for step in sorted(self._steps)]
        if len(values) < 2:
            return ""
        return f"loss {values[0]:.4g} {sparkline(values, width)} {values[-1]:.4g}"


def pods_line(pods: Sequence[Manifest]) -> str:
    """`2 of 2 ready: bot-1-0 on gpu-1, bot-1-1 on gpu-2`; counts where there are many."""
    living = [pod for pod in pods if pod.get("status", {}).get("phase") not in ("Succeeded", "Failed")]
    if not living:
        return ""
    ready = sum(is_true(pod, "Ready") for pod in living)
    head = f"pods {ready} of {len(living)} ready"
    if len(living) > _NAMED:
        phases = Counter(str(pod.get("status", {}).get("phase", "Unknown")) for pod in living)
        return f"{head}: {', '.join(f'{count} {phase}' for phase, count in sorted(phases.items()))}"
    return f"{head}: {', '.join(sorted(_named(pod) for pod in living))}"


def _named(pod: Manifest) -> str:
    node, phase = pod.get("spec", {}).get("nodeName"), pod.get("status", {}).get("phase", "Unknown")
    name = pod.get("spec", {}).get("hostname") or pod["metadata"]["name"]
    where = f" on {node}" if node else ""
    return f"{name}{where}" if phase == "Running" else f"{name}{where} {phase}"


def _number(text: object) -> float | None:
    try:
        value = float(str(text))
    except ValueError:
        return None
    return value if value == value and abs(value) != float("inf") else None
