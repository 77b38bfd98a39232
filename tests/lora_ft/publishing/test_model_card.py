"""Model cards have metadata that the Hub accepts, facts about training and scores, and no local path."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from lora_ft.evaluate import evaluate
from lora_ft.export_onnx import export_onnx
from lora_ft.merge import merge
from lora_ft.models.offline_base import NOTICE
from lora_ft.publishing.model_card import (
    Facts,
    bundle_card,
    card_for_repo,
    checkpoint_card,
    checkpoint_facts,
    is_untouched,
    refresh_card,
    run_card,
)
from lora_ft.runs.run import Run
from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import Task
from tests.fakehub import card_faults

MakeTask = Callable[..., Path]
HUB = "google/flan-t5-small"


def metrics(**changes: Any) -> dict[str, Any]:
    return {
        "base": {"name": "b", "notice": ""},
        "rows": {"train": 1234, "validation": 56},
        "steps": 12,
        "global_batch": 16,
        "trainable_parameters": 688_128,
        "precision": "bf16",
        "compiled": False,
        "best_metric": 41.256,
        "best_step": 6,
        "speed": {"seconds": 61.4, "samples_per_second": 8.04},
        "versions": {"torch": "2.9", "peft": "0.18"},
        "resumed_at": 0,
        "energy": None,
        "hardware": "2 cores of a processor",
    } | changes


def scores(**changes: Any) -> dict[str, Any]:
    rouge1 = {"mean": 37.74, "low": 35.5, "high": 40.04}
    rouge = {"scores": {"rouge1": rouge1, "rougeL": {"mean": 30.2, "low": 28.0, "high": 32.0}}}
    return {"rows": 500, "scores": rouge, "baseline": None, "difference": None, "warnings": []} | changes


def record(**changes: Any) -> dict[str, Any]:
    return {"base": HUB, "adapter": "tiny", "precision": "fp32", "parity": {"identical_rows": 6, "rows": 6}} | changes


@pytest.fixture
def task(make_task: MakeTask) -> Task:
    """Return a task with a base on the Hub."""
    return load_task(make_task(), [f"base={HUB}"])


def metadata(card: str) -> dict[str, Any]:
    """Return the metadata of a card as the Hub's library reads it, after the fake Hub has validated it."""
    assert card_faults(card) == []
    return ModelCard(card).data.to_dict()


@pytest.mark.parametrize("base", [HUB, "offline", "a folder"])
def test_metadata_names_only_a_base_on_the_hub(make_task: MakeTask, tmp_path: Path, base: str) -> None:
    """The Hub rejects a card whose base_model is not a Hub name."""
    name = str(tmp_path) if base == "a folder" else base
    head = metadata(run_card(Facts(load_task(make_task()).model_copy(update={"base": name}), metrics())))
    assert head.get("base_model") == (HUB if base == HUB else None)
    assert head.get("base_model_relation") == ("adapter" if base == HUB else None)
    assert head["library_name"] == "peft" and "lora" in head["tags"]


def test_card_section_of_the_task_is_in_the_metadata(make_task: MakeTask) -> None:
    card = {
        "license": "cc-by-4.0",
        "language": ["en"],
        "datasets": ["knkarthick/dialogsum"],
        "tags": ["dialogue"],
        "pipeline_tag": "summarization",
        "limits": "Not for court records.",
    }
    facts = Facts(load_task(make_task(card=card)), metrics())
    head = metadata(run_card(facts))
    assert {name: head[name] for name in ("license", "language", "datasets", "pipeline_tag")} == {
        name: card[name] for name in ("license", "language", "datasets", "pipeline_tag")
    }
    assert head["tags"] == ["lora", "t5", "dialogue"]
    assert "- Not for court records.\n" in run_card(facts) and "Language of the rows: en." in run_card(facts)


def test_data_set_on_the_hub_is_named(make_task: MakeTask) -> None:
    task = load_task(make_task(data={"hub": "a/b", "train": "train", "validation": None, "test": None}))
    assert metadata(run_card(Facts(task, metrics())))["datasets"] == ["a/b"]


@pytest.mark.parametrize(
    "invalid", [{"license": "Apache 2"}, {"language": ["English"]}, {"pipeline_tag": "text2text-generation"}]
)
def test_metadata_that_the_hub_would_reject_is_refused(make_task: MakeTask, invalid: dict[str, Any]) -> None:
    with pytest.raises(Exception, match=f"card.{next(iter(invalid))}"):
        load_task(make_task(card=invalid))


def test_scores_are_in_the_model_index_with_their_intervals(task: Task) -> None:
    (model,) = metadata(run_card(Facts(task, metrics(), {"test": scores()})))["model-index"]
    (result,) = model["results"]
    assert model["name"] == "tiny" and result["dataset"] == {"name": "tiny", "type": "tiny", "split": "test"}
    assert result["metrics"][0] == {
        "type": "rouge",
        "value": 37.74,
        "name": "rouge1, 95 % interval 35.5 to 40.0, 500 rows",
    }


