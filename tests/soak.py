"""A soak of the server: random requests, disconnects, and adapters that come and go, each answer compared.

    python -m tests.soak --requests 200000

It serves a bank of tiny adapters in a process of its own, and asks over many connections at once. The answers expected
are those of each request alone. It fails if an answer differs or is lost, if the server's memory grows by more than 2 %
between the tenth and the last percent of the requests, or if a file handle is left.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lora_ft.bench.http_client import HttpClient
from lora_ft.export.bundle.assemble import read_model
from lora_ft.export.bundle.bank import BankAdapter, add_adapter, remove_adapter
from lora_ft.models.loading import load
from tests.export.banks import draw_adapter, make_bank, member, merged
from tests.export.oracle import redraw
from tests.lora_ft.serving.server_process import server_process
from tests.tiny import save_tiny_t5

RESIDENTS, GUESTS = ("first", "second", "third"), ("guest", "visitor")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 3},
    {"max_new_tokens": 30, "min_new_tokens": 20},
    {"num_beams": 3, "num_return_sequences": 2},
    {"do_sample": True, "seed": 7, "top_k": 10},
    {"do_sample": True, "seed": 8, "top_p": 0.7, "num_return_sequences": 2},
    {"repetition_penalty": 1.5, "output_scores": True},
    {"no_repeat_ngram_size": 2},
]
_CONNECTIONS = 32
_DISCONNECTS = 0.03  # share of the requests whose client goes away
_GROWTH = 1.02


@dataclass(frozen=True)
class Question:
    """A request whose answer is known.

    Attributes:
        model: Name of the adapter, or of the bank for its base.
        message: The request as sent.
        texts: Expected texts.
        streams: True if the answer comes piece by piece.
    """

    model: str
    message: bytes
    texts: list[str]
    streams: bool


@dataclass
class Tally:
    """What has become of the requests.

    Attributes:
        outcomes: Number of requests by outcome.
        wrong: Descriptions of wrong answers.
        memory: Resident memory of the server after each percent, in bytes.
        present: Guests that are in the bank for sure.
        absent: Guests that are not.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    present: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)


