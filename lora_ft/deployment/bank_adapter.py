"""Prepare a run's adapter for a bank: its A and B matrices, and PyTorch's answers to verify the bank against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora_ft.core.codecs import codec_named
from lora_ft.core.errors import UsageError
from lora_ft.core.progress import Progress
from lora_ft.core.sample_prompts import SENTENCES
from lora_ft.deployment.quality_gate import MAX_DROP, QualityGate
from lora_ft.deployment.torch_reference import bundle_metadata, codec_of, examples_of, references_of, samples_of
from lora_ft.export.bundle.adapter_slots import LowRank
from lora_ft.export.bundle.bank import BankAdapter
from lora_ft.export.checkpoint.generation_config import read_generation
from lora_ft.export.parity import Probe, Reference
from lora_ft.export.runtime import Generator
from lora_ft.models.adapter_files import adapter_config, moved_base
from lora_ft.models.adapters import load_adapter
from lora_ft.models.backends import TorchBackend
from lora_ft.models.bases import Base, load_model, load_tokenizer
from lora_ft.models.peft_adapter import PeftAdapter, adds_tokens, name_of, open_adapter
from lora_ft.runs.run import WEIGHTS, Run
from lora_ft.tasks.schema import SplitName

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import T5ForConditionalGeneration

# Settings of peft that store more than A and B, with the value that disables each.
_DISABLED: dict[str, Any] = {
    "use_dora": False,
    "bias": "none",
    "lora_bias": False,
    "modules_to_save": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "layer_replication": None,
}


@dataclass(frozen=True)
class VerificationSettings:
    """Settings of the comparison between a bank's adapter and PyTorch.

    Attributes:
        rows: Number of rows whose answers and logits are compared.
        split: Split of the task that rows come from.
        score_rows: Number of rows that are scored if the bank's weights are rounded.
        max_drop: Largest loss of the task's score, in points.
        force: Accept any loss.
    """

    rows: int = 16
    split: SplitName = "validation"
    score_rows: int = 200
    max_drop: float = MAX_DROP
    force: bool = False


class PeftReference:
    """A base in PyTorch with one adapter at a time, so that the base is loaded only once for all adapters.

    Attributes:
        base: The base.
        tokenizer: Tokenizer of the base.
    """

    def __init__(self, base: Base) -> None:
        self.base, self.tokenizer = base, load_tokenizer(base.folder)
        self._model = load_model(base.folder)
        self._current: tuple[Run | PeftAdapter, PeftModel] | None = None

    def plain(self) -> T5ForConditionalGeneration:
        """Return the base without an adapter. It is valid until the next call of `adapted`."""
        if self._current is not None:
            self._current[1].unload()
            self._current = None
        return self._model

    def adapted(self, run: Run | PeftAdapter) -> PeftModel:
        """Return the base with a run's adapter. It is valid until the call for another run, or of `plain`.

        Raises:
            UsageError, LoraFtError: The adapter cannot be loaded (see `load_adapter`).
        """
        if self._current is None or self._current[0] is not run:
            self._current = run, load_adapter(self.plain(), run.adapter)
        return self._current[1]


def named_runs(runs: Sequence[str]) -> dict[str, Run | PeftAdapter]:
    """Return runs and adapters by name.

    Args:
        runs: Folders, or NAME=FOLDER. Default name: that of a run's task, or of an adapter's folder.

    Raises:
        UsageError: A folder contains no adapter, or two adapters have the same name.
    """
    adapters: dict[str, Run | PeftAdapter] = {}
    for text in runs:
        name, equals, folder = text.partition("=")
        if not equals or Path(text).is_dir():  # a folder may have the character in its own name
            name, folder = "", text
        run = open_adapter(folder)
        if run.task is not None and run.task.method != "lora":
            raise UsageError(
                f"the run {folder} has no adapter (method {run.task.method})", "use runs of method lora for a bank"
            )
        name = name or name_of(run)
        if name in adapters:
            raise UsageError(f"two adapters have the name {name!r}", f"rename one with NAME={folder}")
        adapters[name] = run
    return adapters


def prepare_bank_adapter(
    name: str, run: Run | PeftAdapter, reference: PeftReference, checks: VerificationSettings, progress: Progress
) -> BankAdapter:
    """Return an adapter in the form that `lora_ft.export.bundle.bank.add_adapter` takes.

    Args:
        name: Name of the adapter.
        run: Run, or adapter that peft saved.
        reference: Base of the adapter. It is used again during `add_adapter`.
        checks: Settings of the comparison with PyTorch.
        progress: Receives stages and steps.

    Raises:
        UsageError: The adapter has other parts than A and B of linear layers.
        LoraFtError: The adapter is damaged, or its dimensions differ from the base's.
    """
    progress.stage(f"reading {name}")
    if isinstance(run, PeftAdapter) and run.notice:
        progress.note(f"warning: {run.notice}")
    _require_plain_lora(run)
    if adds_tokens(run, reference.base):
        raise UsageError(
            f"the adapter of {run.folder} has more tokens than its base, which a bank cannot store",
            "export it as a separate bundle",
        )
    task, generation = run.task, read_generation(reference.base.folder)
    tokenizer = reference.tokenizer.through(codec_named(codec_of(task)))
    metadata = bundle_metadata(task, reference.base.name, name, generation.options)
    examples = examples_of(task, checks.split, progress)
    prompts = [example.prompt for example in examples[: checks.rows]] or SENTENCES

    def references() -> Iterator[Reference]:  # computed on demand, since logits of many adapters need too much memory
        return references_of(reference.adapted(run), tokenizer, prompts, metadata, progress)

    def judge(generator: Generator, name: str) -> Mapping[str, Any]:
        if generator.manifest["precision"] == "fp32" or not examples or task is None:
            return {}
        backend = TorchBackend(reference.adapted(run), tokenizer, task.lengths.source)
        gate = QualityGate(task, examples[: checks.score_rows], checks.max_drop, checks.force)
        return _judge(generator, name, backend, gate, progress)

    adapter = _low_rank(reference.adapted(run), run)
    sentences = next(references_of(reference.adapted(run), tokenizer, SENTENCES, metadata, progress))
    samples = tuple(samples_of(task, tokenizer, generation.special.start, progress))
    return BankAdapter(
        name,
        adapter,
        metadata,
        tokenizer,
        references,
        Probe.of(sentences, generation.special),
        samples,
        judge,
        task.model_dump(mode="json", exclude_none=True) if task else {},
    )


def _require_plain_lora(run: Run | PeftAdapter) -> None:
    """Raise UsageError if an adapter has other parts than A and B."""
    from safetensors import safe_open

    config = adapter_config(run.adapter)
    extras = [
        f"{key} {config[key]!r}"
        for key, disabled in _DISABLED.items()
        if config.get(key) not in (disabled, [], {}, None)
    ]
    if config.get("peft_type") != "LORA":
        extras.insert(0, f"peft_type {config.get('peft_type')!r}")
    if start := moved_base(config):
        extras.append(f"init_lora_weights {start!r}, which changes the base")
    if not extras and (run.adapter / WEIGHTS).is_file():
        with safe_open(run.adapter / WEIGHTS, "np") as weights:
            extras = [name for name in weights.keys() if not name.endswith((".lora_A.weight", ".lora_B.weight"))]  # noqa: SIM118
    if extras:
        raise UsageError(
            f"the adapter of {run.folder} has {extras[0]}, which a bank cannot store",
            "export it as a separate bundle",
        )


def _low_rank(model: PeftModel, run: Run | PeftAdapter) -> dict[str, LowRank]:
    """Return A and B of every adapted layer. B is multiplied by the adapter's scale."""
    matrices = {}
    for layer, module in model.base_model.model.named_modules():
        if "default" in getattr(module, "lora_A", {}):
            a, b = (getattr(module, side)["default"].weight.detach().float().numpy() for side in ("lora_A", "lora_B"))
            matrices[layer] = LowRank(np.array(a), b * np.float32(module.scaling["default"]))
    if "lm_head" in matrices:
        raise UsageError(
            f"the adapter of {run.folder} adapts the head, which a bank cannot store",
            "export it as a separate bundle",
        )
    return matrices


def _judge(
    generator: Generator, name: str, backend: TorchBackend, gate: QualityGate, progress: Progress
) -> Mapping[str, Any]:
    """Compare the scores of the bank's and of PyTorch's answers, and return entries for the manifest.

    Raises:
        GateError: The bank loses too much quality.
    """
    progress.stage(f"scoring {name}", 2 * len(gate.examples))
    options = {**gate.task.generation_options(), "do_sample": False}
    exact = [answer.text for answer in backend.generate(gate.prompts, options, on_progress=progress.advance)]
    rounded = generator.generate(gate.prompts, adapter=name, prompt_lookup=False, do_sample=False)
    progress.advance(2 * len(gate.examples))
    change = gate.difference(gate.score(rounded), gate.score(exact))
    remedy = "choose another --precision of the bank, raise --max-rouge-drop, or add --force"
    gate.require(change, f"the adapter {name!r} in this bank", "PyTorch", remedy)
    return {"gate": {**gate.record(gate.passes(change)), "difference": change.mean}}
