"""Propose values of a search with optuna's tree-structured Parzen estimator (TPE).

The record of the search is the only state: each proposal is computed from it in a new study, with a seed of its own. A
search that was killed therefore continues with the same proposals.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lora_ft.core.errors import UsageError
from lora_ft.runs.search_record import SearchRecord, Trial
from lora_ft.tasks.search import Range, Space

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

_ATTEMPTS = 20  # proposals that equal earlier trials, before a small space is enumerated


def require_optuna() -> None:
    """Raise UsageError if optuna is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise UsageError("a search needs optuna", "pip install 'lora-ft[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def propose(space: Space, record: SearchRecord, seed: int) -> dict[str, Any] | None:
    """Return the values of the next trial by key, or None if the space contains no further combination.

    Args:
        space: Space of the search.
        record: Record with all trials so far.
        seed: Seed of the search.
    """
    import optuna

    trials = record.first_seeds
    tried = [trial.settings for trial in trials]
    if len(tried) >= space.size:
        return None
    for attempt in range(_ATTEMPTS):
        sampler = optuna.samplers.TPESampler(
            seed=(seed * 1_000_003 + len(trials) * _ATTEMPTS + attempt) % 2**32, constant_liar=True
        )
        study = _study(record, sampler=sampler)
        study.add_trials([_frozen(trial, space) for trial in trials])
        settings = _settings(space, study.ask(_distributions(space)).params)
        if settings not in tried:
            return settings
    keys = list(space.values)
    combinations = itertools.product(*(_every(space, key) for key in keys))
    return next(
        (settings for row in combinations if (settings := dict(zip(keys, row, strict=True))) not in tried), None
    )


def importances(space: Space, record: SearchRecord) -> dict[str, float]:
    """Return each key's share of the differences between the scores at the first rung (optuna's PED-ANOVA).

    All trials have trained equally long there. Without differences, or with fewer than three trials, return nothing.
    """
    import optuna
    from optuna.trial import TrialState

    study = _study(record)
    for trial in record.first_seeds:
        if trial.scores:
            study.add_trial(_frozen(trial, space, TrialState.COMPLETE, trial.scores[0]))
    values = {trial.value for trial in study.trials}
    if len(study.trials) < 3 or len(values) < 2:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    try:
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (ValueError, RuntimeError):  # all trials have the same values of every key
        return {}
    return {key: float(shares[key]) for key in sorted(shares, key=lambda key: -shares[key])}


def export_study(space: Space, record: SearchRecord, path: Path) -> None:
    """Write all trials as an optuna study, for optuna's own tools. An earlier file is replaced."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    path.unlink(missing_ok=True)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    name = str(record.task["name"])
    study = optuna.create_study(storage=storage, study_name=name, direction=_direction(record))
    study.add_trials([_frozen(trial, space) for trial in record.first_seeds])


def _direction(record: SearchRecord) -> Literal["maximize", "minimize"]:
    return "maximize" if record.sign > 0 else "minimize"


def _study(record: SearchRecord, sampler: optuna.samplers.BaseSampler | None = None) -> optuna.Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction=_direction(record), sampler=sampler)


def _frozen(trial: Trial, space: Space, state: Any = None, value: float | None = None) -> FrozenTrial:
    """Return a trial as optuna's. Paused trials are pruned ones, from which the sampler learns, too."""
    from optuna.trial import TrialState, create_trial

    if state is None:
        if trial.state == "finished":
            state, value = TrialState.COMPLETE, trial.scores[-1]
        elif trial.state == "failed":
            state = TrialState.FAIL
        else:
            state = TrialState.PRUNED if trial.scores else TrialState.RUNNING
    return create_trial(
        state=state,
        value=value,
        params={key: _label(space.values[key], value) for key, value in trial.settings.items()},
        distributions=_distributions(space),
        intermediate_values=dict(enumerate(trial.scores)),
        user_attrs={"name": trial.name, "parameters": trial.parameters},
    )


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    distributions: dict[str, BaseDistribution] = {}
    for key, values in space.values.items():
        if isinstance(values, list):
            distributions[key] = CategoricalDistribution([_label(values, value) for value in values])
        elif key in space.integers:
            distributions[key] = IntDistribution(int(values.low), int(values.high), log=values.log)
        else:
            distributions[key] = FloatDistribution(values.low, values.high, log=values.log)
    return distributions


def _label(values: list[Any] | Range, value: Any) -> Any:
    """Return a value as optuna stores it: lists and mappings as text."""
    return value if isinstance(values, Range) or not isinstance(value, list | dict) else json.dumps(value)


def _settings(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return proposed values as those of the task. Real numbers have three digits, for people to read."""
    settings = {}
    for key, values in space.values.items():
        if isinstance(values, list):
            settings[key] = next(value for value in values if _label(values, value) == params[key])
        elif key in space.integers:
            settings[key] = params[key]
        else:
            settings[key] = min(max(float(f"{params[key]:.3g}"), values.low), values.high)
    return settings


def _every(space: Space, key: str) -> Sequence[Any]:
    """Return all values of a key, for a space that proposals have nearly exhausted."""
    values = space.values[key]
    if isinstance(values, list):
        return values
    return range(int(values.low), int(values.high) + 1) if key in space.integers else [values.low, values.high]
