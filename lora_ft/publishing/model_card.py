"""Model cards: README.md of a run, a merged checkpoint or a bundle, with the metadata that the Hub reads.

A card contains no local path, and ends with a digest of its text. The digest reveals an edited card, which is never
overwritten.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from lora_ft.core.files import read_json, write_text
from lora_ft.models.bases import OFFLINE
from lora_ft.models.checkpoints import MERGE
from lora_ft.publishing.redaction import base_name, is_hub_name, without_paths
from lora_ft.reports.markdown import code_span, escaped, interval, table, without_html
from lora_ft.runs.records import score_values
from lora_ft.runs.run import CARD, TASK, Run
from lora_ft.tasks.files import load_task
from lora_ft.tasks.lora import Lora
from lora_ft.tasks.schema import Task

_SEAL = "\n<!-- written by lora-ft, {} -->\n"
_SEALED = re.compile(r"\n<!-- written by lora-ft, ([0-9a-f]{16}) -->\n\Z")
_WITH_LORA_FT = """With lora-ft, from a copy of this folder (`hf download REPOSITORY --local-dir FOLDER`):

```sh
lora-ft generate FOLDER "a text, which is inserted into the prompt"
```
"""
_WITHOUT_LORA_FT = """This layout needs ONNX Runtime 1.22 or later, and no lora-ft, which generates from bundles only.
The input is the whole prompt: insert the text into the task's template first.
"""
_OPTIMUM = """from optimum.onnxruntime import ORTModelForSeq2SeqLM
from transformers import AutoTokenizer

where = "."
tokenizer = AutoTokenizer.from_pretrained(where)
model = ORTModelForSeq2SeqLM.from_pretrained(where)
inputs = tokenizer(["a prompt", "another, longer prompt"], padding=True, return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True))"""
_FINETUNE = "finetune"  # the Hub's term for further training; its "merge" means several models


@dataclass(frozen=True)
class Facts:
    """Facts about the training, for a card.

    Attributes:
        task: Task that was trained.
        metrics: Measurements of the training.
        scores: Results of `evaluate`, by split.
    """

    task: Task
    metrics: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def run_card(facts: Facts) -> str:
    """Return the README.md of a run."""
    task = facts.task
    if task.method == "full":
        head = _metadata(facts, "transformers", _FINETUNE, ["t5"])
        code = """from transformers import AutoModelForSeq2SeqLM

where = "."
model = AutoModelForSeq2SeqLM.from_pretrained(where, subfolder="checkpoint")"""
        return _card(head, task.name, f"{code_span(base_name(task.base))} with all weights trained", facts, [], code)
    head = _metadata(facts, "peft", "adapter", ["lora", "t5"])
    imports = "from lora_ft.models.bases import find_base\n" if task.base == OFFLINE else ""
    base = (
        'find_base("offline").folder' if task.base == OFFLINE else json.dumps(base_name(task.base), ensure_ascii=False)
    )
    untie = share = ""
    if task.lora.new_tokens or task.lora.trainable_token_indices:  # the rows that PEFT adds to `shared` only
        untie = "base.config.tie_word_embeddings = base.lm_head.weight is base.shared.weight  # PEFT would tie them\n"
        share = "\nmodel.get_base_model().set_input_embeddings(model.get_base_model().shared)  # or tokens are lost"
    code = f"""{imports}from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM

where = "adapter"
base = AutoModelForSeq2SeqLM.from_pretrained({base})
{untie}model = PeftModel.from_pretrained(base, where){share}"""
    return _card(head, task.name, f"A LoRA adapter for {code_span(base_name(task.base))}", facts, [], code)


def checkpoint_card(facts: Facts | None, record: Mapping[str, Any]) -> str:
    """Return the README.md of a checkpoint that was merged from a run, or from an adapter without a run.

    Args:
        facts: Facts about the training, or None for an adapter without a run.
        record: Content of the checkpoint's merge.json.
    """
    adapted = facts is None or facts.task.method == "lora"
    head = _metadata(facts, "transformers", _FINETUNE, [*(["lora"] if adapted else []), "t5"], record.get("base"))
    rows = [("weights", f"{record['dtype']}, {'adapter merged' if adapted else 'trained'} in float32")]
    if adapted:
        rows.append(("merged vs. adapter", f"logits differ by at most {record['largest_logit_difference']:.2g}"))
    code = """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

