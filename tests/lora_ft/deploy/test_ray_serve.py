"""The application on a cluster of this machine: answers, routing, scaling, and a replica killed under load."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from lora_ft.export.runtime import Generator
from tests.export.banks import draw_adapter, make_bank, member, merged
from tests.lora_ft.serving.conftest import wait_for

ADAPTERS = ("first", "second")
FRESH = ("third", "fourth")  # adapters that are in no replica yet
BUSY = "bank"  # the base, which gets enough requests to need a second replica
TEXTS = ("hello there", "a", "the quick brown fox. It jumps over 12 dogs!")
LONG = {"min_new_tokens": 180, "max_new_tokens": 200}
WITHOUT = "needs lora-ft[ray]"
SECONDS = 120  # to start or to grow, so that a cluster that is stuck fails the test
pytestmark = pytest.mark.slow


@dataclass
class Cluster:
    """A running application.

    Attributes:
        url: Its address.
        generator: The bank that it serves.
        logs: Folder of Ray's log files.
    """

    url: str
    generator: Generator
    logs: Path

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60)

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def requests(self) -> dict[tuple[str, str], float]:
        """Answered requests by model and replica."""
        text = httpx.get(f"{self.url}/metrics", timeout=30).text
        return {
            (sample.labels["model"], sample.labels["replica"]): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == "lora_ft_requests_total" and sample.labels["status"] == "200"
        }

    def answered(self, model: str) -> float:
        """Answered requests of a model in all replicas."""
        return sum(value for (name, _), value in self.requests().items() if name == model)

    def replicas(self) -> list[psutil.Process]:
        """Processes of the replicas. Other clusters of this machine are not touched."""
        return [process for process in psutil.Process().children(recursive=True) if is_replica(process)]

    def retried(self) -> list[dict[str, Any]]:
        """Log lines about requests that were sent again."""
        lines = [line for file in self.logs.glob("worker-*.err") for line in file.read_text().splitlines()]
        return [json.loads(line) for line in lines if '"request_retried"' in line]


def is_replica(process: psutil.Process) -> bool:
    try:
        return any(word.startswith("ray::ServeReplica:lora-ft:Replica") for word in process.cmdline())
    except psutil.Error:
        return False


@pytest.fixture(scope="module")
def bank(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bank")
    drawn = {name: draw_adapter(checkpoint, seed) for seed, name in enumerate((*ADAPTERS, *FRESH), 1)}
    members = [member(name, weights, merged(checkpoint, weights, folder / name)) for name, weights in drawn.items()]
    make_bank(checkpoint, members, folder / "bank")
    return folder / "bank"


@pytest.fixture(scope="module")
def small(bank: Path) -> Iterator[Cluster]:
    """A cluster with one replica that gets a second one under load."""
    ray = pytest.importorskip("ray", reason=WITHOUT)
    serve = pytest.importorskip("ray.serve", reason=WITHOUT)
    from lora_ft.deploy.ray_serve import application

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(Path.cwd()), os.environ.get("PYTHONPATH")))))
        options = {"include_dashboard": False, "object_store_memory": 80 * 2**20, "log_to_driver": False}
        context = ray.init("local", num_cpus=2, **options)  # not the cluster of another test
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            arguments = {"bundles": str(bank), "max_replicas": 2, "cpus": 0.5}
            arguments |= {"target_requests": 2, "max_requests": 4, "upscale_delay": 1}
            starter = ThreadPoolExecutor(1)
            starter.submit(serve.run, application(arguments), name="lora-ft").result(SECONDS)
            logs = Path(context.address_info["session_dir"]) / "logs"
            yield Cluster(f"http://127.0.0.1:{port}", Generator.load(bank, threads=1), logs)
        finally:
            serve.shutdown()
            ray.shutdown()


@pytest.fixture(scope="module")
def replicas(small: Cluster) -> tuple[int, int]:
    """Number of replicas before and after a load of six requests at a time."""
    before, enough = len(small.replicas()), threading.Event()

    def ask() -> None:
        while not enough.is_set():
            small.post("/v1/generate", model=BUSY, rows="a", raw=True, **LONG).raise_for_status()

    def is_grown() -> bool:
        """The second replica answers, too, since the first one is full."""
        return len({replica for _, replica in small.requests()}) == 2

    with ThreadPoolExecutor(6) as pool:
        tasks = [pool.submit(ask) for _ in range(6)]
        try:
            wait_for(is_grown, SECONDS)
        finally:
            enough.set()
        for task in tasks:
            task.result(SECONDS)
    return before, len(small.replicas())


@pytest.fixture(scope="module")
def cluster(small: Cluster, replicas: tuple[int, int]) -> Cluster:
    """A cluster with two replicas. Ray removes none before ten minutes without load."""
    assert replicas[1] == 2
    return small


def test_a_replica_is_added_under_load(replicas: tuple[int, int]) -> None:
    assert replicas == (1, 2)


def test_answers_are_those_of_the_runtime(cluster: Cluster) -> None:
    client, generator = cluster.client(), cluster.generator
    assert sorted(model.id for model in client.models.list()) == sorted((BUSY, *ADAPTERS, *FRESH))
    for name in ADAPTERS:
        reply = client.completions.create(model=name, prompt=list(TEXTS))
        assert [choice.text for choice in reply.choices] == generator.generate(TEXTS, adapter=name, batch_size=1)
        chunks = client.completions.create(model=name, prompt=TEXTS[0], stream=True, max_tokens=12)
        streamed = "".join(choice.text for chunk in chunks for choice in chunk.choices)
        assert [streamed] == generator.generate([TEXTS[0]], adapter=name, max_new_tokens=12)


def test_errors_are_those_of_the_server(cluster: Cluster) -> None:
    assert cluster.post("/v1/generate", model="unknown", rows="a").json()["error"]["code"] == "model_not_found"
    assert cluster.post("/v1/generate", model="first", rows="a", nonsense=1).json()["error"]["param"] == "nonsense"
    assert httpx.get(f"{cluster.url}/nowhere", timeout=30).json()["error"]["code"] == "not_found"
    assert httpx.get(f"{cluster.url}/health/ready", timeout=30).json() == {"status": "ready"}


def test_requests_of_an_adapter_meet_in_one_replica(cluster: Cluster) -> None:
    def meet(adapter: str) -> bool:
        cluster.post("/v1/generate", model=adapter, rows="a", raw=True)
        time.sleep(1)  # the gateway learns of a replica's adapters within a moment
        for _ in range(10):
            assert cluster.post("/v1/generate", model=adapter, rows="a", raw=True).status_code == 200
        return sum(model == adapter for model, _ in cluster.requests()) == 1

    assert any(meet(adapter) for adapter in FRESH)


def test_a_client_that_leaves_frees_its_rows(cluster: Cluster) -> None:
    body = {"model": "first", "rows": list(TEXTS), "raw": True, "stream": True}
    body |= {"min_new_tokens": 1000, "max_new_tokens": 1024}
    with httpx.stream("POST", f"{cluster.url}/v1/generate", json=body, timeout=60) as response:
        next(response.iter_lines())

    def running() -> float:
        text = httpx.get(f"{cluster.url}/metrics", timeout=30).text
        families = text_string_to_metric_families(text)
        return sum(sample.value for family in families for sample in family.samples if "running_rows" in sample.name)

    wait_for(lambda: running() == 0, 30)


def test_no_request_is_lost_when_a_replica_is_killed(cluster: Cluster) -> None:
    expected = {
        (name, text): cluster.generator.generate([text], adapter=name, **LONG)[0] for name in ADAPTERS for text in TEXTS
    }
    killed, finished = threading.Event(), threading.Event()

    def ask(number: int) -> list[tuple[int, str, str]]:
        """Return (status, answer, expected answer) of requests until the killed replica has been missed a while."""
        results = []
        after = 0
        while after < 4:
            after += killed.is_set()
            name, text = list(expected)[(number + len(results)) % len(expected)]
            body = {"model": name, "rows": text, "raw": True, "stream": number % 2 == 0, **LONG}
            answer = cluster.post("/v1/generate", **body)
            results.append((answer.status_code, text_of(answer), expected[name, text]))
        finished.set()
        return results

    with ThreadPoolExecutor(6) as pool:
        tasks = [pool.submit(ask, number) for number in range(6)]
        try:
            # Each adapter may be in one replica only, so its requests are counted over all replicas.
            wait_for(lambda: all(cluster.answered(name) > 10 for name in ADAPTERS), 60)
            busiest = max(cluster.replicas(), key=lambda process: process.cpu_percent(0.3))
            busiest.kill()
        finally:
            killed.set()  # otherwise the threads ask forever
        results = [result for task in tasks for result in task.result(120)]
    assert [status for status, _, _ in results] == [200] * len(results)
    assert [answer for _, answer, _ in results] == [expected_text for _, _, expected_text in results]
    assert cluster.retried()  # some were in its hands
    wait_for(lambda: len(cluster.replicas()) == 2, 60)  # and another one takes its place


def text_of(answer: httpx.Response) -> str:
    if not answer.headers.get("content-type", "").startswith("text/event-stream"):
        return "".join(item["text"] for item in answer.json().get("answers", []))
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: ")]
    events = [json.loads(line) for line in lines if line != "[DONE]"]
    return "".join(event["text"] if "text" in event else str(event.get("error", "")) for event in events)
