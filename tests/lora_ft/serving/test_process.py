"""`lora-ft serve` as it is used: a real bundle, a real process, real signals."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lora_ft.cli import run as lora_ft
from lora_ft.export.bundle.assemble import read_model
from lora_ft.export.bundle.bank import add_adapter, remove_adapter
from lora_ft.export.runtime import Generator
from tests.export.banks import draw_adapter, make_bank, member, merged
from tests.lora_ft.serving.conftest import wait_for
from tests.lora_ft.serving.server_process import ServerProcess, server_process

ROWS_AT_WORK = 'lora_ft_running_rows{bundle="bundle"}'
TEXTS = ["hello there", "a", "the quick brown fox. It jumps over 12 dogs!"]


@pytest.fixture(scope="module")
def running(published: Path) -> Iterator[ServerProcess]:
    with server_process(str(published), "--threads", "1") as server:
        yield server


def test_answers_are_those_of_the_runtime(running: ServerProcess, generator: Generator) -> None:
    client = running.client()
    reply = client.completions.create(model="bundle", prompt=TEXTS)
    assert [choice.text for choice in reply.choices] == generator.generate(TEXTS, batch_size=1)
    sampled = client.completions.create(model="bundle", prompt=TEXTS[0], temperature=0.8, top_p=0.9, seed=5)
    options = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 0, "seed": 5}
    assert [sampled.choices[0].text] == generator.generate([TEXTS[0]], **options)
    beams = running.post("/v1/generate", model="bundle", rows=TEXTS, raw=True, num_beams=3, num_return_sequences=2)
    texts = [answer["text"] for answer in beams.json()["answers"]]
    assert texts == generator.generate(TEXTS, batch_size=1, num_beams=3, num_return_sequences=2)


def test_a_stream_has_the_same_text(running: ServerProcess, generator: Generator) -> None:
    for text in TEXTS:
        chunks = running.client().completions.create(model="bundle", prompt=text, stream=True, max_tokens=12)
        streamed = "".join(choice.text for chunk in chunks for choice in chunk.choices)
        assert [streamed] == generator.generate([text], max_new_tokens=12)


def test_log_probabilities_are_those_of_the_runtime(running: ServerProcess, generator: Generator) -> None:
    reply = running.client().completions.create(model="bundle", prompt=TEXTS[0], logprobs=1, max_tokens=8)
    (expected,) = generator.answer([TEXTS[0]], output_scores=True, max_new_tokens=8)
    assert reply.choices[0].logprobs.token_logprobs == pytest.approx(expected.scores.tolist(), abs=1e-4)


def test_errors_of_a_real_engine_name_their_field(running: ServerProcess) -> None:
    for body, param in (
        ({"suppress_tokens": [10**6]}, "suppress_tokens"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"min_new_tokens": 30, "max_new_tokens": 3}, "min_new_tokens"),
        ({"labels": ["abcdefgh"], "max_new_tokens": 2}, "max_new_tokens"),
        ({"labels": ["é"]}, "labels"),
        ({"labels": [""]}, "labels"),
    ):
        response = running.post("/v1/generate", model="bundle", rows="a", raw=True, **body)
        assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


def test_a_client_that_leaves_frees_its_rows(running: ServerProcess) -> None:
    async def leave() -> None:
        async with httpx.AsyncClient() as client:
            body = {"model": "bundle", "rows": TEXTS, "raw": True, "min_new_tokens": 1000, "max_new_tokens": 1024}
            task = asyncio.create_task(client.post(f"{running.url}/v1/generate", json=body))
            while " 0.0" in (await client.get(f"{running.url}/metrics")).text.split(ROWS_AT_WORK)[1].partition("\n")[0]:
                await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(leave())
    wait_for(lambda: any(line["status"] == 499 for line in running.events("request")))
    wait_for(lambda: f"{ROWS_AT_WORK} 0.0" in httpx.get(f"{running.url}/metrics").text)


def test_sigterm_finishes_requests_at_work(published: Path, generator: Generator) -> None:
    async def stop(server: ServerProcess) -> tuple[httpx.Response, httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as client:
            body = {"model": "bundle", "prompt": TEXTS[0], "stream": True, "max_tokens": 1024}
            body |= {"temperature": 1.0, "top_p": 0.999, "seed": 1, "n": 4}
            task = asyncio.create_task(client.post(f"{server.url}/v1/completions", json=body))
            while 'running_rows{bundle="bundle"} 0.0' in (await client.get(f"{server.url}/metrics")).text:
                await asyncio.sleep(0.005)
            server.signal(signal.SIGTERM)
            while (ready := await client.get(f"{server.url}/health/ready")).status_code == 200:
                await asyncio.sleep(0.005)
            return await task, ready

    with server_process(str(published), "--threads", "1") as server:
        response, _ = asyncio.run(stop(server))
        assert response.text.endswith("data: [DONE]\n\n")
        assert server.process.wait(30) == 0
    assert server.events("draining")


def test_a_grace_that_is_over_ends_streams_with_an_error(published: Path) -> None:
    async def stop(server: ServerProcess) -> httpx.Response:
        async with httpx.AsyncClient(timeout=60) as client:
            body = {"model": "bundle", "rows": TEXTS[0], "raw": True, "stream": True}
            body |= {"min_new_tokens": 1000, "max_new_tokens": 1024}
            task = asyncio.create_task(client.post(f"{server.url}/v1/generate", json=body))
            while 'running_rows{bundle="bundle"} 0.0' in (await client.get(f"{server.url}/metrics")).text:
                await asyncio.sleep(0.005)
            server.signal(signal.SIGTERM)
            return await task

    with server_process(str(published), "--threads", "1", "--grace", "0") as server:
        response = asyncio.run(stop(server))
        last = response.text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "model_failed"
        assert server.process.wait(30) == 0


def test_a_bank_takes_adapters_while_it_serves(checkpoint: Path, tmp_path: Path) -> None:
    drawn = {name: draw_adapter(checkpoint, seed) for seed, name in enumerate(("first", "second", "third"), 1)}
    members = {
        name: member(name, weights, merged(checkpoint, weights, tmp_path / name)) for name, weights in drawn.items()
    }
    bank = tmp_path / "bank"
    make_bank(checkpoint, [members["first"], members["second"]], bank)
    architecture, weights = read_model(checkpoint)
    with server_process(str(bank), "--threads", "1") as server:
        client = server.client()
        assert sorted(model.id for model in client.models.list()) == ["bank", "first", "second"]

        def status(name: str) -> int:
            return server.post("/v1/completions", model=name, prompt=TEXTS[0]).status_code

        assert [status(name) for name in ("first", "second", "third")] == [200, 200, 404]
        add_adapter(bank, members["third"], architecture, weights)
        wait_for(lambda: status("third") == 200)
        generator = Generator.load(bank, threads=1)
        for name in ("first", "third"):
            reply = client.completions.create(model=name, prompt=TEXTS[0])
            assert [reply.choices[0].text] == generator.generate([TEXTS[0]], adapter=name)
        remove_adapter(bank, ["first"])
        wait_for(lambda: status("first") == 404)
        assert status("second") == 200
        server.signal(signal.SIGHUP)
        wait_for(lambda: len(server.events("bundle_reloaded")) >= 3)


def test_several_workers_share_a_socket_and_their_metrics(published: Path) -> None:
    with server_process(str(published), "--workers", "2") as server:
        url = server.url
        bodies = [server.post("/v1/completions", model="bundle", prompt=text) for text in TEXTS * 4]
        assert all(response.status_code == 200 for response in bodies)
        sample = 'lora_ft_requests_total{endpoint="/v1/completions",model="bundle",status="200"} 12.0'
        wait_for(lambda: sample in httpx.get(f"{url}/metrics").text)
        server.signal(signal.SIGTERM)
        assert server.process.wait(30) == 0


def workers_of(server: ServerProcess) -> list[int]:
    """Return the worker processes, but not multiprocessing's own helper."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    if not children.exists():
        pytest.skip("there is no /proc")
    return [pid for pid in map(int, children.read_text().split()) if "spawn_main" in command_of(pid)]