where = "."
tokenizer = AutoTokenizer.from_pretrained(where)
model = AutoModelForSeq2SeqLM.from_pretrained(where)"""
    description = "with a merged LoRA adapter" if adapted else "with all weights trained"
    name, base = (facts.task.name, facts.task.base) if facts else (record["adapter"], record["base"])
    return _card(head, name, f"{code_span(base_name(base))} {description}", facts, rows, code)


def bundle_card(facts: Facts | None, manifest: Mapping[str, Any], layout: str) -> str:
    """Return the README.md of an exported model.

    Args:
        facts: Facts about the training, or None if they are unknown.
        manifest: Record of the export and of its checks.
        layout: "bundle", or one of `lora_ft.export.layouts`.
    """
    from lora_ft.export.layouts import single  # imports onnx, which training does not need

    base, precision = base_name(manifest["base"]), manifest["precision"]
    parity = manifest["parity"]
    rounded = not manifest["adapter"] and precision != "fp32"
    if facts and precision != "fp32":  # scores were measured before rounding
        facts = replace(facts, scores={})
    head = _metadata(facts, "onnx", "quantized" if rounded else _FINETUNE, ["onnx", "t5"], manifest["base"])
    rows = [
        ("weights", f"{precision}, ONNX, layout {layout}"),
        ("compared with PyTorch", f"{parity['identical_rows']} of {parity['rows']} texts are identical"),
        *(("differs from bundles", line) for line in manifest.get("differences", ())),
        *_gate(manifest),
    ]
    no_telemetry = (
        'import os\n\nos.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported\n'
    )
    lines = {
        "bundle": 'from lora_ft.export.runtime import Generator\n\nfolder = "."\nmodel = Generator.load(folder)',
        "optimum": no_telemetry + _OPTIMUM,
        "single": no_telemetry + single.example(manifest.get("generation", {})),
    }
    name = facts.task.name if facts else manifest["adapter"] or base
    adapted = " with a LoRA adapter" if manifest["adapter"] else ""
    usage = _WITH_LORA_FT if layout == "bundle" else _WITHOUT_LORA_FT
    return _card(head, name, f"{code_span(base)}{adapted}, exported to ONNX", facts, rows, lines[layout], usage)


def _gate(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the row about the score of rounded weights on rows of the task, and the loss by rounding."""
    entries = [entry for entry in manifest.get("tradeoff", []) if entry["precision"] == manifest["precision"]]
    if not entries:
        return []
    gate, (entry,) = manifest["gate"], entries
    change = f"difference from fp32 {interval(entry['difference'])}"
    rows = f"{gate['rows']:,} rows that were used to choose the precision"
    return [("score as exported", f"{gate['metric']} {interval(entry['score'])}, {change}, on {rows}")]


def checkpoint_facts(folder: Path) -> Facts | None:
    """Return the facts about a merged checkpoint's training, or None if `merge` did not write the checkpoint."""
    training = read_json(folder / MERGE).get("training") if (folder / MERGE).is_file() else None
    return Facts(load_task(folder / TASK), training["metrics"], training["scores"]) if training else None


def run_facts(run: Run) -> Facts:
    """Return the facts about a run."""
    return Facts(run.task, run.metrics, run.scores)


def refresh_card(folder: Path) -> None:
    """Rewrite a run's card with its current scores, unless a user has edited the card."""
    path = folder / CARD
    if not path.is_file() or is_untouched(path.read_text(encoding="utf-8")):
        write_text(path, run_card(run_facts(Run(folder))))


def is_untouched(card: str) -> bool:
    """Return whether a card is unchanged since lora-ft wrote it."""
    match = _SEALED.search(card)
    return match is not None and match[1] == _digest(card[: match.start()])


def card_for_repo(card: str, repo: str) -> str:
    """Return a card whose code example loads from the Hub repository `repo`. An edited card is returned unchanged."""
    if not is_untouched(card):
        return card
    text = _SEALED.sub("", card)
    text = re.sub(r'^where = ".*"$', f'where = "{repo}"', text, flags=re.MULTILINE)
    download = f'from huggingface_hub import snapshot_download\n\nfolder = snapshot_download("{repo}")'
    return _sealed(re.sub(r'^folder = "\."$', download, text, flags=re.MULTILINE))


