"""Model cards: README.md of a run, a merged checkpoint or a bundle, with the metadata that the Hub reads.

A card contains no local path, and ends with a digest of itself. The digest reveals an edited card, which is never
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
_WITH_LORA_FT = """With lora-ft, from a copy of this folder (`hf download REPOSITORY --local-dir FOLDER` makes one):

```sh
lora-ft generate FOLDER "a text, which is put through the prompt"
```
"""
_WITHOUT_LORA_FT = """This layout needs ONNX Runtime 1.22 or later, and no lora-ft, which generates with bundles only.
It takes the whole prompt: put the text into the task's template first.
"""
_OPTIMUM = """from optimum.onnxruntime import ORTModelForSeq2SeqLM
from transformers import AutoTokenizer

where = "."
tokenizer = AutoTokenizer.from_pretrained(where)
model = ORTModelForSeq2SeqLM.from_pretrained(where)
inputs = tokenizer(["a prompt", "another, longer prompt"], padding=True, return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True))"""
_FINETUNE = "finetune"  # the Hub's word for further training; its "merge" means several models


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
        return _card(head, task.name, f"{code_span(base_name(task.base))}, every weight of it trained", facts, [], code)
    head = _metadata(facts, "peft", "adapter", ["lora", "t5"])
    imports = "from lora_ft.models.bases import find_base\n" if task.base == OFFLINE else ""
    base = (
        'find_base("offline").folder' if task.base == OFFLINE else json.dumps(base_name(task.base), ensure_ascii=False)
    )
    code = f"""{imports}from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM

where = "adapter"
base = AutoModelForSeq2SeqLM.from_pretrained({base})
model = PeftModel.from_pretrained(base, where)"""
    if task.lora.new_tokens or task.lora.trainable_token_indices:
        code = (
            "# peft alone takes the head for the embedding, and would lose the trained tokens: `lora-ft merge` it first"
        )
    return _card(head, task.name, f"A LoRA adapter for {code_span(base_name(task.base))}", facts, [], code)


def checkpoint_card(facts: Facts | None, record: Mapping[str, Any]) -> str:
    """Return the README.md of a checkpoint, merged from a run or from an adapter without one.

    Args:
        facts: Facts about the training, or None for an adapter without a run.
        record: Content of the checkpoint's merge.json.
    """
    adapted = facts is None or facts.task.method == "lora"
    head = _metadata(facts, "transformers", _FINETUNE, [*(["lora"] if adapted else []), "t5"], record.get("base"))
    rows = [("weights", f"{record['dtype']}, {'an adapter merged' if adapted else 'trained'} in float32")]
    if adapted:
        rows.append(("merged against adapter", f"logits differ by at most {record['largest_logit_difference']:.2g}"))
    code = """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

where = "."
tokenizer = AutoTokenizer.from_pretrained(where)
model = AutoModelForSeq2SeqLM.from_pretrained(where)"""
    how = "with a LoRA adapter merged into it" if adapted else "every weight of it trained"
    name, base = (facts.task.name, facts.task.base) if facts else (record["adapter"], record["base"])
    return _card(head, name, f"{code_span(base_name(base))}{' ' if adapted else ', '}{how}", facts, rows, code)


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
        ("checked against PyTorch", f"{parity['identical_rows']} of {parity['rows']} texts are the same"),
        *(("differs from bundles", line) for line in manifest.get("differences", ())),
        *_gate(manifest),
    ]
    quiet = 'import os\n\nos.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # before onnxruntime is imported\n'
    lines = {
        "bundle": 'from lora_ft.export.runtime import Generator\n\nfolder = "."\nmodel = Generator.load(folder)',
        "optimum": quiet + _OPTIMUM,
        "single": quiet + single.example(manifest.get("generation", {})),
    }
    name = facts.task.name if facts else manifest["adapter"] or base
    adapted = " with a LoRA adapter" if manifest["adapter"] else ""
    after = _WITH_LORA_FT if layout == "bundle" else _WITHOUT_LORA_FT
    return _card(head, name, f"{code_span(base)}{adapted}, exported to ONNX", facts, rows, lines[layout], after)


def _gate(manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the row about the rounded weights: their score on rows of the task, and the loss by rounding."""
    tried = [entry for entry in manifest.get("tradeoff", []) if entry["precision"] == manifest["precision"]]
    if not tried:
        return []
    gate, (entry,) = manifest["gate"], tried
    rows = f"{gate['rows']:,} rows that precisions were chosen by"
    score = f"{gate['metric']} {interval(entry['score'])}, against fp32 {interval(entry['difference'])}, on {rows}"
    return [("score as exported", score)]


