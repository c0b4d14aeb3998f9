"""The few shapes of panels that the dashboards are made of. One look for all: what, in which unit, of which query."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    prometheus,
    stat,
    statushistory,
    table,
    timeseries,
)
from grafana_foundation_sdk.models.common import (
    GraphDrawStyle,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DataSourceRef,
    DataTransformerConfig,
    FieldColorModeId,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
JOB = 'namespace=~"$namespace", sftjob=~"$sftjob"'
"""Selects the series of the chosen jobs, the operator's and the ranks'."""
TAG = "sftjob"


@dataclass(frozen=True)
class Query:
    """One query of a panel, and what its series are called."""

    expr: str
    legend: str = ""


def _target(query: Query, ref: str) -> prometheus.Dataquery:
    built = prometheus.Dataquery().ref_id(ref).expr(query.expr)
    return built.legend_format(query.legend) if query.legend else built


def _targets(queries: tuple[Query, ...]) -> list[prometheus.Dataquery]:
    return [_target(query, chr(ord("A") + index)) for index, query in enumerate(queries)]


def graph(
    title: str, unit: str, *queries: Query, text: str = "", width: int = 8, stacked: bool = False
) -> timeseries.Panel:
    """Curves over time."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .unit(unit)
        .span(width)
        .height(8)
        .show_points(VisibilityMode.NEVER)
        .line_width(1.5)
        .draw_style(GraphDrawStyle.LINE)
        .fill_opacity(30 if stacked else 0)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    if stacked:
        panel = panel.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    for target in _targets(queries):
        panel = panel.with_target(target)
    return panel


def figure(title: str, unit: str, query: Query, *, text: str = "", width: int = 4) -> stat.Panel:
    """One number, of now: not the last that there was."""
    reduce = common.ReduceDataOptions().calcs(["lastNotNull"])
    panel = stat.Panel().title(title).description(text).datasource(SOURCE).unit(unit).span(width).height(4)
    return panel.reduce_options(reduce).with_target(_target(query, "A").instant())


def heat(title: str, unit: str, query: Query, *, text: str = "", width: int = 12) -> statushistory.Panel:
    """A row per series, coloured by its value: one that is unlike the others stands out.

    Grafana draws no history with more cells than pixels, so the query asks for few.
    """
    return (
        statushistory.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .unit(unit)
        .span(width)
        .height(8)
        .color_scheme(dashboard.FieldColor().mode(FieldColorModeId.CONTINUOUS_GR_YL_RD))
        .show_value(VisibilityMode.NEVER)
        .max_data_points(200)
        .with_target(_target(query, "A"))
    )


def rows(title: str, *queries: Query, text: str = "", width: int = 24) -> table.Panel:
    """A line per job, a column per query."""
    panel = (
        table.Panel()
        .title(title)
        .description(text)
        .datasource(SOURCE)
        .span(width)
        .height(9)
        .show_header(True)
    )
    for target in _targets(queries):
        panel = panel.with_target(target.instant().format(PromQueryFormat.TABLE))
    hidden = {"Time": True, "__name__": True}
    names = {f"Value #{chr(ord('A') + index)}": query.legend for index, query in enumerate(queries)}
    return panel.with_transformation(DataTransformerConfig(id_val="merge", options={})).with_transformation(
        DataTransformerConfig(
            id_val="organize", options={"excludeByName": hidden, "renameByName": names, "indexByName": {}}
        )
    )


def board(uid: str, title: str, text: str, *, jobs: bool = True) -> dashboard.Dashboard:
    """An empty dashboard with the variables that all have; `jobs`: and those that choose jobs."""
    built = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(text)
        .tags([TAG])
        .refresh("30s")
        .time("now-6h", "now")
        .readonly()
        .link(
            dashboard.DashboardLink("SFTJob")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
    )
    if not jobs:
        return built
    chosen = 'sftjob_operator_job_info{namespace=~"$namespace"}'
    return built.with_variable(
        _choice("namespace", "label_values(sftjob_operator_job_info, namespace)")
    ).with_variable(_choice("sftjob", f"label_values({chosen}, sftjob)"))


def _choice(name: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(name)
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def row(built: dashboard.Dashboard, title: str, *panels: object) -> None:
    """A heading, and panels below it from left to right."""
    built.with_row(dashboard.Row(title).id(_number(built)))
    for panel in panels:
        built.with_panel(panel.id(_number(built)))  # type: ignore[attr-defined]


def _number(built: dashboard.Dashboard) -> int:
    taken = {panel.id_val for panel in built.build().panels or []}
    return next(number for number in count(1) if number not in taken)
