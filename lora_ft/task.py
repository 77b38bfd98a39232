"""A task: one YAML file that says what to adapt to and how. This is its schema; nothing else parses configuration.

Names are transformers' and peft's where they mean the same thing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from export.errors import UsageError
from export.files import write_text
from export.runtime.prompt import Prompt


def _no_truth_value(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("write a number, not true or false")
    return value


Positive = Annotated[int, BeforeValidator(_no_truth_value), Field(ge=1)]
NotNegative = Annotated[int, BeforeValidator(_no_truth_value), Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
SPLITS = ("train", "validation", "test")
SplitName = Literal["train", "validation", "test"]

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"r": 8, "lora_alpha": 16, "target_modules": "q,v"},
    "default": {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"},
    "large": {"r": 64, "lora_alpha": 64, "target_modules": "all-linear"},
}


class Section(BaseModel):
    """A part of a task; unknown keys are faults."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class Split(Section):
    """How to cut missing splits off the training rows."""

    validation: Share = 0.1
    """Share of the rows for validation, where none is given."""
    test: Share = 0.0
    """Share of the rows for testing, where none is given."""
    seed: int = 0
    """Of the shuffle before the cut."""


class Limits(Section):
    """At most the first so many rows of each split."""

    train: Positive | None = None
    validation: Positive | None = None
    test: Positive | None = None


class Data(Section):
    """Where rows come from: a data set on the hub (`hub`), or local jsonl, json, csv, tsv or parquet files."""

    hub: str | None = None
    """Name of a data set on the hub; `train`, `validation` and `test` are then names of its splits."""
    config: str | None = None
    """Configuration of the hub data set."""
    revision: str | None = None
    """Revision of the hub data set."""
    root: Path | None = None
    """Folder that relative file names start from; by default the folder of the task file."""
    train: str | list[str] | None = None
    """File, glob or list of them."""
    validation: str | list[str] | None = None
    test: str | list[str] | None = None
    target: str = "target"
    """Column with the text to be generated."""
    references: str | None = None
    """Column with a list of acceptable texts to score against, instead of `target` alone."""
    split: Split | None = None
    limit: Limits = Limits()
    skip_empty: bool = False
    """Leave out rows with an empty cell instead of refusing them."""

    @model_validator(mode="after")
    def _has_rows(self) -> Data:
        if self.train is None and self.hub is not None:
            self.train = "train"
        if self.train is None and self.validation is None and self.test is None:
            raise ValueError("no rows are named; set train (a file, glob or list), or hub")
        return self


class Lengths(Section):
    """Limits in tokens, </s> included."""

    source: Annotated[int, Field(ge=8)] = 512
    """Prompts are cut here."""
    target: Annotated[int, Field(ge=2)] = 128
    """Longest target in training."""
    long_targets: Literal["error", "cut", "drop"] = "error"
    """What happens to a training or validation row whose target is longer."""