def facts_of(folder: Path) -> Facts | None:
    """Return the facts about the training behind a checkpoint, or None if `merge` did not write it."""
    training = read_json(folder / MERGE).get("training") if (folder / MERGE).is_file() else None
    return Facts(load_task(folder / TASK), training["metrics"], training["scores"]) if training else None


def facts_of_run(run: Run) -> Facts:
    """Return the facts about a run."""
    return Facts(run.task, run.metrics, run.scores)


def refresh_card(folder: Path) -> None:
    """Rewrite a run's card with its current scores, unless a user has edited the card."""
    path = folder / CARD
    if not path.is_file() or is_untouched(path.read_text(encoding="utf-8")):
        write_text(path, run_card(facts_of_run(Run(folder))))


def is_untouched(card: str) -> bool:
    """Return whether a card is unchanged since lora-ft wrote it."""
    match = _SEALED.search(card)
    return match is not None and match[1] == _digest(card[: match.start()])


def addressed(card: str, repo: str) -> str:
    """Return a card whose example loads from a repository on the Hub. An edited card is returned unchanged."""
    if not is_untouched(card):
        return card
    text = _SEALED.sub("", card)
    text = re.sub(r'^where = ".*"$', f'where = "{repo}"', text, flags=re.MULTILINE)
    found = f'from huggingface_hub import snapshot_download\n\nfolder = snapshot_download("{repo}")'
    return _sealed(re.sub(r'^folder = "\."$', found, text, flags=re.MULTILINE))


def _card(
    head: str,
    name: str,
    what: str,
    facts: Facts | None,
    rows: Sequence[tuple[str, str]],
    code: str,
    after: str | None = None,
) -> str:
    parts = [f"---\n{head}\n---\n\n# {escaped(name)}\n"]
    if facts is None:
        parts.append(f"{what} with lora-ft.\n")
        parts.append(_facts_table(rows))
    else:
        notice = facts.metrics["base"]["notice"]
        parts.append(f"{what}. Made with lora-ft.\n" + (f"\n> {notice}\n" if notice else ""))
        parts.append(f"Prompt: {code_span(repr(facts.task.prompt))}\n")
        parts.append("## Scores\n\n" + _scores(facts))
        parts.append("## Training\n\n" + _facts_table([*rows, *_training(facts)]) + _carbon_note(facts))
        parts.append("## Limits\n\n" + _limits(facts))
    parts.append(f"## Use\n\n```python\n{code}\n```\n")
    parts.append(_WITH_LORA_FT if after is None else after)
    return _sealed("\n".join(parts))


def _metadata(facts: Facts | None, library: str, relation: str, tags: Sequence[str], base: str | None = None) -> str:
    """Return the YAML header. The Hub refuses a base_model that is not a name on the Hub."""
    base = facts.task.base if facts else base
    named = base is not None and is_hub_name(base)
    known: dict[str, Any] = {}
    if facts:
        task, card = facts.task, facts.task.card
        datasets = list(dict.fromkeys([*([task.data.hub] if task.data.hub else []), *card.datasets]))
        results = _results(facts)
        known = {
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
        **({"pipeline_tag": "text-generation"} | known),
    )
    if data.eval_results is None:
        data.pop("model_name", None)
    return data.to_yaml()


def _results(facts: Facts) -> list[EvalResult]:
    """Return scores for the Hub's model-index. It has no field for an interval, so the name contains it."""
    task = facts.task
    return [
        EvalResult(
            task_type=task.card.pipeline_tag,
            dataset_type=task.data.hub or next(iter(task.card.datasets), task.name),
            dataset_name=task.name,
            dataset_split=split,
            metric_type="rouge" if kind.startswith("rouge") else kind,
            metric_name=f"{kind}, 95 % interval {found['low']:.1f} to {found['high']:.1f}, {entry['rows']:,} rows",
            metric_value=round(found["mean"], 2),
        )
        for split, entry in facts.scores.items()
        for kind, found in score_values(entry["scores"]).items()
    ]


