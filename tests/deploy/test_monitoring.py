"""The dashboard and the compose file: their queries, mounts and options fit the server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.dockerfile import ROOT, stages, the
from tests.deploy.exposed_metrics import exposed
from tests.test_docs import parameters

FOLDER = ROOT / "deploy"
DASHBOARD = json.loads((FOLDER / "grafana/dashboards/lora-ft.json").read_text(encoding="utf-8"))
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
SERVER = COMPOSE["services"]["server"]
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
VARIABLES = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
FROM_SCRAPING = {"job", "instance"}  # labels that Prometheus adds
RATE = "$__rate_interval"


def selectors(expression: str) -> list[Any]:
    """Return the parts of a query that name a metric."""
    parser = pytest.importorskip("promql_parser", reason="pip install promql-parser")
    nodes: list[Any] = []

    def collect(node: Any) -> bool:
        if isinstance(node, parser.VectorSelector):
            nodes.append(node)
        return True

    parser.walk(parser.parse(expression.replace(RATE, "1m")), collect)
    return nodes


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_query_reads_metrics_and_labels_of_the_server(expression: str) -> None:
    used = selectors(expression)
    assert used
    for selector in used:
        assert selector.name in exposed(), f"the server has no metric {selector.name}"
        labels = {matcher.name for matcher in selector.matchers.matchers}
        assert labels <= exposed()[selector.name] | FROM_SCRAPING


def test_the_dashboard_shows_every_metric() -> None:
    names = {selector.name for expression in EXPRESSIONS for selector in selectors(expression)}
    shown = {name.removesuffix("_bucket") for name in names}
    suffixes = ("_created", "_bucket", "_sum", "_count")
    assert shown >= {name for name in exposed() if name.startswith("lora_ft_") and not name.endswith(suffixes)}


def test_panels_do_not_overlap_and_have_a_source() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        assert panel["title"] and panel["description"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    identities = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identities)) == len(identities)


def test_variables_are_defined_and_used() -> None:
    text = json.dumps([DASHBOARD["panels"], DASHBOARD["templating"]])
    for name, variable in VARIABLES.items():
        assert f"${name}" in text or f"${{{name}}}" in text, name
        if variable["type"] == "query":
            metric, label = variable["query"]["query"].removeprefix("label_values(").rstrip(")").rsplit(", ", 1)
            assert label in exposed()[metric.partition("{")[0]] | FROM_SCRAPING


def test_grafana_and_prometheus_find_their_files() -> None:
    grafana = COMPOSE["services"]["grafana"]
    mounts = dict(volume.removesuffix(":ro").split(":") for volume in grafana["volumes"])
    for source in [*mounts, COMPOSE["services"]["prometheus"]["volumes"][0].split(":")[0]]:
        assert (FOLDER / source).exists(), source
    provider = yaml.safe_load((FOLDER / "grafana/provisioning/dashboards/lora-ft.yaml").read_text(encoding="utf-8"))
    assert provider["providers"][0]["options"]["path"] == mounts["./grafana/dashboards"]
    [source] = yaml.safe_load(
        (FOLDER / "grafana/provisioning/datasources/prometheus.yaml").read_text(encoding="utf-8")
    )["datasources"]
    assert source["url"] == "http://prometheus:9090"
    scraping = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
    [job] = scraping["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"server:{the(stages()[-1], 'EXPOSE').text}"]}]
    assert job["metrics_path"] == "/metrics"


def test_the_service_builds_the_image_with_valid_options() -> None:
    assert (FOLDER / SERVER["build"]["context"]).resolve() == ROOT
    assert (ROOT / SERVER["build"]["dockerfile"]).is_file()
    words = [*the(stages()[-1], "ENTRYPOINT").words[1:], *SERVER["command"]]
    command, remaining = parameters(words)
    values = command.make_context("serve", remaining).params
    assert SERVER["ports"] == [f"127.0.0.1:8000:{values['port']}"]
    assert values["grace"] < float(SERVER["stop_grace_period"].removesuffix("s"))


def test_the_service_is_read_only_and_unprivileged() -> None:
    assert SERVER["read_only"] is True
    assert SERVER["cap_drop"] == ["ALL"]
    assert SERVER["security_opt"] == ["no-new-privileges:true"]
    assert all(volume["read_only"] for volume in SERVER["volumes"])
    assert SERVER["tmpfs"][0].startswith("/tmp:")
    assert SERVER["environment"]["LORA_FT_API_KEY"].startswith("${LORA_FT_API_KEY:?")  # refuses to start without one
    assert {"cpus", "memory"} <= SERVER["deploy"]["resources"]["limits"].keys()


def test_the_readme_names_every_file() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in FOLDER.iterdir():
        if path.name != "README.md":
            name = f"{path.name}/" if path.is_dir() else path.name
            assert f"`{name}`" in text or f"`{path.name}" in text, path.name
    assert Path(FOLDER / "README.md").is_file()