class TinyBank:
    """A bank of random adapters on a tiny base."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "bank"
        self._checkpoint = redraw(save_tiny_t5(root / "checkpoint"), seed=14, end=3)
        self._members: dict[str, BankAdapter] = {}
        for seed, name in enumerate((*RESIDENTS, *GUESTS)):
            adapter = draw_adapter(self._checkpoint, seed)
            self._members[name] = member(name, adapter, merged(self._checkpoint, adapter, root / name))
        make_bank(self._checkpoint, list(self._members.values()), self.folder)

    def add(self, name: str) -> None:
        """Add a guest, as `lora-ft bank add` does."""
        add_adapter(self.folder, self._members[name], *read_model(self._checkpoint))

    def remove(self, name: str) -> None:
        """Remove a guest."""
        remove_adapter(self.folder, [name])


def questions(bank: Path, client: HttpClient, count: int) -> list[Question]:
    """Return random requests with the answers that the bank gives to each alone."""
    rng = random.Random(5)
    model = load(bank)
    drawn = []
    for _ in range(count):
        adapter = rng.choice([None, *RESIDENTS, *GUESTS])
        row = {"text": "".join(rng.choice("abcdefgh ") for _ in range(rng.choice([1, 5, 20, 40])))}
        options, streams = rng.choice(OPTIONS), rng.random() < 0.5
        chosen = model if adapter is None else model.with_adapter(adapter)
        texts = chosen.generate([row], **options)
        name = adapter or bank.name
        body = {"model": name, "rows": [row], "stream": streams, **options}
        drawn.append(Question(name, client.message("POST", "/v1/generate", json.dumps(body).encode()), texts, streams))
    return drawn


def texts_of(body: bytes, question: Question) -> list[str]:
    """Return the texts of a response."""
    if not question.streams:
        return [answer["text"] for answer in json.loads(body)["answers"]]
    texts: dict[int, str] = {}
    lines = [line[6:] for line in body.decode().split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", lines[-1:]
    for line in lines[:-1]:
        chunk = json.loads(line)
        if "text" in chunk:
            texts[chunk["answer"]] = texts.get(chunk["answer"], "") + chunk["text"]
    return [text for _, text in sorted(texts.items())]


class Soak:
    """The clients of one run.

    Args:
        url: Address of the server.
        process: Its process id.
        bank: Its bank.
        requests: Number of requests.
    """

    def __init__(self, url: str, process: int, bank: TinyBank, requests: int) -> None:
        self._client, self._process, self._bank, self._requests = HttpClient(url), process, bank, requests
        self._questions = questions(bank.folder, self._client, min(600, requests))
        self._rng, self._asked = random.Random(1), 0
        self.tally = Tally(present=set(GUESTS))

    async def run(self, show: Callable[[str], None]) -> None:
        """Ask all requests."""
        done = asyncio.Event()
        coming = asyncio.create_task(self._come_and_go(done))
        await asyncio.gather(*(self._ask(show) for _ in range(_CONNECTIONS)))
        done.set()
        await coming
        self._client.close()

    async def _ask(self, show: Callable[[str], None]) -> None:
        while self._asked < self._requests:
            self._asked += 1
            if self._asked % max(1, self._requests // 100) == 0:
                self.tally.memory.append(resident(self._process))
                if len(self.tally.memory) % 10 == 0:
                    memory = self.tally.memory[-1] / 2**20
                    show(f"{self._asked:,} requests, {memory:.1f} MiB, {dict(self.tally.outcomes)}")
            question = self._rng.choice(self._questions)
            if self._rng.random() < _DISCONNECTS:
                await self._go_away(question)
            else:
                await self._compare(question)

    async def _compare(self, question: Question) -> None:
        tally = self.tally
        while True:
            absent, present = question.model in tally.absent, question.model in tally.present
            response = await self._client.send(question.message)
            tally.outcomes[str(response.status)] += 1
            if response.status == 429:
                await asyncio.sleep(0.05)
                continue
            changed = question.model in GUESTS and (
                absent != (question.model in tally.absent) or present != (question.model in tally.present)
            )
            if response.status == 200 and (not absent or changed):
                if (texts := texts_of(response.body, question)) != question.texts:
                    tally.wrong.append(f"{question.message!r}: {texts} instead of {question.texts}")
            elif response.status != 404 or question.model not in GUESTS or (present and not changed):
                tally.wrong.append(f"{question.message!r}: {response.status} {response.body!r:.300}")
            return

    async def _go_away(self, question: Question) -> None:
        """Close the connection at some time before or while the answer comes."""
        task = asyncio.create_task(self._client.send(question.message))
        await asyncio.sleep(self._rng.random() * 0.02)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self.tally.outcomes["went away"] += 1

    async def _come_and_go(self, done: asyncio.Event) -> None:
        """Remove and add guests; in between, whether the server has one is unknown."""
        while not done.is_set():
            for name in GUESTS:
                await asyncio.sleep(2)
                self.tally.present.discard(name)
                await asyncio.to_thread(self._bank.remove, name)
                await asyncio.sleep(1)
                self.tally.absent.add(name)
                await asyncio.sleep(2)
                self.tally.absent.discard(name)
                await asyncio.to_thread(self._bank.add, name)
                self.tally.present.add(name)
                self.tally.outcomes["came and went"] += 1
                if done.is_set():
                    return


def resident(process: int) -> int:
    """Return the resident memory of a process without the files that it maps, in bytes."""
    text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    kinds = ("RssAnon:", "RssShmem:")  # the second is the cache pool
    return sum(int(text.split(kind)[1].split()[0]) for kind in kinds) * 1024


def handles(process: int) -> list[str]:
    """Return the open files of a process, without the adapters that it maps; those that were removed count."""
    paths = [str(link.readlink()) for link in Path(f"/proc/{process}/fd").iterdir()]
    return sorted(path for path in paths if not path.endswith(".safetensors"))


def problems(tally: Tally, before: Sequence[str], after: Sequence[str], load: Sequence[float]) -> list[str]:
    """Return what failed.

    Args:
        tally: Outcomes.
        before, after: Open files before the first request and after the last.
        load: Queued requests and running rows at the end.
    """
    failures = list(tally.wrong[:5])
    if len(tally.memory) >= 100:
        early, late = statistics.median(tally.memory[9:14]), statistics.median(tally.memory[-5:])
        if late > early * _GROWTH:
            failures.append(f"memory grew from {early / 2**20:.1f} to {late / 2**20:.1f} MiB")
    if len(after) > len(before):
        failures.append(f"open files: {before} before, {after} after")
    if any(load):
        failures.append(f"left at the end: queued and running {list(load)}")
    return failures


async def gauges(url: str) -> list[float]:
    """Return queued requests and running rows."""
    client = HttpClient(url)
    body = (await client.send(client.message("GET", "/metrics"))).body.decode()
    client.close()
    names = ("lora_ft_queued_requests{", "lora_ft_running_rows{")
    return [float(line.split()[-1]) for name in names for line in body.splitlines() if line.startswith(name)]


def soak(requests: int, show: Callable[[str], None] = lambda line: None) -> list[str]:
    """Run a soak, and return what failed."""
    with tempfile.TemporaryDirectory() as folder:
        bank = TinyBank(Path(folder))
        with server_process(str(bank.folder), "--threads", "1") as server:
            url, process = server.url, server.process.pid

            async def run() -> tuple[Soak, list[str], list[str], list[float]]:
                clients = Soak(url, process, bank, requests)
                await gauges(url)
                await asyncio.sleep(1)
                before = handles(process)
                began = time.monotonic()
                await clients.run(show)
                seconds = time.monotonic() - began
                for _ in range(100):  # the server closes the connections of clients that went away within moments
                    load = await gauges(url)
                    await asyncio.sleep(0.1)  # the connection of this question is one of them
                    after = handles(process)
                    if len(after) <= len(before) and not any(load):
                        break
                show(f"{requests:,} requests in {seconds:,.0f} s: {dict(clients.tally.outcomes)}")
                show(f"open files: {len(before)} before, {len(after)} after; queued and running: {load}")
                memory = np.array(clients.tally.memory) / 2**20
                if len(memory) >= 100:
                    show(f"memory: {np.median(memory[9:14]):.2f} MiB at 10 %, {np.median(memory[-5:]):.2f} at 100 %")
                return clients, before, after, load

            clients, before, after, load = asyncio.run(run())
            return problems(clients.tally, before, after, load)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000, help="number of requests")
    failures = soak(parser.parse_args().requests, lambda line: print(line, flush=True))
    sys.exit("\n".join(failures) if failures else 0)


if __name__ == "__main__":
    main()
