"""The plots of the report as SVG in data URIs, each once for light and once for dark paper.

An image cannot run anything and needs nothing from elsewhere. No text of a user or a model goes into one.
"""

from __future__ import annotations

import base64
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("MPLCONFIGDIR", os.path.join(tempfile.gettempdir(), "sftjob-matplotlib"))

import matplotlib
import numpy as np
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from sft_trainer.report.collect import Material
from sft_trainer.report.story import Times, number

_POINTS = 800  # per curve; more are not seen
_SMOOTHED_OVER = 25  # a step's loss is that of one batch: the eye wants the mean around it


@dataclass(frozen=True)
class Ink:
    """Colours on one kind of paper."""

    text: str
    grid: str
    first: str
    second: str
    parts: tuple[str, ...]


LIGHT = Ink(
    "#3b4252", "#e3e6ec", "#2563eb", "#c2410c",
    ("#2563eb", "#b91c1c", "#c2410c", "#0f766e", "#7c3aed", "#9aa3b2"),
)  # fmt: skip
DARK = Ink(
    "#c9d1de", "#2f3745", "#6ea8fe", "#fb923c",
    ("#6ea8fe", "#f87171", "#fb923c", "#2dd4bf", "#a78bfa", "#6b7485"),
)  # fmt: skip


@dataclass(frozen=True)
class Figure:
    """One plot."""

    title: str
    description: str  # for whoever does not see it
    light: str  # data URIs
    dark: str


def figures(material: Material, times: Times) -> Iterator[Figure]:
    """Every plot for which there is something to draw."""
    steps, evaluations = material.steps, material.evaluations
    if steps or evaluations:
        yield _figure(
            "Loss", _loss_text(steps, evaluations), lambda a, ink: _loss(a, ink, steps, evaluations)
        )
    for key, title, what in (
        ("lr", "Learning rate", "learning rate of every step"),
        ("grad_norm", "Gradient norm", "norm of the gradient before clipping, of every step"),
    ):
        if steps:
            yield _figure(title, what, _curve(key, steps))
    if steps:
        yield _figure("Tokens per second", "real tokens per second of every step", _speed(steps))
    if len(material.lengths):
        text = f"{len(material.lengths):,} training rows by their number of tokens"
        yield _figure("Length of the rows", text, _histogram(material))
    if times.total > 0:
        yield _figure("Where the time went", "share of the time by kind", _bar(times), height=1.3)


Draw = Callable[[Any, Ink], None]


def _figure(title: str, description: str, draw: Draw, height: float = 2.5) -> Figure:
    return Figure(title, description, _svg(draw, LIGHT, height), _svg(draw, DARK, height))


def _svg(draw: Draw, ink: Ink, height: float) -> str:
    style: Any = {
        "font.size": 8.5,
        "text.color": ink.text,
        "axes.labelcolor": ink.text,
        "axes.edgecolor": ink.grid,
        "xtick.color": ink.text,
        "ytick.color": ink.text,
        "grid.color": ink.grid,
        "svg.hashsalt": "sftjob",  # the same report twice is the same bytes
    }
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=(5.6, height), layout="constrained")
        axes = canvas.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", linewidth=0.6)
        axes.set_axisbelow(True)
        draw(axes, ink)
        file = io.BytesIO()
        canvas.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _loss(
    axes: Any, ink: Ink, steps: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]
) -> None:
    x, y = _points(steps, "loss")
    if len(x):
        smooth = _smoothed(y)
        axes.plot(*_thinned(x, y), color=ink.first, linewidth=0.8, alpha=0.35 if smooth is not None else 1.0)
        shown = y if smooth is None else smooth
        axes.plot(*_thinned(x, shown), color=ink.first, linewidth=1.6, label="training")
    x, y = _points(evaluations, "eval_loss")
    if len(x):
        axes.plot(x, y, color=ink.second, linewidth=1.4, marker="o", markersize=3.5, label="held-out rows")
    _steps_below(axes)
    axes.set_ylabel("nats per token")
    if axes.has_data():
        axes.legend(frameon=False, labelcolor=ink.text)