def _card(
    head: str,
    name: str,
    summary: str,
    facts: Facts | None,
    rows: Sequence[tuple[str, str]],
    code: str,
    closing: str | None = None,
) -> str:
    parts = [f"---\n{head}\n---\n\n# {escaped(name)}\n"]
    if facts is None:
        parts.append(f"{summary} with lora-ft.\n")
        parts.append(_facts_table(rows))
    else:
        notice = facts.metrics["base"]["notice"]
        parts.append(f"{summary}. Created with lora-ft.\n" + (f"\n> {notice}\n" if notice else ""))
        parts.append(f"Prompt: {code_span(repr(facts.task.prompt))}\n")
        parts.append("## Scores\n\n" + _scores(facts))
        parts.append("## Training\n\n" + _facts_table([*rows, *_training(facts)]) + _carbon_note(facts))
        parts.append("## Limits\n\n" + _limits(facts))
    parts.append(f"## Use\n\n```python\n{code}\n```\n")
    parts.append(_WITH_LORA_FT if closing is None else closing)
    return _sealed("\n".join(parts))


def _metadata(facts: Facts | None, library: str, relation: str, tags: Sequence[str], base: str | None = None) -> str:
    """Return the YAML header. `base_model` is set only for a Hub name, since the Hub refuses others."""
    base = facts.task.base if facts else base
    named = base is not None and is_hub_name(base)
    metadata: dict[str, Any] = {}
    if facts:
        task, card = facts.task, facts.task.card
        datasets = list(dict.fromkeys([*([task.data.hub] if task.data.hub else []), *card.datasets]))
        results = _results(facts)
        metadata = {
            "license": card.license,
            "language": card.language or None,
            "datasets": datasets or None,
            "metrics": sorted({result.metric_type for result in results}) or None,
            "pipeline_tag": card.pipeline_tag,
            "model_name": task.name,
            "eval_results": results or None,
            "co2_eq_emissions": _emissions(facts),
        }
        tags = [*tags, *card.tags]
    data = ModelCardData(
        base_model=base if named else None,
        base_model_relation=relation if named else None,
        library_name=library,
        tags=list(tags),
        **({"pipeline_tag": "text-generation"} | metadata),
    )
    if data.eval_results is None:
        data.pop("model_name", None)
    return data.to_yaml()


def _results(facts: Facts) -> list[EvalResult]:
    """Return scores for the Hub's model-index, with intervals in their names since it has no field for them."""
    task = facts.task
    return [
        EvalResult(
            task_type=task.card.pipeline_tag,
            dataset_type=task.data.hub or next(iter(task.card.datasets), task.name),
            dataset_name=task.name,
            dataset_split=split,
            metric_type="rouge" if kind.startswith("rouge") else kind,
            metric_name=f"{kind}, 95 % interval {value['low']:.1f} to {value['high']:.1f}, {entry['rows']:,} rows",
            metric_value=round(value["mean"], 2),
        )
        for split, entry in facts.scores.items()
        for kind, value in score_values(entry["scores"]).items()
    ]


def _scores(facts: Facts) -> str:
    """Return the results of `evaluate` and the validation score that chose the checkpoint."""
    metrics, parts = facts.metrics, []
    for split, entry in facts.scores.items():
        base, gain = entry["baseline"], entry["difference"]
        columns = ["", "score", *(["base alone", "difference"] if base else [])]
        rows = [
            [kind, *map(interval, [estimate, *([score_values(base)[kind], gain[kind]] if base else [])])]
            for kind, estimate in score_values(entry["scores"]).items()
        ]
        caption = f"{entry['rows']:,} {split} rows, 0 to 100, with 95 % bootstrap intervals:"
        parts += [
            f"{caption}\n\n{table(columns, rows)}\n",
            *(f"Note: {escaped(without_paths(warning))}.\n" for warning in entry["warnings"]),
        ]
    if metrics["best_metric"] is None:
        rows = metrics["rows"]["validation"]
        reason = "validation rows" if not rows else "a validation score: none was a number, so the last weights stayed"
        parts.append(f"Trained without {reason}.\n")
    else:
        parts.append(
            f"Best {facts.task.train.metric_for_best_model} on {metrics['rows']['validation']:,} validation rows: "
            f"{metrics['best_metric']:.2f} (step {metrics['best_step']:,}), inflated since it chose the checkpoint.\n"
        )
    if not facts.scores:
        parts.append("Not scored on test rows yet: run `lora-ft evaluate` for a score to quote.\n")
    return "\n".join(parts)


