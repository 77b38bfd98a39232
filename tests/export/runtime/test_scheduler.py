"""Requests that share a running batch are answered as if each were alone, whenever they arrive and leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_ft.core.errors import UsageError
from lora_ft.export.precision import parse
from lora_ft.export.runtime import Generator, lane
from lora_ft.export.runtime.decoding.types import TokenChunk
from lora_ft.export.runtime.job import Failed, Finished, Job
from lora_ft.export.runtime.model import Model
from lora_ft.export.runtime.scheduler import Limits, Scheduler
from lora_ft.export.runtime.session import ort_value
from tests.export.banks import draw_adapter, make_bank, member, merged
from tests.export.oracle import make_bundle, redraw
from tests.export.runtime.cases import words
from tests.tiny import save_tiny_t5

TEXTS = [*words(4, 12, 40), "a", "say: " + "w " * 60]
LABELS = ((4, 5, 6), (4, 7), (8,), (4, 5, 9, 10))
WAYS: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 3},
    {"max_new_tokens": 90, "min_new_tokens": 70},
    {"prompt_lookup": True, "max_new_tokens": 40},
    {"min_new_tokens": 6},
    {"do_sample": True, "seed": 3, "top_k": 8},
    {"do_sample": True, "seed": 4, "top_p": 0.8, "top_k": 0, "num_return_sequences": 3},
    {"do_sample": True, "seed": 5, "temperature": 2.0, "output_scores": True},
    {"output_scores": True},
    {"num_beams": 3},
    {"num_beams": 4, "num_return_sequences": 2, "length_penalty": 0.4, "no_repeat_ngram_size": 2},
    {"repetition_penalty": 1.4},
    {"allowed": LABELS, "max_new_tokens": 9},
    {"allowed": LABELS, "max_new_tokens": 9, "do_sample": True, "seed": 1},
]


@dataclass
class Answers:
    """What a scheduler has answered, by job."""

    chunks: dict[Job, list[TokenChunk]] = field(default_factory=dict)
    ended: dict[Job, Finished | Failed] = field(default_factory=dict)

    def take(self, scheduler: Scheduler) -> None:
        for job, event in scheduler.take_events():
            assert job not in self.ended, "an event after the end"
            if isinstance(event, TokenChunk):
                self.chunks.setdefault(job, []).append(event)
            else:
                self.ended[job] = event

    def tokens(self, job: Job) -> list[list[int]]:
        """The tokens of each answer of a job."""
        assert isinstance(self.ended[job], Finished), self.ended[job]
        answers: dict[int, list[int]] = {}
        for chunk in self.chunks[job]:
            answers.setdefault(chunk.answer, []).extend(chunk.tokens.tolist())
        return [answers[number] for number in sorted(answers)]


def run(scheduler: Scheduler, answers: Answers, rounds: int = 10_000) -> None:
    """Run until nothing is left."""
    for _ in range(rounds):
        if scheduler.idle:
            return
        scheduler.round()
        answers.take(scheduler)
    raise AssertionError("the scheduler does not end")


def job_of(generator: Generator, text: str, options: Mapping[str, Any], adapter: str | None = None) -> Job:
    return Job.of(generator, generator.prepare(text, options, adapter))


@pytest.fixture(scope="module")
def generators(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Generator]:
    """A bundle in two precisions, and a bank."""
    root = tmp_path_factory.mktemp("served")
    checkpoint = redraw(save_tiny_t5(root / "checkpoint"), seed=14, end=3)
    make_bundle(checkpoint, root / "fp32")
    make_bundle(checkpoint, root / "int8", precisions=[parse("int8")])
    make_bundle(checkpoint, root / "labels", labels=("a word", "a", "no", "never"))
    adapters: dict[str, dict[str, Any]] = {"whole": {}, "few": {"rank": 2, "endings": (".q", ".v")}}
    members = []
    for seed, (name, changes) in enumerate(adapters.items()):
        adapter = draw_adapter(checkpoint, seed, **changes)
        members.append(member(name, adapter, merged(checkpoint, adapter, root / name)))
    make_bank(checkpoint, members, root / "bank")
    loaded = {name: Generator.load(root / name, threads=1) for name in ("fp32", "int8", "labels", "bank")}
    beside = {f"{name}, 2 threads": Generator.load(root / name, threads=2) for name in ("int8", "bank")}
    return loaded | beside  # with 2 threads, sources are encoded beside steps


Request = tuple[str, dict[str, Any], str | None]


def alone(generator: Generator, request: Request, known: dict[Any, list[list[int]]]) -> list[list[int]]:
    """What the bundle answers to a request alone."""
    text, options, adapter = request
    key = id(generator), text, repr(options), adapter
    if key not in known:
        known[key] = [answer.tokens.tolist() for answer in generator.answer([text], adapter=adapter, **options)]
    return known[key]


KNOWN: dict[Any, list[list[int]]] = {}


def test_a_row_has_no_adapter_of_a_row_that_left(generators: Mapping[str, Generator]) -> None:
    generator = generators["bank"]
    scheduler, known = Scheduler(generator, Limits(8, 2**30)), dict[Any, list[list[int]]]()
    for adapters in ((None, "whole"), ("whole", None), (None, "few", "whole", None)):
        requests: list[Request] = [(TEXTS[-1], {"min_new_tokens": 6, "max_new_tokens": 8}, name) for name in adapters]
        jobs, answers = [job_of(generator, *request) for request in requests], Answers()
        for job in jobs:
            scheduler.add(job)
        run(scheduler, answers)
        assert [answers.tokens(job) for job in jobs] == [alone(generator, request, known) for request in requests]


@pytest.mark.parametrize("others", [{}, {"allowed": ()}, {"allowed": LABELS}, {"output_scores": True}], ids=str)
def test_labels_share_steps_with_other_requests(generators: Mapping[str, Generator], others: dict[str, Any]) -> None:
    generator, answers = generators["labels"], Answers()
    scheduler, known = Scheduler(generator, Limits(8, 2**30)), dict[Any, list[list[int]]]()
    requests: list[Request] = [(text, options, None) for text in TEXTS[:4] for options in ({}, others)]
    jobs = [job_of(generator, *request) for request in requests]
    for job in jobs:
        scheduler.add(job)
    run(scheduler, answers)
    assert [answers.tokens(job) for job in jobs] == [alone(generator, request, known) for request in requests]


@pytest.mark.parametrize("kind", ["fp32", "int8", "bank", "int8, 2 threads", "bank, 2 threads"])
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    arrivals=st.lists(
        st.tuples(
            st.integers(0, 6), st.sampled_from(TEXTS), st.sampled_from(WAYS), st.sampled_from([None, "whole", "few"])
        ),
        min_size=1,
        max_size=12,
    ),
    rows=st.sampled_from([4, 6, 32]),
    encoder_tokens=st.sampled_from([1, 40, 10_000]),
    cancelled=st.sets(st.integers(0, 11), max_size=3),
)
def test_answers_do_not_depend_on_the_company(
    generators: Mapping[str, Generator],
    kind: str,
    arrivals: Sequence[tuple[int, str, dict[str, Any], str | None]],
    rows: int,
    encoder_tokens: int,
    cancelled: set[int],
) -> None:
    generator = generators[kind]
    scheduler, answers = Scheduler(generator, Limits(rows, 2**30, encoder_tokens)), Answers()
    requests: dict[Job, Request] = {}
    dropped: set[Job] = set()
    for number, (pause, text, options, adapter) in enumerate(arrivals):
        request = text, options, adapter if kind.startswith("bank") else None
        job = job_of(generator, *request)
        requests[job] = request
        scheduler.add(job)
        for _ in range(pause):
            scheduler.round()
            answers.take(scheduler)
            assert scheduler.pool.rows <= rows
        if number in cancelled and job not in answers.ended:
            job.cancelled = True
            dropped.add(job)
    run(scheduler, answers)
    assert scheduler.pool.rows == 0
    assert scheduler.pool.size <= 8 * scheduler.pool.needed(max(requests, key=scheduler.pool.needed))
    for job, request in requests.items():
        if job not in dropped:
            assert answers.tokens(job) == alone(generator, request, KNOWN), request


def test_rows_on_a_device_are_fetched_before_they_change(
    generators: Mapping[str, Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU has copies of the lanes; here copies on the processor stand for them."""
    generator = generators["bank"]
    monkeypatch.setattr(Model, "provider", property(lambda self: "cuda"))
    monkeypatch.setattr(lane, "ort_value", lambda array, device: ort_value(np.array(array)))
    scheduler, answers = Scheduler(generator, Limits(rows=6)), Answers()
    requests: dict[Job, Request] = {}
    for number, (text, options) in enumerate(zip(TEXTS * 2, WAYS * 2, strict=False)):
        request = text, options, (None, "whole", "few")[number % 3]
        job = job_of(generator, *request)
        requests[job] = request
        scheduler.add(job)
        scheduler.round()
        answers.take(scheduler)
    run(scheduler, answers)
    for job, request in requests.items():
        assert answers.tokens(job) == alone(generator, request, KNOWN), request


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_scores_are_those_of_the_request_alone(generators: Mapping[str, Generator], options: dict[str, Any]) -> None:
    generator = generators["fp32"]
    options = options | {"output_scores": True}
    scheduler, answers = Scheduler(generator, Limits()), Answers()
    jobs = {text: job_of(generator, text, options) for text in TEXTS[:4]}
    for job in jobs.values():
        scheduler.add(job)
    run(scheduler, answers)
    for text, job in jobs.items():
        expected = [answer.scores for answer in generator.answer([text], **options)]
        for number, scores in enumerate(expected):
            parts = [chunk.scores for chunk in answers.chunks[job] if chunk.answer == number]
            if job.rows == 1:
                assert np.array_equal(np.concatenate(parts), scores)  # type: ignore[arg-type]
            else:  # alone, the rows of one source share a product, whose last bits differ
                assert np.allclose(np.concatenate(parts), scores, atol=1e-5)  # type: ignore[arg-type]


