"""The dashboard and the alert rules: well-formed, and about metrics that exist."""

import json
import re
from pathlib import Path

import yaml

from laprox_sglang.report.metrics import METRICS
from laprox_sglang.report.refused import Refused

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "grafana"
DASHBOARD = json.loads((FOLDER / "laprox.json").read_text())
RULES = [
    rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
NAME = re.compile(r"\b(?:laprox_|sglang:)\w+")


def queries() -> list[str]:
    """What dashboard and rules ask Prometheus for."""
    asked = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    return [*asked, *(rule["expr"] for rule in RULES)]


def names() -> set[str]:
    variables = [json.dumps(variable) for variable in DASHBOARD["templating"]["list"]]
    return {name for text in [*queries(), *variables] for name in NAME.findall(text)}


def test_every_query_is_closed_and_names_a_metric() -> None:
    for query in queries():
        assert NAME.search(query), query
        assert all(query.count(left) == query.count(right) for left, right in ("()", "[]", "{}")), query
    ours = {metric.name for metric in METRICS} | {Refused.NAME}
    assert {name for name in names() if name.startswith("laprox_")} <= ours


def test_counters_are_asked_for_their_rate() -> None:
    for query in queries():
        for name in re.findall(r"laprox_\w+_total", query):
            assert re.search(rf"(rate|increase)\({name}", query), query


def test_every_panel_has_a_place_of_its_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= set(DASHBOARD)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells


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