def _scores(facts: Facts) -> str:
    """Return the results of `evaluate`, or without them the validation score that chose the checkpoint."""
    metrics, parts = facts.metrics, []
    for split, entry in facts.scores.items():
        base, gain = entry["baseline"], entry["difference"]
        columns = ["", "score", *(["base alone", "difference"] if base else [])]
        rows = [
            [kind, *map(interval, [found, *([score_values(base)[kind], gain[kind]] if base else [])])]
            for kind, found in score_values(entry["scores"]).items()
        ]
        about = f"{entry['rows']:,} {split} rows, 0 to 100, with 95 % bootstrap intervals:"
        parts += [
            f"{about}\n\n{table(columns, rows)}\n",
            *(f"Note: {escaped(without_paths(warning))}.\n" for warning in entry["warnings"]),
        ]
    if metrics["best_metric"] is None:
        parts.append("Trained without validation rows.\n")
    else:
        parts.append(
            f"Best {facts.task.train.metric_for_best_model} on {metrics['rows']['validation']:,} validation rows: "
            f"{metrics['best_metric']:.2f} (step {metrics['best_step']:,}), inflated as it chose the checkpoint.\n"
        )
    if not facts.scores:
        parts.append("Not scored on test rows yet: `lora-ft evaluate` gives the score to quote.\n")
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
        *([("goes on from", code_span(base_name(task.lora.start_from)))] if task.lora.start_from else []),
        ("trained parameters", f"{metrics['trainable_parameters']:,}"),
        ("rows", f"{metrics['rows']['train']:,}" + (f" of {task.data.hub}" if task.data.hub else "")),
        ("steps", f"{metrics['steps']:,} of {metrics['global_batch']} rows, {schedule}"),
        ("precision", metrics["precision"] + (", compiled" if metrics["compiled"] else "")),
        ("time", f"{speed['seconds']:,.0f} s, {speed['samples_per_second'] or 0:.1f} samples/s{_since(metrics)}"),
        ("hardware", metrics.get("hardware") or "not recorded"),
        ("energy", f"{energy[0]:.3g} kWh, {energy[1]}" if energy else "not known: no counter could be read here"),
        *([("carbon", f"{carbon['emissions']:.3g} g of CO2, an estimate")] if carbon else []),
        ("versions", ", ".join(f"{name} {number}" for name, number in metrics["versions"].items())),
    ]


def _method(lora: Lora) -> str:
    """Describe the adapter: its size, then its differences from plain LoRA."""
    plain = f"LoRA, r {lora.r}, alpha {lora.lora_alpha}, dropout {lora.lora_dropout:g}, {lora.target_modules}"
    said = ("preset", "r", "lora_alpha", "lora_dropout", "target_modules", "start_from")
    usual = {name: field.get_default(call_default_factory=True) for name, field in Lora.model_fields.items()}
    return ", ".join([plain, *(f"{k} {v}" for k, v in lora if k not in said and v != usual[k])])


def _since(metrics: Mapping[str, Any]) -> str:
    step = metrics.get("resumed_at")
    return f", from step {step:,} on, where it was resumed" if step else ""


def _energy(facts: Facts) -> tuple[float, str] | None:
    """Return the energy of the training in kWh and its source, or None."""
    counted, watts = facts.metrics.get("energy"), facts.task.card.watts
    if counted:
        return counted["joules"] / 3.6e6, f"counted by {counted['source']}"
    if watts:
        seconds = facts.metrics["speed"]["seconds"] * facts.metrics.get("pack", {}).get("share", 1)
        return watts * seconds / 3.6e6, f"if it drew {watts:g} W, as its task says"
    return None


def _emissions(facts: Facts) -> dict[str, Any] | None:
    """Return the Hub's co2_eq_emissions, or None if the energy or the task's carbon intensity is unknown."""
    energy, card = _energy(facts), facts.task.card
    if energy is None or card.grams_per_kwh is None:
        return None
    source = (
        f"{energy[0]:.3g} kWh, {energy[1]}, at {card.grams_per_kwh:g} g/kWh, as its task says{_since(facts.metrics)}"
    )
    found = {
        "emissions": float(f"{energy[0] * card.grams_per_kwh:.3g}"),
        "source": source,
        "training_type": "fine-tuning",
        "geographical_location": card.location,
        "hardware_used": facts.metrics.get("hardware"),
    }
    return {name: value for name, value in found.items() if value is not None}


def _carbon_note(facts: Facts) -> str:
    carbon = _emissions(facts)
    return f"\nCarbon: {carbon['source']}.\n" if carbon else ""


def _limits(facts: Facts) -> str:
    task = facts.task
    spoken = escaped(", ".join(task.card.language)) or "not stated"
    lines = [
        f"Prompts are cut after {task.lengths.source} tokens, answers after {task.max_new_tokens}.",
        f"Language of the rows: {spoken}. Other languages, subjects and formats than those of its rows were not tried.",
        "A model that generates text may state what is not in its input; check what matters.",
        *([without_html(task.card.limits)] if task.card.limits else []),
    ]
    return "\n".join(f"- {line}" for line in lines) + "\n"


def _facts_table(rows: Sequence[tuple[str, str]]) -> str:
    return table(["", ""], rows) + "\n"


def _sealed(text: str) -> str:
    return text + _SEAL.format(_digest(text))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