def test_long_sources_share_no_lane_with_many_short_ones(generators: Mapping[str, Generator]) -> None:
    """Every step would read their padding."""
    generator = generators["fp32"]
    generator = _with_source_length(generator, 4_000)
    scheduler, answers = Scheduler(generator, Limits(encoder_tokens=100_000)), Answers()
    jobs = {text: job_of(generator, text, {}) for text in ("x " * 1_500, *TEXTS[:6])}
    for job in jobs.values():
        scheduler.add(job)
    scheduler.round()
    assert len(scheduler.pool.lanes) == 2
    run(scheduler, answers)
    for text, job in jobs.items():
        assert answers.tokens(job) == alone(generator, (text, {}, None), {})


def _with_source_length(generator: Generator, length: int) -> Generator:
    other = Generator.load(generator.folder, threads=1)
    other.settings = replace(other.settings, source_length=length)
    return other


@pytest.mark.parametrize(
    ("waited", "order"),
    [(0.0, ["short", "long"]), (2.0, ["long", "short"])],
    ids=["same time", "long one waited"],
)
def test_short_sources_run_before_long_ones_of_about_the_same_time(
    generators: Mapping[str, Generator], waited: float, order: list[str]
) -> None:
    """A long source is due later, but its due time passes."""
    generator = generators["fp32"]
    jobs = {"long": job_of(generator, "x " * 400, {}), "short": job_of(generator, "a", {})}
    jobs["long"].arrived, jobs["short"].arrived = 100.0, 100.0 + waited
    scheduler, answers = Scheduler(_with_source_length(generator, 1_000), Limits(rows=1)), Answers()
    for job in jobs.values():
        scheduler.add(job)
    run(scheduler, answers)
    assert list(answers.ended) == [jobs[name] for name in order]


