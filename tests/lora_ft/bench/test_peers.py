"""Servers of other runtimes answer as the checkpoint does. Their environments must have been installed before.

CTranslate2 refuses a tokenizer without <unk>, such as that of the tiny checkpoint. The study `serving` scores it.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from lora_ft.bench import batch_server
from lora_ft.bench.batch_server import load_engine
from lora_ft.bench.engines import KINDS
from lora_ft.bench.peer_environments import folder, interpreter
from lora_ft.bench.server_process import ServerProcess
from lora_ft.bench.subprocesses import Process
from lora_ft.export.runtime import Generator
from tests.export.oracle import END, PAD, ragged
from tests.lora_ft.bench.test_batch_server import _waiting

BENCH = Path(batch_server.__file__).parent
PROMPTS = ["say: hello", "say: some words, and then some more of them", "x"]
LIMIT = 6  # tokens


def test_an_engine_is_loaded_without_torchvision(
    checkpoint: Path, generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of it that was built for another torch breaks transformers."""
    monkeypatch.setitem(sys.modules, "torchvision", object())
    answer = load_engine("torch", "fp32", checkpoint, checkpoint, 1)
    assert sys.modules["torchvision"] is None
    texts = [text for text, _ in answer([_waiting(prompt) for prompt in PROMPTS])]
    assert texts == generator.generate(PROMPTS, max_new_tokens=LIMIT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "server"),
    [
        ("litserve", "litserve_server.py CHECKPOINT {port} --threads 1"),
        ("optimum", "batch_server.py optimum fp32 CHECKPOINT PREPARED {port} --threads 1"),
    ],
)
def test_a_peer_answers_as_the_bundle_does(
    environment: str, server: str, checkpoint: Path, generator: Generator, tmp_path: Path
) -> None:
    if not (folder(environment) / "installed").is_file():
        pytest.skip(f"the environment {environment} is not installed")
    python = shlex.quote(str(folder(environment) / "bin" / "python"))
    words = server.replace("CHECKPOINT", shlex.quote(str(checkpoint)))
    words = words.replace("PREPARED", shlex.quote(str(tmp_path / "prepared")))
    with ServerProcess(f"{python} -P {shlex.quote(str(BENCH))}/{words}") as process:
        texts = [ask(process, prompt) for prompt in PROMPTS]
    assert texts == generator.generate(PROMPTS, max_new_tokens=LIMIT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "lengths"),
    # ONNX Runtime's BeamSearch answers other tokens to a T5's padded rows
    [("openvino-requests", (20, 12)), ("beam-search", (12, 12))],
)
def test_a_peer_with_a_loop_of_its_own_returns_the_tokens_of_the_bundle(
    kind: str, lengths: tuple[int, int], checkpoint: Path, generator: Generator, tmp_path: Path
) -> None:
    environment = KINDS[kind].peer
    if not (folder(environment) / "installed").is_file():
        pytest.skip(f"the environment {environment} is not installed")
    rows = [[*range(first, first + length), END] for first, length in zip((5, 7), lengths, strict=True)]
    ids, mask = ragged(rows)
    worker = [interpreter(environment), "-P", str(BENCH / "worker.py"), kind, "fp32", str(checkpoint)]
    with Process(kind, [*worker, str(tmp_path / "prepared"), "1", "cpu"], {"CI": "true"}) as process:
        for call in ("convert", "imports", "load"):
            process.ask(call)
        for least in (0, LIMIT):
            expected = generator.generate_ids(ids, mask, max_new_tokens=LIMIT, min_new_tokens=least)
            answers = process.ask("generate", ids=rows, new=LIMIT, least=least, decoding="greedy", room=LIMIT)
            assert answers["tokens"] == [[t for t in row if t not in (PAD, END)] for row in expected.tolist()]


def ask(server: ServerProcess, prompt: str) -> str:
    """Return the answer of a server, which may still be starting."""
    body = json.dumps({"model": "base", "prompt": prompt, "max_tokens": LIMIT, "temperature": 0}).encode()
    request = urllib.request.Request(f"{server.url}/v1/completions", body, {"Content-Type": "application/json"})
    for _ in range(600):
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return str(json.load(response)["choices"][0]["text"])
        except ConnectionError:
            pass
        except OSError as error:
            if not isinstance(getattr(error, "reason", None), ConnectionError):
                raise
        server.require_alive()
        time.sleep(0.2)
    pytest.fail("the server does not answer")
