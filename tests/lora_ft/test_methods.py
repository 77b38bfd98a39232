"""Methods other than plain LoRA train, merge, score and export as LoRA does, and resume bit-identically."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.optimizers import create_loraplus_optimizer
from safetensors.torch import load_file
from transformers import AutoModelForSeq2SeqLM, T5ForConditionalGeneration

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.evaluate import evaluate
from lora_ft.export_onnx import export_onnx
from lora_ft.generate import generate
from lora_ft.merge import merge
from lora_ft.models.adapter_files import adapter_config
from lora_ft.models.adapters import check_fits, count_parameters
from lora_ft.models.bases import load_model, load_tokenizer
from lora_ft.models.loading import load
from lora_ft.publishing.uploads import uploads
from lora_ft.runs.run import Run, working_folder
from lora_ft.tasks.files import load_task
from lora_ft.tasks.schema import Task
from lora_ft.train import train
from lora_ft.training import trainer as training
from lora_ft.validate import validate
from tests.tiny import CONFIG, save_tiny_t5

MakeTask = Callable[..., Path]
IDS = torch.tensor([[5, 9, 23, 1], [7, 8, 1, 0]])
INPUTS = {"input_ids": IDS, "attention_mask": (IDS != 0).long(), "decoder_input_ids": torch.tensor([[0, 7, 8]] * 2)}
METHODS: dict[str, dict[str, Any]] = {
    "dora": {"lora": {"use_dora": True}},
    "rslora": {"lora": {"use_rslora": True}},
    "gaussian": {"lora": {"init_lora_weights": "gaussian"}},
    "random": {"lora": {"init_lora_weights": False}},
    "orthogonal": {"lora": {"init_lora_weights": "orthogonal"}},
    "pissa": {"lora": {"init_lora_weights": "pissa", "target_modules": "all-linear"}},
    "pissa by subspaces": {"lora": {"init_lora_weights": "pissa_niter_4"}},
    "pissa, rslora": {"lora": {"init_lora_weights": "pissa", "use_rslora": True}},
    "pissa, patterns": {"lora": {"init_lora_weights": "pissa", "rank_pattern": {"v": 3}, "alpha_pattern": {"q": 5}}},
    "olora": {"lora": {"init_lora_weights": "olora"}},
    "eva": {"lora": {"init_lora_weights": "eva", "r": 4, "target_modules": "all-linear"}},
    "eva, dora": {"lora": {"init_lora_weights": "eva", "r": 4, "use_dora": True}},
    "patterns": {"lora": {"rank_pattern": {"encoder.*.q": 3}, "alpha_pattern": {"v": 5}}},
    "lora+": {"lora": {"loraplus_lr_ratio": 16}},
    "trained tokens": {"lora": {"trainable_token_indices": [4, 9, 23]}},
    "full": {"method": "full"},
}
STARTS_ELSEWHERE = ("pissa", "pissa by subspaces", "olora", "eva", "eva, dora")


@torch.inference_mode()
def logits(model: torch.nn.Module) -> torch.Tensor:
    return model.eval()(**INPUTS).logits


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Callable[[str], Run]:
    """Return a run of a method, trained once per module. Tests must not write into it."""
    from tests.conftest import write_task

    runs: dict[str, Run] = {}

    def get(name: str) -> Run:
        if name not in runs:
            folder = tmp_path_factory.mktemp("method")
            settings = {"metric_for_best_model": "loss", "eval_every": 3}
            task = write_task(folder, tiny_base, train=settings, **METHODS[name])
            runs[name] = train(load_task(task), folder / "run")
        return runs[name]

    return get


def losses(run: Run) -> list[float]:
    entries = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


@pytest.mark.parametrize("name", METHODS)
def test_method_learns_and_writes_a_run(name: str, trained: Callable[[str], Run]) -> None:
    run = trained(name)
    loss_values = losses(run)
    assert sum(loss_values[-3:]) < sum(loss_values[:3])
    trained = "checkpoint" if name == "full" else "adapter"
    assert {path.name for path in run.folder.iterdir()} == {
        trained,
        "resume",
        "report.html",
        "task.yaml",
        "claim.json",
        "metrics.json",
        "log.jsonl",
        "README.md",
    }
    assert not {path.suffix for path in run.trained.iterdir()} - {".json", ".safetensors"}
    assert run.metrics["best_step"] in {entry["step"] for entry in run.metrics["evaluations"]}


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("full", "trained tokens")])
def test_saved_adapter_loads_in_peft_on_the_published_base(
    name: str, trained: Callable[[str], Run], tiny_base: Path, tmp_path: Path
) -> None:
    run = trained(name)
    base = T5ForConditionalGeneration.from_pretrained(tiny_base)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    adapted = PeftModel.from_pretrained(base, str(run.adapter))
    state = {key.replace(".base_layer", ""): value for key, value in adapted.base_model.model.state_dict().items()}
    assert all(torch.equal(state[key], value) for key, value in before.items())
    merge(run, tmp_path / "merged")
    merged = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged")
    assert torch.allclose(logits(merged), logits(adapted), atol=1e-4)
    assert not torch.allclose(logits(merged), logits(load_model(tiny_base)), atol=1e-2)


@pytest.mark.parametrize("name", METHODS)
def test_run_scores_as_its_best_checkpoint_did(name: str, trained: Callable[[str], Run]) -> None:
    """The best validation loss equals that of the merged model on the published base, whatever base was trained."""
    run = trained(name)
    best = next(e["eval_loss"] for e in run.metrics["evaluations"] if e["step"] == run.metrics["best_step"])
    model = load(str(run.folder))
    assert validation_loss(model.backend.model, run.task) == pytest.approx(best, rel=1e-4)  # type: ignore[attr-defined]


@torch.inference_mode()
def validation_loss(model: torch.nn.Module, task: Task) -> float:
    from lora_ft.data.batching import collate, encode
    from lora_ft.data.splits import load_splits

    tokenizer = load_tokenizer(Path(task.base), new_tokens=task.lora.new_tokens)
    batch = collate(encode(load_splits(task).validation, tokenizer, task.lengths, "validation"), 0)
    labels = batch.pop("labels")
    return float(training.token_loss(model(**batch), labels))


@pytest.mark.parametrize("name", METHODS)
def test_export_generates_the_same_texts_as_pytorch(name: str, trained: Callable[[str], Run], tmp_path: Path) -> None:
    bundle = export_onnx(str(trained(name).folder), tmp_path / "bundle", verify_rows=4)
    assert bundle.parity.identical_rows == bundle.parity.rows == 4
    texts = ["abc", "some more"]
    assert generate(load(str(tmp_path / "bundle")), texts, {}) == generate(load(str(trained(name).folder)), texts, {})


@pytest.mark.parametrize("name", METHODS)
def test_plan_counts_trained_parameters(name: str, trained: Callable[[str], Run]) -> None:
    run = trained(name)
    lora = None if name == "full" else run.task.lora
    trainable, everything = count_parameters(CONFIG, lora)
    whole = sum(parameter.numel() for parameter in load_model(Path(run.task.base)).parameters())
    assert everything == (whole if name == "full" else whole + trainable)
    if "eva" in name:  # its ranks move between layers of unlike width
        assert run.metrics["trainable_parameters"] == pytest.approx(trainable, rel=0.3)
    else:
        assert run.metrics["trainable_parameters"] == trainable


class Stopped(Exception):
    """Error that stands for a power failure."""


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = training.Trainer.training_step

    def training_step(self: Any, *args: Any, **options: Any) -> Any:
        if self.state.global_step == step:
            raise Stopped
        return original(self, *args, **options)

    monkeypatch.setattr(training.Trainer, "training_step", training_step)


@pytest.mark.parametrize("step", [1, 4], ids=["before a checkpoint", "after one"])
@pytest.mark.parametrize("name", ["dora", "pissa by subspaces", "olora", "eva", "lora+", "trained tokens", "full"])
def test_stopped_run_resumes_bit_identically(
    name: str, step: int, make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"metric_for_best_model": "loss", "eval_every": 3, "num_train_epochs": 1, "base_dropout": 0.1}
    method = METHODS[name] | {"lora": METHODS[name].get("lora", {}) | {"lora_dropout": 0.1}}
    task = load_task(make_task(train=settings, **method))
    whole = train(task, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(Stopped):
            train(task, tmp_path / "run")
    assert (working_folder(tmp_path / "run") / "initial").is_dir() == (name in STARTS_ELSEWHERE)
    resumed = train(task, tmp_path / "run", resume=True)
    ours, theirs = (load_file(next(run.trained.glob("*.safetensors"))) for run in (resumed, whole))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert losses(resumed) == losses(whole)


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_initial_weights_from_the_base_are_saved_as_a_difference_of_twice_the_rank(
    name: str, trained: Callable[[str], Run]
) -> None:
    config = adapter_config(trained(name).adapter)
    assert (config["r"], config["init_lora_weights"]) == (16, True)


def test_eva_assigns_ranks_by_explained_variance(trained: Callable[[str], Run]) -> None:
    config = adapter_config(trained("eva").adapter)
    ranks = [
        tensor.shape[0]
        for key, tensor in load_file(trained("eva").adapter / "adapter_model.safetensors").items()
        if "lora_A" in key
    ]
    assert config["init_lora_weights"] is True and len(set(ranks)) > 1 and sum(ranks) == 4 * len(ranks)


def test_eva_matches_pefts_search(tiny_base: Path) -> None:
    """peft's estimates are approximate, so directions and shares agree only approximately."""
    from peft import get_eva_state_dict

    from lora_ft.data.batching import Encoded, collate
    from lora_ft.models import initialization
    from lora_ft.models.adapters import add_adapter
    from lora_ft.tasks.lora import Lora

    torch.manual_seed(0)
    rows = [
        Encoded([*torch.randint(3, 70, (9 + i % 5,)).tolist(), 1], [*torch.randint(3, 70, (8,)).tolist(), 1])
        for i in range(24)
    ]
    lora = Lora.model_validate({"r": 2, "lora_alpha": 4, "target_modules": "all-linear", "init_lora_weights": "eva"})
    adapted = add_adapter(load_model(tiny_base), lora)
    batch = collate(rows, 0)
    ours = initialization._components(adapted, [batch], "cpu", 2.0)

    def real(states: Any, batch: dict[str, torch.Tensor], name: str) -> torch.Tensor:
        decoded = ".decoder." in name and not name.endswith(("EncDecAttention.k", "EncDecAttention.v"))
        return states[0][batch["labels"] != -100] if decoded else states[0][batch["attention_mask"].bool()]

    components_by_layer = get_eva_state_dict(
        adapted, [batch], prepare_model_inputs_fn=None, prepare_layer_inputs_fn=real, show_progress_bar=False
    )
    theirs = {name: components.float() for name, components in components_by_layer.items()}
    assert ours.keys() == theirs.keys()
    assert sum(map(len, ours.values())) == sum(map(len, theirs.values()))
    close = [abs(float(ours[n][0] @ theirs[n][0])) > 0.98 for n in ours if len(ours[n]) and len(theirs[n])]
    assert sum(close) > 0.9 * len(ours)
    assert sum(abs(len(ours[n]) - len(theirs[n])) for n in ours) < 0.2 * 2 * len(ours)
    assert all(torch.allclose(u @ u.T, torch.eye(len(u)), atol=1e-4) for u in ours.values())