def test_requests_wait_for_memory_and_run_in_their_order(generators: Mapping[str, Generator]) -> None:
    generator = generators["fp32"]
    scheduler = Scheduler(generator, Limits())
    jobs = [job_of(generator, text, {"max_new_tokens": 60, "min_new_tokens": 60}) for text in TEXTS[:5]]
    one = scheduler.pool.needed(jobs[0])
    scheduler, answers = Scheduler(generator, Limits(memory=2 * one)), Answers()
    for at, job in enumerate(jobs):
        job.arrived = float(at)
        scheduler.add(job)
    most = 0
    while not scheduler.idle:
        scheduler.round()
        answers.take(scheduler)
        most = max(most, scheduler.pool.size)
        assert scheduler.pool.size <= 2 * one * 1.05
    assert most > 0
    assert list(answers.ended) == jobs


def test_a_request_that_never_fits_is_refused(generators: Mapping[str, Generator]) -> None:
    generator = generators["fp32"]
    scheduler = Scheduler(generator, Limits(rows=4, memory=2**16))
    with pytest.raises(UsageError, match=r"needs .* MiB of cache"):
        scheduler.check(job_of(generator, TEXTS[0], {"max_new_tokens": 5_000}))
    with pytest.raises(UsageError, match="needs 5 rows"):
        scheduler.check(job_of(generator, TEXTS[0], {"num_beams": 5}))


