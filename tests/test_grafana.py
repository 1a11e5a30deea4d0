"""The dashboard and the alert rules: well-formed, and about metrics that exist."""

import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

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
