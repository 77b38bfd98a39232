"""A run as an adapter for a bank: what of it a bank can hold, and PyTorch's answers to compare with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_ft.core.codecs import codec_named
from lora_ft.core.errors import GateError, UsageError
from lora_ft.core.progress import Progress
from lora_ft.core.sample_prompts import SENTENCES
from lora_ft.data.splits import Example
from lora_ft.deployment.precision_search import holds
from lora_ft.deployment.torch_reference import bundle_metadata, codec_of, examples_of, references_of, samples_of
from lora_ft.evaluation.metrics import difference, score
from lora_ft.export.bundle.adapter_slots import LowRank
from lora_ft.export.bundle.bank import BankAdapter
from lora_ft.export.checkpoint.generation_config import read_generation
from lora_ft.export.parity import Probe, Reference
from lora_ft.export.runtime import Generator
from lora_ft.models.adapter_files import adapter_config
from lora_ft.models.adapters import load_adapter
from lora_ft.models.backends import TorchBackend
from lora_ft.models.bases import Base, load_model, load_tokenizer
from lora_ft.models.peft_adapter import PeftAdapter, name_of, open_adapter
from lora_ft.runs.run import WEIGHTS, Run
from lora_ft.tasks.schema import SplitName, Task

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import T5ForConditionalGeneration

# What peft can save beside A and B, and the value that says that it did not.
_MORE: dict[str, Any] = {
    "use_dora": False,
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "layer_replication": None,
}


# Starts that peft takes out of the base's weights; saved without conversion, they need that base.
_MOVING = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")


@dataclass(frozen=True)
class VerificationSettings:
    """How an adapter is compared with PyTorch.

    Attributes:
        rows, split: how many rows of its task, and which.
        score_rows: how many the bank's answers are scored on, where its weights are rounded.
        max_drop: points that the task's metric may lose there.
        force: keep it whatever it loses.
    """

    rows: int = 16
    split: SplitName = "validation"
    score_rows: int = 200
    max_drop: float = 0.5
    force: bool = False


class PeftReference:
    """A base in PyTorch, on which the adapters of runs take turns: it is loaded once, however many there are.

    Attributes:
        base: which.
        tokenizer: its own.
    """

    def __init__(self, base: Base) -> None:
        self.base, self.tokenizer = base, load_tokenizer(base.folder)
        self._model = load_model(base.folder)
        self._on: tuple[Run | PeftAdapter, PeftModel] | None = None

    def plain(self) -> T5ForConditionalGeneration:
        """The base with no adapter on it, until `adapted` is called."""
        if self._on is not None:
            self._on[1].unload()
            self._on = None
        return self._model

    def adapted(self, run: Run | PeftAdapter) -> PeftModel:
        """The base with a run's adapter on it, as peft puts it there, until `plain` or another run is asked for.

        Raises:
            UsageError, LoraFtError: as of `load_adapter`.
        """
        if self._on is None or self._on[0] is not run:
            self._on = run, load_adapter(self.plain(), run.adapter)
        return self._on[1]


def named_runs(runs: Sequence[str]) -> dict[str, Run | PeftAdapter]:
    """Runs by the name of their task, adapters by their folder's, or by NAME where one is given as NAME=FOLDER.

    Raises:
        UsageError: one is no run with an adapter, or two have the same name.
    """
    found: dict[str, Run | PeftAdapter] = {}
    for text in runs:
        name, _, folder = text.rpartition("=")
        run = open_adapter(folder)
        if run.task is not None and run.task.method != "lora":
            raise UsageError(f"the run {folder} has all weights of its own", "a bank holds adapters: method lora")
        name = name or name_of(run)
        if name in found:
            raise UsageError(f"two adapters would have the name {name!r}", f"give one as NAME={folder}")
        found[name] = run
    return found


def prepare_bank_adapter(
    name: str, run: Run | PeftAdapter, oracle: PeftReference, checks: VerificationSettings, progress: Progress
) -> BankAdapter:
    """A run's adapter, or one that peft saved elsewhere, as `lora_ft.export.bundle.bank.add_adapter` takes it.

    Args:
        name: of the adapter.
        run: whose it is.
        oracle: its base, which is asked again when the adapter is put into the bank.
        checks: how it is compared.
        progress: told what happens.

    Raises:
        UsageError: the adapter is more than A and B of linear layers.
        LoraFtError: it is for a base of other dimensions, or damaged.
    """
    progress.stage(f"reading {name}")
    _check(run)
    task, own = run.task, read_generation(oracle.base.folder)
    tokenizer, origin = (
        oracle.tokenizer.through(codec_named(codec_of(task))),
        bundle_metadata(task, oracle.base.name, name, own.options),
    )
    examples = examples_of(task, checks.split, progress)
    prompts = [example.prompt for example in examples[: checks.rows]] or SENTENCES

    def references() -> Iterator[Reference]:  # asked when they are needed: logits of many adapters are large
        return references_of(oracle.adapted(run), tokenizer, prompts, origin, progress)

    def judge(generator: Generator, name: str) -> Mapping[str, Any]:
        if generator.manifest["precision"] == "fp32" or not examples or task is None:
            return {}
        engine = TorchBackend(oracle.adapted(run), tokenizer, task.lengths.source)
        return _gate(generator, name, engine, task, examples[: checks.score_rows], checks, progress)

    adapter = _low_rank(oracle.adapted(run), run)
    sentences = next(references_of(oracle.adapted(run), tokenizer, SENTENCES, origin, progress))
    samples = tuple(samples_of(task, tokenizer, own.special.start, progress))
    return BankAdapter(
        name,
        adapter,
        origin,
        tokenizer,
        references,
        Probe.of(sentences, own.special),
        samples,
        judge,
        task.model_dump(mode="json", exclude_none=True) if task else {},
    )


def _check(run: Run | PeftAdapter) -> None:
    """Raise UsageError where a run's adapter is more than A and B."""
    from safetensors import safe_open

    config = adapter_config(run.adapter)
    more = [f"{key} {config[key]!r}" for key, none in _MORE.items() if config.get(key) not in (none, [], {}, None)]
    if config.get("peft_type") != "LORA":
        more.insert(0, f"peft_type {config.get('peft_type')!r}")
    if isinstance(start := config.get("init_lora_weights"), str) and start.startswith(_MOVING):
        more.append(f"init_lora_weights {start!r}, which moves the base")
    if not more and (run.adapter / WEIGHTS).is_file():
        with safe_open(run.adapter / WEIGHTS, "np") as weights:
            more = [name for name in weights.keys() if not name.endswith((".lora_A.weight", ".lora_B.weight"))]  # noqa: SIM118
    if more:
        raise UsageError(
            f"the adapter of {run.folder} is more than A and B of linear layers: it has {more[0]}",
            "a bank cannot hold it; export it as a bundle of its own",
        )