def test_scores_are_in_the_text_with_the_base_and_warnings(task: Task) -> None:
    base = {
        "rouge": {
            "rouge1": {"mean": 12.0, "low": 11.0, "high": 13.0},
            "rougeL": {"mean": 10.0, "low": 9.0, "high": 11.0},
        }
    }
    gain = {"rouge1": {"mean": 25.7, "low": 23.0, "high": 28.3}, "rougeL": {"mean": 20.2, "low": 18.0, "high": 22.0}}
    entry = scores(baseline=base, difference=gain, warnings=["no file /home/ana/rows/train.jsonl"])
    card = run_card(Facts(task, metrics(), {"test": entry}))
    assert "| rouge1 | 37.7 [35.5, 40.0] | 12.0 [11.0, 13.0] | 25.7 [23.0, 28.3] |" in card
    assert "Note: no file train.jsonl." in card


def test_evaluate_writes_scores_into_the_card_unless_it_was_edited(tiny_run: Run, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    assert "Not scored on test rows yet" in (run / "README.md").read_text()
    evaluate(str(run))
    card = (run / "README.md").read_text()
    assert "6 test rows, 0 to 100" in card and "Not scored" not in card and is_untouched(card)
    (run / "README.md").write_text(card.replace("## Limits", "## What it cannot do"))
    refresh_card(run)
    assert "## What it cannot do" in (run / "README.md").read_text()


def test_scores_on_another_task_are_not_in_the_card(tiny_run: Run, tmp_path: Path, make_task: MakeTask) -> None:
    run = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    evaluate(str(run), task=load_task(make_task(name="another")))
    assert "Not scored on test rows yet" in (run / "README.md").read_text()


def test_example_of_the_run_card_runs(tiny_run: Run, tiny_base: Path, tmp_path: Path) -> None:
    """The card names a base in a folder by its last part, so the base is linked next to the card."""
    run = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    (run / tiny_base.name).symlink_to(tiny_base)
    run_example(run)


def test_examples_of_checkpoint_and_bundle_run(tiny_run: Run, tmp_path: Path) -> None:
    run_example(merge(tiny_run, tmp_path / "merged").out)
    run_example(export_onnx(str(tmp_path / "merged"), tmp_path / "bundle").out)


def test_examples_of_layouts_run_and_omit_unsupported_commands(tiny_run: Run, tmp_path: Path) -> None:
    for layout, package in {"single": "onnxruntime", "optimum": "optimum"}.items():
        folder = export_onnx(str(tiny_run.folder), tmp_path / layout, layout=layout).out
        assert "lora-ft generate" not in (folder / "README.md").read_text()
        if find_spec(package):
            run_example(folder)


def run_example(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert str(folder.parent) not in card and metadata(card)
    code = card.split("```python\n")[1].split("```")[0]
    environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True, capture_output=True)


def test_card_describes_the_training(task: Task) -> None:
    card = run_card(Facts(task, metrics()))
    for words in (
        "# tiny\n",
        "say: {text}",
        "r 8, alpha 16",
        "688,128",
        "1,234",
        "12 of 16 rows, learning rate 0.01",
        "| bf16 |",
        "61 s, 8.0 samples/s |",
        "torch 2.9, peft 0.18",
        "seed 42",
        "| hardware | 2 cores of a processor |",
        "truncated to 48 tokens, answers to 24",
    ):
        assert words in card, words


def test_validation_score_is_the_best_with_its_step(task: Task) -> None:
    assert "Best rouge1 on 56 validation rows: 41.26 (step 6), inflated since it chose" in run_card(
        Facts(task, metrics())
    )


def test_card_without_validation_rows_has_no_score(task: Task) -> None:
    unscored = metrics(best_metric=None, best_step=None, rows={"train": 9, "validation": 0})
    card = run_card(Facts(task, unscored))
    assert "Trained without validation rows." in card and "Best" not in card and "model-index" not in metadata(card)
    unscored = metrics(best_metric=None, best_step=None)
    assert "none was a number" in run_card(Facts(task, unscored))


def test_card_of_the_offline_base_has_its_notice(make_task: MakeTask) -> None:
    task = load_task(make_task(), ["base=offline"])
    assert f"\n> {NOTICE}\n" in run_card(Facts(task, metrics(base={"name": "offline", "notice": NOTICE})))
    assert "> " not in run_card(Facts(task, metrics())).replace("-->", "")


def test_card_of_a_compiled_run_without_a_speed(task: Task) -> None:
    speed = {"seconds": 0.2, "samples_per_second": None}
    card = run_card(Facts(task, metrics(compiled=True, speed=speed)))
    assert "bf16, compiled" in card and "0.0 samples/s" in card


def test_energy_without_a_counter_or_stated_watts_is_unknown(task: Task) -> None:
    card = run_card(Facts(task, metrics()))
    assert "| energy | unknown" in card and "co2_eq_emissions" not in metadata(card)


def test_measured_energy_is_shown_and_carbon_only_with_an_intensity(make_task: MakeTask) -> None:
    counted = metrics(energy={"joules": 3.6e6, "source": "RAPL"})
    card = run_card(Facts(load_task(make_task()), counted))
    assert "| energy | 1 kWh, measured by RAPL |" in card and "co2_eq_emissions" not in metadata(card)
    clean = load_task(make_task(card={"grams_per_kwh": 34, "location": "Quebec, Canada"}))
    assert metadata(run_card(Facts(clean, counted)))["co2_eq_emissions"] == {
        "emissions": 34.0,
        "source": "1 kWh, measured by RAPL, at 34 g/kWh (from its task)",
        "training_type": "fine-tuning",
        "geographical_location": "Quebec, Canada",
        "hardware_used": "2 cores of a processor",
    }


def test_stated_watts_give_an_estimate_since_the_resume(make_task: MakeTask) -> None:
    task = load_task(make_task(card={"watts": 100, "grams_per_kwh": 400}))
    resumed = metrics(speed={"seconds": 3600, "samples_per_second": 1}, resumed_at=6)
    carbon = metadata(run_card(Facts(task, resumed)))["co2_eq_emissions"]
    assert carbon["emissions"] == 40.0
    assert carbon["source"].startswith("0.1 kWh, at 100 W (from its task)")
    assert carbon["source"].endswith("since the resume at step 6")


def test_merged_checkpoint_has_facts_of_its_training_and_is_a_finetune(
    tiny_run: Run, tmp_path: Path, task: Task
) -> None:
    run = Path(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    evaluate(str(run))
    out = merge(Run(run), tmp_path / "merged").out
    facts = checkpoint_facts(out)
    assert facts is not None and facts.metrics == tiny_run.metrics and set(facts.scores) == {"test"}
    assert "6 test rows" in (out / "README.md").read_text()
    merge_record = {"dtype": "fp32", "largest_logit_difference": 1e-6}
    head = metadata(checkpoint_card(Facts(task, metrics()), merge_record))
    assert (head["base_model_relation"], head["library_name"]) == ("finetune", "transformers")


def test_card_of_rounded_weights_omits_scores_of_the_adapter(task: Task) -> None:
    facts = Facts(task, metrics(), {"test": scores()})
    exact = metadata(bundle_card(facts, record(), "bundle"))
    assert exact["model-index"] and (exact["base_model_relation"], exact["library_name"]) == ("finetune", "onnx")
    tradeoff = {
        "precision": "int8",
        "score": {"mean": 38.8, "low": 36.0, "high": 41.0},
        "difference": {"mean": 0.3, "low": -0.3, "high": 0.8},
    }
    rounded = record(
        precision="int8",
        tradeoff=[{**tradeoff, "precision": "fp32"}, tradeoff],
        gate={"metric": "rouge1", "rows": 200},
    )
    card = bundle_card(facts, rounded, "bundle")
    assert "model-index" not in metadata(card)
    assert "rouge1 38.8 [36.0, 41.0], difference from fp32 0.3 [-0.3, 0.8], on 200 rows" in card


def test_card_of_an_exported_base_is_quantized_if_rounded() -> None:
    for precision, relation in (("fp32", "finetune"), ("int8", "quantized")):
        card = bundle_card(None, record(adapter="", precision=precision), "optimum")
        assert metadata(card)["base_model_relation"] == relation
        assert "ORTModelForSeq2SeqLM" in card and "## Training" not in card


def test_card_for_a_repository_stays_untouched(task: Task) -> None:
    card = card_for_repo(run_card(Facts(task, metrics())), "me/tiny")
    assert '\nwhere = "me/tiny"\n' in card and is_untouched(card)
    assert not is_untouched(card.replace("tiny", "other")) and not is_untouched("# mine\n")
    assert card_for_repo("# mine\n", "me/tiny") == "# mine\n"


def test_markup_in_texts_of_the_task_is_escaped(make_task: MakeTask) -> None:
    limits = "only <b>short</b> texts\n</li><script>alert(1)</script>\x1b[31m"
    task = load_task(make_task(prompt="say `it`: {text}", card={"limits": limits}))
    card = run_card(Facts(task.model_copy(update={"base": '/x/a"b`c'}), metrics()))
    assert "<script>" not in card and "<b>" not in card and "\x1b" not in card
    assert "- only &lt;b&gt;short&lt;/b&gt; texts &lt;/li&gt;&lt;script&gt;" in card
    assert "Prompt: ``'say `it`: {text}'``" in card
    assert r'from_pretrained("./a\"b`c")' in card