def _training(facts: Facts) -> list[tuple[str, str]]:
    """Return hyperparameters, time and energy."""
    task, metrics = facts.task, facts.metrics
    lora, train, speed = task.lora, task.train, metrics["speed"]
    schedule = (
        f"learning rate {train.learning_rate:g}, {train.lr_scheduler_type}, {train.optim}, "
        f"weight decay {train.weight_decay:g}, seed {train.seed}"
    )
    energy, carbon = _energy(facts), _emissions(facts)
    return [
        ("method", _method(lora) if task.method == "lora" else "full fine-tuning"),
        *([("started from", code_span(base_name(task.lora.start_from)))] if task.lora.start_from else []),
        *([("distilled from", code_span(base_name(train.distill.teacher)))] if train.distill else []),
        ("trained parameters", f"{metrics['trainable_parameters']:,}"),
        ("rows", f"{metrics['rows']['train']:,}" + (f" of {task.data.hub}" if task.data.hub else "")),
        ("steps", f"{metrics['steps']:,} of {metrics['global_batch']} rows, {schedule}"),
        ("precision", metrics["precision"] + (", compiled" if metrics["compiled"] else "")),
        ("time", f"{speed['seconds']:,.0f} s, {speed['samples_per_second'] or 0:.1f} samples/s{_resume_note(metrics)}"),
        ("hardware", metrics.get("hardware") or "not recorded"),
        ("energy", f"{energy[0]:.3g} kWh, {energy[1]}" if energy else "unknown: the machine has no readable counter"),
        *([("carbon", f"{carbon['emissions']:.3g} g of CO2, an estimate")] if carbon else []),
        ("versions", ", ".join(f"{name} {number}" for name, number in metrics["versions"].items())),
    ]


def _method(lora: Lora) -> str:
    """Describe an adapter by its size and its differences from plain LoRA."""
    plain = f"LoRA, r {lora.r}, alpha {lora.lora_alpha}, dropout {lora.lora_dropout:g}, {lora.target_modules}"
    summarized = ("preset", "r", "lora_alpha", "lora_dropout", "target_modules", "start_from")
    defaults = {name: field.get_default(call_default_factory=True) for name, field in Lora.model_fields.items()}
    return ", ".join([plain, *(f"{k} {v}" for k, v in lora if k not in summarized and v != defaults[k])])


def _resume_note(metrics: Mapping[str, Any]) -> str:
    step = metrics.get("resumed_at")
    return f", since the resume at step {step:,}" if step else ""


def _energy(facts: Facts) -> tuple[float, str] | None:
    """Return the energy of the training in kWh and its source, or None."""
    counted, watts = facts.metrics.get("energy"), facts.task.card.watts
    if counted:
        return counted["joules"] / 3.6e6, f"measured by {counted['source']}"
    if watts:
        seconds = facts.metrics["speed"]["seconds"] * facts.metrics.get("pack", {}).get("share", 1)
        return watts * seconds / 3.6e6, f"at {watts:g} W (from its task)"
    return None


def _emissions(facts: Facts) -> dict[str, Any] | None:
    """Return the Hub's co2_eq_emissions, or None if the energy or the task's carbon intensity is unknown."""
    energy, card = _energy(facts), facts.task.card
    if energy is None or card.grams_per_kwh is None:
        return None
    intensity = f"at {card.grams_per_kwh:g} g/kWh (from its task)"
    source = f"{energy[0]:.3g} kWh, {energy[1]}, {intensity}{_resume_note(facts.metrics)}"
    emissions = {
        "emissions": float(f"{energy[0] * card.grams_per_kwh:.3g}"),
        "source": source,
        "training_type": "fine-tuning",
        "geographical_location": card.location,
        "hardware_used": facts.metrics.get("hardware"),
    }
    return {name: value for name, value in emissions.items() if value is not None}


def _carbon_note(facts: Facts) -> str:
    carbon = _emissions(facts)
    return f"\nCarbon: {carbon['source']}.\n" if carbon else ""


def _limits(facts: Facts) -> str:
    task = facts.task
    languages = escaped(", ".join(task.card.language)) or "not stated"
    lines = [
        f"Prompts are truncated to {task.lengths.source} tokens, answers to {task.max_new_tokens}.",
        f"Language of the rows: {languages}. Other languages, subjects and formats were not tested.",
        "Generated text may contain statements that are not in the input; check important facts.",
        *([without_html(task.card.limits)] if task.card.limits else []),
    ]
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _facts_table(rows: Sequence[tuple[str, str]]) -> str:
    return table(["", ""], rows) + "\n"


def _sealed(text: str) -> str:
    return text + _SEAL.format(_digest(text))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