class Lora(Section):
    """The adapter, by peft's names. A preset fills in what is not given."""

    preset: Literal["tiny", "default", "large"] = "default"
    """tiny: r 8 on q,v. default: r 16 on all linear layers. large: r 64 on all linear layers."""
    r: Positive
    lora_alpha: Positive
    lora_dropout: Share = 0.0
    target_modules: str | list[str]
    """"q,v", "all-linear" (every linear layer but the head), or names of layers."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        preset = values.get("preset", "default")
        known = isinstance(preset, str) and preset in PRESETS
        return {**PRESETS[preset if known else "default"], **values}  # an unknown one is a fault of its own

    @field_validator("target_modules")
    @classmethod
    def _as_list(cls, value: str | list[str]) -> str | list[str]:
        if value == "all-linear":
            return value
        names = [name.strip() for name in (value.split(",") if isinstance(value, str) else value)]
        if not names or not all(names):
            raise ValueError("name at least one layer, e.g. q,v or all-linear")
        return names


class Train(Section):
    """The training run, by the names of transformers' Seq2SeqTrainingArguments."""

    num_train_epochs: Annotated[float, Field(gt=0)] = 3.0
    max_steps: Positive | None = None
    """Stops there whatever the epochs."""
    per_device_train_batch_size: Positive = 8
    per_device_eval_batch_size: Positive = 16
    gradient_accumulation_steps: Positive = 1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    lr_scheduler_type: str = "linear"
    warmup_ratio: Share = 0.05
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    optim: str = "adamw_torch"
    seed: int = 42
    precision: Literal["auto", "bf16", "fp32", "fp16"] = "auto"
    """auto: bf16 where the GPU or CPU computes in it, else fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile with free shapes: minutes of compiling, then faster steps. auto weighs one against the other."""
    base_dropout: Share = 0.0
    """Dropout inside the frozen base. 0 is a quarter faster on CPUs, and DialogSum's ROUGE is no worse for it."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third slower."""
    eval_every: Positive | Literal["epoch"] = "epoch"
    """Steps between evaluations on the validation rows; each is also a point to resume from."""
    metric_for_best_model: Literal["loss", "rouge1", "rouge2", "rougeL", "rougeLsum"] = "rouge1"
    """Chooses the checkpoint that becomes the adapter. With loss no text is generated while training."""
    early_stopping_patience: Positive | None = None
    """Stop after so many evaluations without a better score."""
    save_total_limit: Positive = 2
    """Checkpoints kept while training: the newest ones, and the best."""
    logging_steps: Positive = 10
    report_to: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = ["tensorboard"]

    @field_validator("compile", mode="before")
    @classmethod
    def _yaml_switch(cls, value: Any) -> Any:
        """YAML reads a bare on or off as a truth value."""
        return {True: "on", False: "off"}.get(value, value) if isinstance(value, bool) else value

    @field_validator("precision")
    @classmethod
    def _refuse_fp16(cls, value: str) -> str:
        if value == "fp16":
            raise ValueError(
                "T5 overflows in fp16 (its wo layers reach 66,246, fp16 ends at 65,504: transformers#5651); "
                "use auto, bf16 or fp32"
            )
        return value

    @field_validator("lr_scheduler_type")
    @classmethod
    def _known_scheduler(cls, value: str) -> str:
        known = ("linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt")
        if value not in known:
            raise ValueError(f"unknown scheduler; use one of {', '.join(known)}")
        return value

    @field_validator("optim")
    @classmethod
    def _known_optimizer(cls, value: str) -> str:
        known = ("adamw_torch", "adamw_torch_fused", "adafactor")
        if value not in known:
            raise ValueError(f"unknown optimizer; use one of {', '.join(known)}")
        return value


class Generate(Section):
    """How answers are generated, by the names of transformers' GenerationConfig."""

    max_new_tokens: Positive | None = None
    """By default lengths.target (transformers alone would stop after 20 tokens)."""
    min_new_tokens: NotNegative = 0
    num_beams: Positive = 1
    length_penalty: float = 1.0
    do_sample: bool = False
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_k: NotNegative = 50
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    no_repeat_ngram_size: NotNegative = 0
    repetition_penalty: Annotated[float, Field(gt=0)] = 1.0
    seed: int = 0
    """Of sampling."""


class Evaluate(Section):
    """How answers are scored."""

    use_stemmer: bool = True
    """Porter's stemmer before words are compared, as in most published English ROUGE."""
    bootstrap: Annotated[int, Field(ge=100)] = 1000
    """Resamples behind each interval."""
    seed: int = 0


