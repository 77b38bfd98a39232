"""The manifests: valid for Kubernetes, consistent with each other, with the image and with the server."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from lora_ft.serving.app import Service, application
from lora_ft.serving.keys import VARIABLE, ApiKeys
from lora_ft.serving.registry import Registry
from tests.deploy.dockerfile import ROOT, stages, the
from tests.deploy.exposed_metrics import exposed
from tests.lora_ft.serving.fake_engine import FakeEngine
from tests.test_docs import parameters

FOLDER = ROOT / "deploy" / "kubernetes"
NOT_APPLIED = ("kustomization.yaml", "prometheus-adapter.yaml")  # of kustomize and of a Helm chart
MANIFESTS = sorted(path.name for path in FOLDER.glob("*.yaml") if path.name not in NOT_APPLIED)
OLDEST, NEWEST = "1.30", "1.37"  # preStop.sleep needs 1.30


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def pod() -> dict[str, Any]:
    return manifest("deployment")["spec"]["template"]


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    [container] = pod["spec"]["containers"]
    return container


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_fits_the_schema(name: str, version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    for document in yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")):
        validator.validate(document, version, strict=True)


def test_the_schema_refuses_an_unknown_field() -> None:
    """The validator is strict, so that a misspelled field is not silently ignored."""
    validator = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    broken = manifest("deployment")
    broken["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(validator.ValidationError, match="readynessProbe"):
        validator.validate(broken, NEWEST, strict=True)


def test_every_manifest_is_applied() -> None:
    content = manifest("kustomization")
    assert sorted(content["resources"]) == MANIFESTS
    [image] = content["images"]
    assert image["name"] == manifest("deployment")["spec"]["template"]["spec"]["containers"][0]["image"]
    assert content["namespace"] == manifest("namespace")["metadata"]["name"]


def test_kustomize_builds_the_folder() -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", str(FOLDER)]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert process.returncode == 0, process.stderr
    manifests = list(yaml.safe_load_all(process.stdout))
    assert len(manifests) == len(MANIFESTS)
    assert {built["metadata"].get("namespace") for built in manifests if built["kind"] != "Namespace"} == {"lora-ft"}


def test_selectors_match_the_pods(pod: dict[str, Any]) -> None:
    labels = pod["metadata"]["labels"]
    [spread] = pod["spec"]["topologySpreadConstraints"]
    for selector in (
        manifest("deployment")["spec"]["selector"]["matchLabels"],
        manifest("service")["spec"]["selector"],
        manifest("disruption-budget")["spec"]["selector"]["matchLabels"],
        manifest("network-policy")["spec"]["podSelector"]["matchLabels"],
        spread["labelSelector"]["matchLabels"],
    ):
        assert selector
        assert selector.items() <= labels.items()


def test_names_refer_to_manifests(pod: dict[str, Any], container: dict[str, Any]) -> None:
    claims = [volume["persistentVolumeClaim"] for volume in pod["spec"]["volumes"] if "persistentVolumeClaim" in volume]
    assert [claim["claimName"] for claim in claims] == [manifest("models")["metadata"]["name"]]
    assert pod["spec"]["serviceAccountName"] == manifest("service-account")["metadata"]["name"]
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    target = manifest("autoscaler")["spec"]["scaleTargetRef"]
    deployment = manifest("deployment")
    assert target == {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "name": deployment["metadata"]["name"],
    }


def test_ports_are_the_servers(container: dict[str, Any], pod: dict[str, Any]) -> None:
    [port] = container["ports"]
    assert port["containerPort"] == int(the(stages()[-1], "EXPOSE").text)
    [service] = manifest("service")["spec"]["ports"]
    [[allowed]] = [rule["ports"] for rule in manifest("network-policy")["spec"]["ingress"]]
    probes = [container[name]["httpGet"]["port"] for name in ("startupProbe", "livenessProbe", "readinessProbe")]
    assert {service["targetPort"], allowed["port"], *probes} == {port["name"]}
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])


def test_the_server_answers_at_every_path(container: dict[str, Any], pod: dict[str, Any], tmp_path: Path) -> None:
    """Probes and scrapes need no key, although the pods have one."""
    engine = FakeEngine(tmp_path / "bank")
    app = application(Service(Registry({"bank": engine}), keys=ApiKeys(["secret"])))  # type: ignore[dict-item]

    async def statuses(paths: list[str]) -> list[int]:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://pod") as client:
            return [(await client.get(path)).status_code for path in paths]

    live, ready = (container[name]["httpGet"]["path"] for name in ("livenessProbe", "readinessProbe"))
    start = container["startupProbe"]["httpGet"]["path"]
    scraped = pod["metadata"]["annotations"]["prometheus.io/path"]
    assert asyncio.run(statuses([live, ready, start, scraped])) == [200, 200, 200, 200]
    engine.failed = RuntimeError("the engine ended")  # the pod is restarted, not only left out
    assert asyncio.run(statuses([live, ready, scraped])) == [503, 503, 200]


def test_the_arguments_are_those_of_the_command_line(container: dict[str, Any]) -> None:
    words = [*the(stages()[-1], "ENTRYPOINT").words[1:], *container["args"]]
    command, remaining = parameters(words)
    values = command.make_context("serve", remaining).params
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert [str(Path(bundle).parent) for bundle in values["bundles"]] == ["/models"]
    assert mounts["/models"]["readOnly"]
    assert [entry["name"] for entry in container["env"]] == [VARIABLE]


def test_a_pod_has_time_to_drain(pod: dict[str, Any], container: dict[str, Any]) -> None:
    args = container["args"]
    grace = int(args[args.index("--grace") + 1])
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["spec"]["terminationGracePeriodSeconds"] >= pause + grace + 5  # the server's reserve


def test_a_pod_meets_the_restricted_standard(pod: dict[str, Any], container: dict[str, Any]) -> None:
    own, shared = container["securityContext"], pod["spec"]["securityContext"]
    assert shared["runAsNonRoot"]
    assert f"{shared['runAsUser']}:{shared['runAsGroup']}" == the(stages()[-1], "USER").text
    assert shared["seccompProfile"] == {"type": "RuntimeDefault"}
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert manifest("network-policy")["spec"]["egress"] == []


def test_requests_and_limits_are_set(container: dict[str, Any]) -> None:
    resources = container["resources"]
    assert resources["requests"].keys() == resources["limits"].keys() == {"cpu", "memory"}
    assert resources["requests"]["cpu"] == resources["limits"]["cpu"]  # threads are as many as the limit


def test_the_autoscaler_reads_a_metric_of_the_server() -> None:
    [metric] = manifest("autoscaler")["spec"]["metrics"]
    name = metric["pods"]["metric"]["name"]
    [rule] = manifest("prometheus-adapter")["rules"]["custom"]
    assert rule["name"]["as"] == rule["name"]["matches"] == name
    assert rule["seriesQuery"].startswith(f"{name}{{")
    assert name in exposed()


def test_an_eviction_leaves_a_pod() -> None:
    assert manifest("disruption-budget")["spec"]["maxUnavailable"] == 1
    assert manifest("autoscaler")["spec"]["minReplicas"] > 1