def test_a_failing_request_leaves_the_others_alone(generators: Mapping[str, Generator]) -> None:
    generator = generators["fp32"]
    scheduler, answers = Scheduler(generator, Limits()), Answers()
    good, bad = (job_of(generator, text, {}) for text in TEXTS[:2])
    error = RuntimeError("boom")

    def breaking() -> Any:
        yield from ()
        raise error

    bad.decoding = breaking()
    for job in (bad, good):
        scheduler.add(job)
    run(scheduler, answers)
    assert answers.ended[bad] == Failed(error)
    assert answers.tokens(good) == alone(generator, (TEXTS[0], {}, None), {})


def test_a_failed_step_fails_its_rows_and_no_later_ones(
    generators: Mapping[str, Generator], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = generators["fp32"]
    scheduler, answers = Scheduler(generator, Limits()), Answers()
    lost = job_of(generator, TEXTS[0], {})
    step: Callable[..., Any] = generator.model.step
    error = RuntimeError("out of memory")

    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(generator.model, "step", fail)
    scheduler.add(lost)
    run(scheduler, answers)
    assert answers.ended[lost] == Failed(error)
    monkeypatch.setattr(generator.model, "step", step)
    later = job_of(generator, TEXTS[0], {})
    scheduler.add(later)
    run(scheduler, answers)
    assert answers.tokens(later) == alone(generator, (TEXTS[0], {}, None), {})


def test_labels_have_the_probabilities_of_their_tokens(generators: Mapping[str, Generator]) -> None:
    generator = generators["fp32"]
    scheduler, answers = Scheduler(generator, Limits()), Answers()
    job = Job.of(generator, generator.prepare(TEXTS[0], {"allowed": LABELS * 4 + ((12, 13),)}), label_scores=True)
    other = job_of(generator, TEXTS[1], {})
    for each in (job, other):
        scheduler.add(each)
    run(scheduler, answers)
    (row,) = generator.tokenizer.encode([TEXTS[0]], generator.source_length)
    for chunk, label in zip(answers.chunks[job], LABELS * 4 + ((12, 13),), strict=True):
        tokens = np.array([[*label, 1]])
        logits = generator.score(np.array([row]), np.ones((1, len(row)), np.int64), tokens)[0].astype(np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        expected = log_probs[np.arange(tokens.shape[1]), tokens[0]].sum()
        assert chunk.scores is not None
        assert chunk.tokens.tolist() == tokens[0].tolist()
        assert abs(float(chunk.scores[0]) - expected) < 1e-4
    assert answers.tokens(other) == alone(generator, (TEXTS[1], {}, None), {})


@pytest.mark.parametrize("name", ["rows", "memory", "encoder_tokens"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} is not positive"):
        Limits(**{name: 0})
