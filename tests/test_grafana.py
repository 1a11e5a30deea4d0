"""The dashboard and the alert rules: well-formed, and about metrics that exist."""

import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from benchmarks.demo import dashboard
from benchmarks.demo.promql import evaluate, scrape
from laprox_sglang.report.metrics import METRICS
from laprox_sglang.report.refused import Refused

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "grafana"
DASHBOARD = json.loads((FOLDER / "laprox.json").read_text())
RULES = [
    rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
NAME = re.compile(r"\b(?:laprox_|sglang:)\w+")


def queries() -> list[str]:
    """What dashboard and rules ask Prometheus for, with Grafana's variable for a range filled in."""
    asked = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return [query.replace("$__rate_interval", "5m") for query in [*asked, *(rule["expr"] for rule in RULES)]]


def names() -> set[str]:
    variables = [json.dumps(variable) for variable in DASHBOARD["templating"]["list"]]
    return {name for text in [*queries(), *variables] for name in NAME.findall(text)}


def test_every_query_parses_and_names_a_metric() -> None:
    for query in queries():
        promql_parser.parse(query)
        assert NAME.search(query), query
    ours = {metric.name for metric in METRICS} | {Refused.NAME}
    assert {name for name in names() if name.startswith("laprox_")} <= ours


def test_counters_are_asked_for_their_rate() -> None:
    for query in queries():
        for name in re.findall(r"laprox_\w+_total", query):
            assert re.search(rf"(rate|increase)\({name}", query), query


def without(value: Any, given: Any, path: str = "") -> list[str]:
    """Where ``value``, written out by Grafana's own types, has lost something of what was given."""
    if isinstance(given, dict):
        return [
            f
            for k in given
            for f in (without(value[k], given[k], f"{path}.{k}") if k in value else [path + k])
        ]
    if isinstance(given, list):
        if len(given) != len(value):
            return [path]
        return [
            f for i, pair in enumerate(zip(value, given, strict=True)) for f in without(*pair, f"{path}[{i}]")
        ]
    return [] if value == given else [path]


def test_grafana_reads_all_of_the_dashboard() -> None:
    """Its types know every field, and write out what was read."""
    register_default_plugins()
    read = Dashboard.from_json(DASHBOARD)
    assert without(json.loads(JSONEncoder().encode(read)), DASHBOARD) == []
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= set(DASHBOARD)


def test_rules_say_what_is_wrong_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert (
            {"alert", "expr", "labels", "annotations"}
            <= set(rule)
            <= {"alert", "expr", "for", "labels", "annotations"}
        )
        assert rule["labels"]["severity"] in ("warning", "info")
        assert set(rule["annotations"]) == {"summary", "description"}


PAGE = """
# TYPE laprox_requests counter
laprox_requests_total{{model_name="m",outcome="pruned",reason=""}} {0}
laprox_requests_total{{model_name="m",outcome="whole",reason="short"}} {1}
# TYPE laprox_slots gauge
laprox_slots{{model_name="m",state="free"}} {0}
laprox_slots{{model_name="other",state="free"}} 7
"""


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sum by (outcome) (rate(laprox_requests_total[10s]))", {"pruned": 3, "whole": 1}),
        ('sum(increase(laprox_requests_total{outcome="pruned"}[10s]))', {"": 30}),
        ('sum(rate(laprox_requests_total{outcome="pruned"}[10s])) / sum(rate(laprox_requests_total[10s]))',
         {"": 0.75}),
        ("sum by (outcome) (rate(laprox_requests_total[10s])) / scalar(sum(laprox_slots))",
         {"pruned": 3 / 47, "whole": 1 / 47}),
        ('max(laprox_slots{model_name=~"m|n",instance=~".*"})', {"": 40}),
        ("sum(rate(laprox_nothing_total[10s]))", {}),
    ],
)  # fmt: skip
def test_the_picture_is_of_what_prometheus_would_say(query, expected) -> None:
    scrapes = [scrape(at, PAGE.format(count, count // 3)) for at, count in ((0, 0), (5, 10), (15, 40))]
    found = evaluate(promql_parser.parse(query), scrapes)
    assert {"".join(value for _, value in labels): value for labels, value in found.items()} == expected


def test_every_panel_can_be_drawn(tmp_path, monkeypatch) -> None:
    lines, save = {}, dashboard.pictures.save

    def looked_at(figure, path, dpi):
        lines.update({axes.get_title(loc="left"): len(axes.lines) for axes in figure.axes})
        return save(figure, path, dpi)

    monkeypatch.setattr(dashboard.pictures, "save", looked_at)
    scrapes = [scrape(at, PAGE.format(at, 0)) for at in (0, 1)]
    dashboard.draw(scrapes, tmp_path / "dashboard.png")
    panels = [
        panel for panel in json.loads(dashboard.DASHBOARD.read_text())["panels"] if panel["type"] != "row"
    ]
    assert list(lines) == [panel["title"] for panel in panels]
    # A real server fills all of them: test_server_operate.
    assert (lines["Requests that ended, by outcome"], lines["KV slots"]) == (2, 1)
    assert (tmp_path / "dashboard.png").exists()