def test_eva_refuses_rows_with_too_few_components(make_task: MakeTask, tmp_path: Path) -> None:
    task = load_task(make_task(rows=2, lora={"init_lora_weights": "eva", "r": 16}))
    with pytest.raises(UsageError, match=r"eva requires 32 components of the inputs of .*, which have"):
        train(task, tmp_path / "run")


def test_lora_plus_uses_pefts_parameter_groups(
    make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    created: list[tuple[Any, torch.optim.Optimizer]] = []
    original = training.Trainer.create_optimizer

    def spy(self: Any, *args: Any) -> torch.optim.Optimizer:
        created.append((self.model, original(self, *args)))
        return created[-1][1]

    monkeypatch.setattr(training.Trainer, "create_optimizer", spy)
    settings = {"max_steps": 1, "weight_decay": 0.02, "learning_rate": 0.003}
    train(load_task(make_task(lora={"loraplus_lr_ratio": 16}, train=settings)), tmp_path / "run")
    model, ours = created[0]
    theirs = create_loraplus_optimizer(
        model, torch.optim.AdamW, lr=0.003, loraplus_lr_ratio=16, loraplus_weight_decay=0.02
    )
    assert type(ours) is torch.optim.AdamW and len(ours.param_groups) == len(theirs.param_groups)
    for mine, peft_group in zip(ours.param_groups, theirs.param_groups, strict=True):
        assert mine["initial_lr"] == peft_group["lr"] and mine["weight_decay"] == peft_group["weight_decay"]
        assert [id(p) for p in mine["params"]] == [id(p) for p in peft_group["params"]]


def test_rank_pattern_changes_the_rank_of_its_layers(trained: Callable[[str], Run]) -> None:
    for key, tensor in load_file(trained("patterns").adapter / "adapter_model.safetensors").items():
        if "lora_A" in key:
            special = ".encoder." in key and ".q." in key
            assert tensor.shape[0] == (3 if special else 8), key


@pytest.mark.parametrize("key", ["rank_pattern", "alpha_pattern"])
def test_pattern_without_a_matching_layer_is_refused(key: str, make_task: MakeTask) -> None:
    report = validate(str(make_task(lora={key: {"query": 4}})))
    assert f"lora.{key}: the base has no linear layer 'query'" in str(report.errors[0])


def test_full_run_keeps_its_head_untied_and_its_embedding_shared(
    trained: Callable[[str], Run], tiny_base: Path, tmp_path: Path
) -> None:
    """transformers PR#47620: version 5 saves FLAN's config as tied, and the head is lost."""
    run = trained("full")
    stored, base = load_file(run.trained / "model.safetensors"), load_file(tiny_base / "model.safetensors")
    assert stored.keys() == base.keys()
    assert not [name for name in stored if torch.equal(stored[name], base[name])]  # every weight was trained
    config = json.loads((run.trained / "config.json").read_text())
    assert (config["tie_word_embeddings"], config["scale_decoder_outputs"]) == (False, False)
    reloaded = load_model(run.trained)
    assert torch.equal(reloaded.lm_head.weight, stored["lm_head.weight"])
    assert torch.equal(reloaded.encoder.embed_tokens.weight, stored["shared.weight"])
    assert not torch.equal(reloaded.lm_head.weight, reloaded.shared.weight)
    report = merge(run, tmp_path / "merged")
    assert (report.difference, report.rows) == (0.0, 0)
    assert torch.equal(logits(load_model(tmp_path / "merged")), logits(reloaded))


def test_full_run_is_pushed_unchanged(trained: Callable[[str], Run]) -> None:
    files = uploads(trained("full").folder, "me/mine").files
    assert {"checkpoint/model.safetensors", "checkpoint/config.json", "checkpoint/tokenizer.json", "task.yaml"} <= set(
        files
    )
    card = bytes(files["README.md"]).decode()  # type: ignore[arg-type]
    assert "library_name: transformers" in card and 'where = "me/mine"' in card and "full fine-tuning" in card


def test_full_run_does_not_need_its_base(trained: Callable[[str], Run], tmp_path: Path) -> None:

    folder = Path(shutil.copytree(trained("full").folder, tmp_path / "run"))
    text = (folder / "task.yaml").read_text()
    (folder / "task.yaml").write_text(text.replace(f"base: {trained('full').task.base}", "base: /gone/base"))
    assert evaluate(str(folder), limit=2).rows == 2
    with pytest.raises(UsageError, match="trained all weights; leave out --base"):
        merge(Run(folder), tmp_path / "merged", base="/gone/base")


def test_base_keeps_its_dropout_unless_frozen(make_task: MakeTask) -> None:
    assert load_task(make_task()).base_dropout == 0.0
    full = make_task(method="full")
    assert load_task(full).base_dropout is None
    assert load_task(full, ["train.base_dropout=0.2"]).base_dropout == 0.2


def test_full_run_trains_with_adafactor_and_accumulated_batches(make_task: MakeTask, tmp_path: Path) -> None:
    settings = {"optim": "adafactor", "gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    run = train(load_task(make_task(method="full", train=settings)), tmp_path / "run")
    loss_values = losses(run)
    assert loss_values[-1] < loss_values[0]


def test_trained_tokens_of_another_width_are_refused(trained: Callable[[str], Run], tmp_path: Path) -> None:
    other_model = load_model(save_tiny_t5(tmp_path / "wide", d_model=40))
    with pytest.raises(LoraFtError, match="is for another base"):
        check_fits(other_model, trained("trained tokens").adapter)


CLASHES: list[tuple[dict[str, Any], str]] = [
    ({"init_lora_weights": "svd"}, "unknown initialization; use true, false, gaussian"),
    ({"init_lora_weights": "pissa_niter_0"}, "unknown initialization"),
    ({"init_lora_weights": "pissa", "use_dora": True}, "saved as a difference"),
    ({"init_lora_weights": "olora", "new_tokens": ["<a>"]}, "saved as a difference"),
    ({"init_lora_weights": "pissa", "use_rslora": True, "rank_pattern": {"q": 2}}, "peft cannot save"),
    ({"init_lora_weights": "orthogonal", "r": 3}, "requires even ranks"),
    ({"init_lora_weights": "pissa", "quantization": "4bit"}, "requires a base without quantization"),
    ({"quantization": "3bit"}, "'4bit' or '8bit'"),
    ({"loraplus_lr_ratio": 0.5}, "greater than or equal to 1"),
]


@pytest.mark.parametrize(("lora", "message"), CLASHES, ids=lambda value: str(value)[:40])
def test_incompatible_settings_are_refused(lora: dict[str, Any], message: str, make_task: MakeTask) -> None:
    with pytest.raises(UsageError, match=message):
        load_task(make_task(lora=lora))