def command_of(pid: int) -> str:
    """Return the command line of a process, or "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
    except OSError:
        return ""


def test_a_worker_that_dies_is_replaced(published: Path) -> None:
    with server_process(str(published), "--workers", "2") as server:
        url, before = server.url, workers_of(server)
        assert len(before) == 2
        os.kill(before[0], signal.SIGKILL)
        wait_for(lambda: server.events("worker_ended"))
        wait_for(lambda: len(workers_of(server)) == 2 and before[0] not in workers_of(server))
        assert httpx.get(f"{url}/health/ready", timeout=60).status_code == 200


def test_a_reload_does_not_end_a_worker_that_is_still_loading(published: Path) -> None:
    with server_process(str(published), "--workers", "2") as server:
        url, before = server.url, workers_of(server)
        os.kill(before[0], signal.SIGKILL)
        wait_for(lambda: len(workers_of(server)) == 2 and before[0] not in workers_of(server))
        server.signal(signal.SIGHUP)
        os.kill(before[1], signal.SIGKILL)
        wait_for(lambda: before[1] not in workers_of(server))
        assert httpx.get(f"{url}/health/ready", timeout=60).status_code == 200


def test_workers_do_not_outlive_their_parent(published: Path) -> None:
    with server_process(str(published), "--workers", "2") as server:
        assert server.url
        workers = workers_of(server)
        server.process.kill()
        wait_for(lambda: not any(command_of(pid) for pid in workers), 30)


def test_wrong_usage_is_one_line(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        port = str(occupied.getsockname()[1])
        copy = shutil.copytree(published, tmp_path / "bundle")
        for arguments, message in (
            ([str(tmp_path)], "is not a bundle"),
            ([str(published), str(copy)], "two bundles are named bundle"),
            ([str(published), "--port", port], "is not available"),
            ([str(published), "--host", ""], "--host is empty (got ''); give 127.0.0.1"),
            ([str(published), "--host", "no.such.host.invalid"], "is not available"),
            ([str(published), "--port", "0", "--api-key-file", str(tmp_path / "no")], "cannot be read"),
            ([str(published), "--port", "0", "--ssl-keyfile", str(tmp_path / "no")], "has no certificate"),
            ([str(published), "--port", "0", "--ssl-certfile", str(tmp_path / "no")], "certificate cannot be loaded"),
        ):
            assert lora_ft(["serve", *arguments]) == 2
            assert message in capsys.readouterr().err


def test_a_server_without_a_reader_of_its_log_answers_and_ends(published: Path) -> None:
    command = [sys.executable, "-m", "lora_ft", "serve", "--port", "0", str(published)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        url = next(event["url"] for event in map(json.loads, process.stderr) if event["event"] == "listening")
        process.stderr.close()
        assert httpx.get(f"{url}/v1/models", timeout=30).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