def _loss_text(steps: Sequence[dict[str, Any]], evaluations: Sequence[dict[str, Any]]) -> str:
    _, y = _points(steps, "loss")
    text = f"training loss from {y[0]:.3f} to {y[-1]:.3f}" if len(y) else "no training loss yet"
    _, y = _points(evaluations, "eval_loss")
    return text + (f"; held-out loss from {y[0]:.3f} to {y[-1]:.3f}" if len(y) else "")


def _curve(key: str, steps: Sequence[dict[str, Any]]) -> Draw:
    def draw(axes: Any, ink: Ink) -> None:
        axes.plot(*_thinned(*_points(steps, key)), color=ink.first, linewidth=1.3)
        axes.set_ylim(bottom=0)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5))
        _steps_below(axes)

    return draw


def _speed(steps: Sequence[dict[str, Any]]) -> Draw:
    rates = [
        {"step": one["step"], "rate": tokens / seconds}
        for one in steps
        if (tokens := number(one.get("tokens"))) is not None and (seconds := number(one.get("seconds")))
    ]

    def draw(axes: Any, ink: Ink) -> None:
        axes.plot(*_thinned(*_points(rates, "rate")), color=ink.first, linewidth=1.0)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        _steps_below(axes)

    return draw


def _histogram(material: Material) -> Draw:
    def draw(axes: Any, ink: Ink) -> None:
        distinct = len(np.unique(material.lengths))
        axes.hist(material.lengths, bins=min(40, distinct), color=ink.first)
        axes.set_xlabel("tokens")
        axes.set_ylabel("rows")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        if material.config is not None:
            limit = material.config.data.max_length
            if material.lengths.max() > 0.5 * limit:
                axes.axvline(limit, color=ink.second, linewidth=1, linestyle="--", label="maxLength")
                axes.legend(frameon=False, labelcolor=ink.text)

    return draw


def _bar(times: Times) -> Draw:
    parts = {
        "steps": times.steps,
        "repeated steps": times.repeated,
        "evaluation": times.evaluation,
        "checkpoints": times.checkpoints,
        "starting": times.starting,
        "export, rest": times.rest,
    }

    def draw(axes: Any, ink: Ink) -> None:
        left = 0.0
        for (name, seconds), color in zip(parts.items(), ink.parts, strict=True):
            share = 100 * seconds / times.total
            if share > 0:
                axes.barh(0, share, left=left, color=color, label=f"{name} {share:.0f} %")
            left += share
        axes.set_xlim(0, 100)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.set_yticks([])
        axes.set_xticks([])
        axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, 0), frameon=False, labelcolor=ink.text)

    return draw


def _steps_below(axes: Any) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _points(lines: Sequence[dict[str, Any]], key: str) -> tuple[Any, Any]:
    """Steps and values of the lines that have a finite one."""
    found = [(line["step"], value) for line in lines if (value := number(line.get(key))) is not None]
    return np.array([step for step, _ in found]), np.array([value for _, value in found])


def _smoothed(values: Any) -> Any | None:
    """Mean of the neighbourhood, of its rest at the ends; None for few points."""
    if len(values) < 2 * _SMOOTHED_OVER:
        return None
    window = np.ones(_SMOOTHED_OVER)
    return np.convolve(values, window, "same") / np.convolve(np.ones(len(values)), window, "same")


def _thinned(x: Any, y: Any) -> tuple[Any, Any]:
    """At most `_POINTS` of the points; of every stretch its lowest and its highest, so that spikes stay."""
    if len(x) <= _POINTS:
        return x, y
    stretches = np.array_split(np.arange(len(x)), _POINTS // 2)
    kept = sorted({int(i) for s in stretches for i in (s[np.argmin(y[s])], s[np.argmax(y[s])])})
    return x[kept], y[kept]
