"""Proposals: inside the space, new, and a function of the record alone."""

from __future__ import annotations

import pytest

from lora_ft.runs.search_record import SearchRecord
from lora_ft.searching.sampler import export_study, importances, propose
from lora_ft.tasks.search import Space, read_space
from tests.lora_ft.searching.records import make_record, make_trial
from tests.lora_ft.tasks.test_search import TASK

optuna = pytest.importorskip("optuna", reason="needs the extra `search`")


def grown(space: Space, count: int, seed: int = 1) -> SearchRecord:
    """Return a record with `count` proposed trials, whose scores rise with the rank."""
    record = make_record()
    for number in range(count):
        settings = propose(space, record, seed)
        if settings is None:
            break
        record.trials.append(make_trial(number, 10.0 * settings.get("lora.r", 1) + number % 2, settings=settings))
    return record


def test_proposals_are_inside_the_space_and_new() -> None:
    rate = {"low": 1e-4, "high": 1e-2, "log": True}
    space = read_space(
        {"lora.r": [2, 4, 8], "lora.lora_alpha": {"low": 1, "high": 64}, "train.learning_rate": rate}, TASK
    )
    settings = [trial.settings for trial in grown(space, 14).trials]
    assert len(settings) == 14
    for at, values in enumerate(settings):
        assert values["lora.r"] in (2, 4, 8) and type(values["lora.lora_alpha"]) is int
        assert 1 <= values["lora.lora_alpha"] <= 64 and 1e-4 <= values["train.learning_rate"] <= 1e-2
        assert values not in settings[:at]


def test_a_small_space_is_tried_completely_and_once() -> None:
    space = read_space(
        {"lora.r": [2, 4], "lora.target_modules": ["all-linear", ["q", "v"]], "lora.use_rslora": [True, False]}, TASK
    )
    settings = [tuple(map(str, trial.settings.values())) for trial in grown(space, 20).trials]
    assert len(settings) == len(set(settings)) == space.size == 8


def test_proposals_depend_on_the_record_and_the_seed_only() -> None:
    space = read_space({"lora.r": {"low": 1, "high": 500}}, TASK)
    whole = grown(space, 12)
    again = make_record(*whole.trials[:11])
    assert propose(space, again, 1) == whole.trials[11].settings
    assert grown(space, 3, seed=2).trials[2].settings != whole.trials[2].settings


def test_proposals_learn_from_paused_trials() -> None:
    space = read_space({"lora.r": {"low": 1, "high": 500}}, TASK)
    ranks = [trial.settings["lora.r"] for trial in grown(space, 40).trials]
    assert sum(ranks[25:]) / 15 > 1.3 * 250  # scores rise with the rank; without learning, the mean is 250


def test_the_key_that_decides_is_the_most_important() -> None:
    space = read_space({"lora.r": [2, 4, 8], "lora.lora_alpha": {"low": 1, "high": 64}}, TASK)
    shares = importances(space, grown(space, 20))
    assert next(iter(shares)) == "lora.r" and sum(shares.values()) == pytest.approx(1)
    assert importances(space, make_record()) == {}


def test_trials_are_exported_as_a_study(tmp_path) -> None:  # type: ignore[no-untyped-def]
    space = read_space({"lora.r": [2, 4, 8]}, TASK)
    record = make_record(
        make_trial(0, 1.0, 2.0, 3.0, state="finished", settings={"lora.r": 2}),
        make_trial(1, 1.0, settings={"lora.r": 4}),
        make_trial(2, state="failed", settings={"lora.r": 8}),
    )
    path = tmp_path / "optuna.journal"
    for _ in range(2):  # an earlier file is replaced
        export_study(space, record, path)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    study = optuna.load_study(study_name="demo", storage=storage)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert study.best_value == 3.0 and study.trials[1].intermediate_values == {0: 1.0}
