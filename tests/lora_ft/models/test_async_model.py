"""A bundle answers many tasks, loops and threads at once, each as if it were alone."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

import lora_ft
from lora_ft.core.errors import LoraFtError, QueueFullError, UsageError
from lora_ft.export.bundle.bank import remove_adapter
from lora_ft.export.runtime.manifest import NAME
from lora_ft.models.async_model import AsyncModel, Delta
from tests.export.banks import draw_adapter, make_bank, member, merged
from tests.export.oracle import make_bundle, redraw
from tests.tiny import save_tiny_t5

TEXTS = [f"some text {i} " + "w" * (i * 7 % 30) for i in range(20)]
LONG: dict[str, Any] = {"max_new_tokens": 400, "min_new_tokens": 400}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return redraw(save_tiny_t5(tmp_path_factory.mktemp("base") / "checkpoint"), seed=14, end=3)


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "demo"
    make_bundle(checkpoint, out)
    return out


@pytest.fixture
def bank(checkpoint: Path, tmp_path: Path) -> Path:
    members = []
    for seed, (name, changes) in enumerate({"first": {}, "second": {"template": "second {text}"}}.items()):
        adapter = draw_adapter(checkpoint, seed)
        members.append(member(name, adapter, merged(checkpoint, adapter, tmp_path / name), **changes))
    make_bank(checkpoint, members, tmp_path / "bank")
    return tmp_path / "bank"


def serving(folder: Path, use: Callable[[AsyncModel], Coroutine[Any, Any, None]], **limits: Any) -> None:
    """Run a coroutine with a loaded model, and close it."""

    async def run() -> None:
        model = AsyncModel.load(folder, threads=1, **limits)
        try:
            await asyncio.wait_for(use(model), 60)
        finally:
            await model.close()

    asyncio.run(run())


def test_many_rows_at_once_have_the_answers_of_each_alone(bundle: Path) -> None:
    expected = [lora_ft.load(bundle).generate([text])[0] for text in TEXTS]

    async def use(model: AsyncModel) -> None:
        assert await model.generate(TEXTS) == expected
        assert await asyncio.gather(*(model.generate(text) for text in TEXTS)) == [[answer] for answer in expected]
        assert await model.generate([{"text": TEXTS[0]}]) == expected[:1]

    serving(bundle, use, max_rows=7)


def test_a_stream_adds_up_to_the_answer(bundle: Path) -> None:
    """The answer is long, since a stream hands tokens over every 20 ms, and a short one may come as a single piece."""
    expected = lora_ft.load(bundle).generate(TEXTS[3], **LONG)[0]

    async def use(model: AsyncModel) -> None:
        pieces = [piece async for piece in model.stream(TEXTS[3], **LONG)]
        assert "".join(pieces) == expected
        assert len(pieces) > 1

    serving(bundle, use)


def test_deltas_hold_tokens_scores_and_the_reason_of_the_end(bundle: Path) -> None:
    async def use(model: AsyncModel) -> None:
        generation = model.start(TEXTS[0], num_beams=3, num_return_sequences=2, output_scores=True)
        deltas = [delta async for delta in generation]
        assert {delta.answer for delta in deltas} == {0, 1}
        assert all(len(delta.scores or ()) == 1 for delta in deltas if delta.tokens)
        (cut,) = [delta async for delta in model.start(TEXTS[0], max_new_tokens=2, min_new_tokens=2) if delta.finish]
        assert cut == Delta(0, cut.text, (), None, "length")
        ended = [delta async for delta in model.start(TEXTS[0], max_new_tokens=300) if delta.finish]
        assert [delta.finish for delta in ended] == ["stop"]
        assert ended[0].tokens[-1] == 1
        assert generation.prompt_tokens == len(model.generator.tokenizer.encode([f"say: {TEXTS[0]}"])[0])
        assert model.start("w" * 200).source_cut

    serving(bundle, use)


def test_a_full_queue_refuses_and_says_when_to_come_back(bundle: Path) -> None:
    async def use(model: AsyncModel) -> None:
        running = [model.start(TEXTS[0], **LONG) for _ in range(2)]
        await anext(running[1])
        waiting = [model.start(TEXTS[0]) for _ in range(3)]
        with pytest.raises(QueueFullError) as refusal:
            model.start(TEXTS[0])
        assert refusal.value.retry_after >= 1
        assert model.statistics().queued == 3
        for generation in (*running, *waiting):
            generation.cancel()
        assert await model.generate(TEXTS[0])

    serving(bundle, use, max_rows=2, max_queue=3)


def test_a_cancelled_request_frees_its_rows(bundle: Path) -> None:
    async def use(model: AsyncModel) -> None:
        generation = model.start(TEXTS[0], **LONG)
        await anext(generation)
        assert model.statistics().running_rows == 1
        generation.cancel()
        await model.generate(TEXTS[1])
        assert model.statistics().running_rows == 0
        with pytest.raises(StopAsyncIteration):
            while True:
                await anext(generation)

        task = asyncio.create_task(model.generate(TEXTS[0], **LONG))
        while not model.statistics().running_rows:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await model.generate(TEXTS[1])
        assert model.statistics().running_rows == 0

        async for _ in (stream := model.stream(TEXTS[0], **LONG)):
            break
        await stream.aclose()  # type: ignore[attr-defined]
        await model.generate(TEXTS[1])
        assert model.statistics().running_rows == 0

    serving(bundle, use)


def test_closing_waits_for_running_answers_and_fails_what_is_late(bundle: Path) -> None:
    async def run() -> None:
        model = AsyncModel.load(bundle, threads=1)
        quick = asyncio.create_task(model.generate(TEXTS[0]))
        await asyncio.sleep(0)
        await model.close(grace=30)
        assert await quick == lora_ft.load(bundle).generate(TEXTS[0])
        with pytest.raises(LoraFtError, match="the model is closed"):
            model.start(TEXTS[0])

        model = AsyncModel.load(bundle, threads=1)
        late = asyncio.create_task(model.generate(TEXTS[0], max_new_tokens=90_000, min_new_tokens=90_000))
        while not model.statistics().running_rows:
            await asyncio.sleep(0)
        await model.close(grace=0.1)
        with pytest.raises(LoraFtError, match="closed before the answer was complete"):
            await late

    asyncio.run(run())


def test_threads_with_loops_of_their_own_share_a_model(bundle: Path) -> None:
    expected = [lora_ft.load(bundle).generate([text])[0] for text in TEXTS]
    model = AsyncModel.load(bundle, threads=1)
    answers: dict[int, list[str]] = {}

    async def ask() -> list[str]:
        return await model.generate(TEXTS)

    def work(number: int) -> None:
        answers[number] = asyncio.run(ask())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answers[number] for number in range(4)] == [expected] * 4
    asyncio.run(model.close())


def test_errors_are_raised_at_once(bundle: Path) -> None:
    async def use(model: AsyncModel) -> None:
        for options in ({"num_beams": 0}, {"nonsense": 1}, {"adapter": "nobody"}):
            with pytest.raises(UsageError):
                model.start(TEXTS[0], **options)
        with pytest.raises(UsageError, match="lacks the column"):
            model.start({"other": "x"})
        with pytest.raises(UsageError, match="has no labels"):
            await model.label_scores(TEXTS[0])

    serving(bundle, use)


@pytest.mark.parametrize("limit", ["max_rows", "memory", "max_queue"])
def test_a_limit_of_zero_is_refused(bundle: Path, limit: str) -> None:
    with pytest.raises(UsageError, match=r"is not positive \(got 0\)"):
        AsyncModel.load(bundle, **{limit: 0})


def test_rows_of_other_types_are_refused(bundle: Path) -> None:
    async def ask() -> None:
        model = AsyncModel.load(bundle)
        try:
            await model.generate([None])
        finally:
            await model.close()

    with pytest.raises(UsageError, match="item 1 of the input is neither text nor row"):
        asyncio.run(ask())


def test_a_checkpoint_is_refused(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="is not a bundle"):
        AsyncModel.load(checkpoint)


def test_rows_choose_adapters_and_their_prompts(bank: Path) -> None:
    loaded = lora_ft.load(bank)
    expected = {name: loaded.with_adapter(name).generate([TEXTS[1]])[0] for name in ("first", "second", None)}

    async def use(model: AsyncModel) -> None:
        for name, answer in expected.items():
            assert await model.generate(TEXTS[1], adapter=name) == [answer]
        assert await model.generate({"text": TEXTS[1], "adapter": "second"}) == [expected["second"]]
        assert model.adapters == ["first", "second"]

    serving(bank, use)


def test_adapters_come_and_go_while_rows_run(bank: Path) -> None:
    before = (bank / NAME).read_text()

    async def use(model: AsyncModel) -> None:
        running = model.start(TEXTS[1], adapter="second", **LONG)
        await anext(running)
        remove_adapter(bank, ["second"])
        assert model.reload() == ["first"]
        with pytest.raises(UsageError, match="no adapter 'second'"):
            model.start(TEXTS[1], adapter="second")
        tokens = [token async for delta in running for token in delta.tokens]
        assert len(tokens) >= 398
        (bank / NAME).write_text(before.replace('"fp32"', '"int8"', 1))
        with pytest.raises(UsageError, match="is another bank"):
            model.reload()
        assert model.adapters == ["first"]

    serving(bank, use)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are read from Linux's /proc")
def test_the_file_of_a_removed_adapter_is_closed(bank: Path) -> None:
    def held() -> list[str]:
        links = [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return [path for path in map(os.readlink, links) if str(bank) in path and path.endswith("(deleted)")]

    async def use(model: AsyncModel) -> None:
        await asyncio.gather(*(model.generate(TEXTS[1], adapter=name) for name in ("first", "second", None)))
        remove_adapter(bank, ["second"])
        model.reload()
        for _ in range(100):
            if not held():
                return
            await asyncio.sleep(0.05)
        pytest.fail(f"open: {held()}")

    serving(bank, use)


def test_labels_have_probabilities(checkpoint: Path, tmp_path: Path) -> None:
    make_bundle(checkpoint, tmp_path / "labels", labels=("ab", "cd", "e"))

    async def use(model: AsyncModel) -> None:
        scores = await model.label_scores(TEXTS[0])
        assert list(scores) == ["ab", "cd", "e"]
        assert abs(sum(scores.values()) - 1) < 1e-9
        several = await asyncio.gather(*(model.label_scores(text) for text in TEXTS[:5]))
        assert several[0] == scores
        two = await model.label_scores(TEXTS[0], labels=["cd", "e", "cd"])
        assert list(two) == ["cd", "e"] and abs(two["cd"] / two["e"] - scores["cd"] / scores["e"]) < 1e-6

    serving(tmp_path / "labels", use)