class Task(Section):
    """One task, with every default filled in."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the run's folder: letters, digits, . _ -"""
    base: str = "google/flan-t5-small"
    """Hub name, path of a checkpoint, or `offline`."""
    data: Data
    prompt: str
    """What the model is asked, with {column} where a row's text goes."""
    lengths: Lengths = Lengths()
    lora: Lora = Field(default_factory=lambda: Lora.model_validate({}))
    train: Train = Train()
    generate: Generate = Generate()
    evaluate: Evaluate = Evaluate()

    @field_validator("prompt")
    @classmethod
    def _names_a_column(cls, value: str) -> str:
        try:
            Prompt(value)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return value

    @property
    def max_new_tokens(self) -> int:
        """Most tokens of an answer."""
        return self.generate.max_new_tokens or self.lengths.target

    def generation_options(self) -> dict[str, Any]:
        """What differs from greedy search, by transformers' names, and max_new_tokens."""
        defaults = Generate()
        changed = {
            name: value for name, value in self.generate.model_dump().items() if value != getattr(defaults, name)
        }
        return changed | {"max_new_tokens": self.max_new_tokens}


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a task: the key path, the value found there, what is wrong and what to do."""

    key: str
    value: Any
    problem: str

    def __str__(self) -> str:
        shown = repr(self.value)
        return f"{self.key} = {shown if len(shown) <= 60 else shown[:57] + '...'}: {self.problem}"


class TaskFaults(UsageError):
    """A task file with faults, all of them in `faults`."""

    def __init__(self, path: Path, faults: Sequence[Fault]) -> None:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        super().__init__(f"{path}: {faults[0]}{more}", f"`lora-ft validate {path}` shows all" if more else "")
        self.path, self.faults = path, list(faults)


def recipes() -> list[str]:
    """Names of the task files that ship with the project."""
    return sorted(path.name.removesuffix(".yaml") for path in _recipe_folder().glob("*.yaml"))


def recipe_file(name: str) -> Path:
    """The task file of a shipped recipe."""
    return _recipe_folder() / f"{name}.yaml"


def load_task(path: str | Path, overrides: Sequence[str] = ()) -> Task:
    """Read a task file, or a shipped recipe by its name.

    Args:
        path: the file.
        overrides: `key.path=value` pairs, values in YAML; paths among them start from the current folder.

    Raises:
        TaskFaults: with every fault of the schema at once.
        UsageError: no such file, no YAML, or an override that is no pair.
    """
    file = _find(path)
    raw = _read_yaml(file)
    for override in overrides:
        _override(raw, override)
    _from_here(raw, overrides)
    try:
        task = Task.model_validate(raw)
    except ValidationError as error:
        raise TaskFaults(file, [_fault(entry) for entry in error.errors()]) from error
    folder = file.resolve().parent
    task.data.root = folder / task.data.root.expanduser() if task.data.root else folder
    if task.base.startswith((".", "~")) or (task.base != "offline" and (folder / task.base).is_dir()):
        task.base = str((folder / Path(task.base).expanduser()).resolve())
    return task


def save_task(task: Task, path: Path) -> None:
    """Write a task with every default filled in, such that `load_task` gives it back."""
    content = task.model_dump(mode="json", exclude_none=True)
    write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100))


def _recipe_folder() -> Path:
    return Path(str(files("lora_ft") / "recipes"))


def _find(path: str | Path) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    if str(path) in recipes():
        return recipe_file(str(path))
    raise UsageError(f"no task file {path}", f"give a YAML file, or a recipe: {', '.join(recipes())}")


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 (byte {error.start})", "save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise UsageError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise UsageError(f"{file} is not a task: it holds no keys", "see the recipes for examples")
    return raw


_PATHS = ("root", *SPLITS)


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UsageError(f"--set {override} is not key.path=value", "e.g. --set train.num_train_epochs=2")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {key}: {text!r} is not YAML", "quote it") from error
    section: Any = raw
    *parents, last = key.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise UsageError(f"--set {override}: {parent} has no keys of its own")
    section[last] = value


def _from_here(raw: dict[str, Any], overrides: Sequence[str]) -> None:
    """Let the paths among the overrides start from the current folder (those in the file start from the file's)."""
    data = raw.get("data")
    for key in (override.partition("=")[0] for override in overrides):
        section, _, name = key.rpartition(".")
        if key == "base" and Path(str(raw["base"])).expanduser().is_dir():
            raw["base"] = _absolute(raw["base"])
        elif section == "data" and name in _PATHS and isinstance(data, dict) and not data.get("hub"):
            value = data[name]
            data[name] = [_absolute(item) for item in value] if isinstance(value, list) else _absolute(value)


def _absolute(value: Any) -> Any:
    return str(Path.cwd() / Path(value).expanduser()) if isinstance(value, str) else value


def _fault(entry: Mapping[str, Any]) -> Fault:
    """A pydantic error in our words."""
    parts = [str(part) for part in entry["loc"] if not str(part).startswith(("function-", "constrained", "literal["))]
    parts = [part for part in parts if part not in ("int", "str", "list[str]", "float")]
    problem = {
        "extra_forbidden": "unknown key; remove it or correct its spelling",
        "missing": "missing; add it",
    }.get(entry["type"], entry["msg"].removeprefix("Value error, "))
    value = None if entry["type"] == "missing" else entry["input"]
    return Fault(".".join(parts) or "task", value, problem)