def _low_rank(model: PeftModel, run: Run | PeftAdapter) -> dict[str, LowRank]:
    """A and B of every adapted layer, the scale in B."""
    found = {}
    for layer, module in model.base_model.model.named_modules():
        if "default" in getattr(module, "lora_A", {}):
            a, b = (getattr(module, side)["default"].weight.detach().float().numpy() for side in ("lora_A", "lora_B"))
            found[layer] = LowRank(np.array(a), b * np.float32(module.scaling["default"]))
    if "lm_head" in found:
        raise UsageError(
            f"the adapter of {run.folder} adapts the head", "a bank cannot hold it; export it as a bundle of its own"
        )
    return found


def _gate(
    generator: Generator,
    name: str,
    engine: TorchBackend,
    task: Task,
    examples: Sequence[Example],
    checks: VerificationSettings,
    progress: Progress,
) -> Mapping[str, Any]:
    """Score the bank's answers and PyTorch's; what the manifest says of it.

    Raises:
        LoraFtError: the bank loses more than it may.
    """
    progress.stage(f"scoring {name}", 2 * len(examples))
    prompts = [example.prompt for example in examples]
    references, settings = [example.references for example in examples], task.evaluate
    options = {**task.generation_options(), "do_sample": False}
    exact = [answer.text for answer in engine.generate(prompts, options, done=progress.advance)]
    made = generator.generate(prompts, adapter=name, prompt_lookup=False, do_sample=False)
    progress.advance(2 * len(examples))
    lost = difference(
        score(settings.metric, made, references, settings),
        score(settings.metric, exact, references, settings),
        seed=settings.seed,
        resamples=settings.bootstrap,
    )
    passed = holds(lost, checks.max_drop)
    if not (passed or checks.force):
        raise GateError(
            f"the adapter {name!r} loses too much in this bank: {settings.metric} changes by {lost} against PyTorch "
            f"on {len(examples)} rows (allowed: -{checks.max_drop:g}); nothing was changed",
            "another --precision of the bank, a larger --max-rouge-drop, or --force",
        )
    return {
        "gate": {
            "metric": settings.metric,
            "rows": len(examples),
            "max_drop": checks.max_drop,
            "difference": lost.mean,
            "passed": passed,
            "forced": checks.force and not passed,
        }
    }
