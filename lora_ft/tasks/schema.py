"""A task: what to adapt to and how. This is its schema; `lora_ft.tasks.files` reads it from YAML.

Names are transformers' and peft's where they mean the same thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, field_validator, model_validator

from lora_ft.core.errors import UsageError
from lora_ft.core.generation_options import BOUNDS
from lora_ft.core.prompt import Prompt
from lora_ft.tasks.data import Data
from lora_ft.tasks.faults import TaskFaults, faults_of, shown
from lora_ft.tasks.fields import Dropout, Positive, Real, Rows, Section, Seed, Share, Whole
from lora_ft.tasks.lora import Lora
from lora_ft.tasks.metric_names import GIVES, SCORES

FHIR_R4 = "fhir-r4"  # the schema that ships
SPLITS = ("train", "validation", "test")
AUTO = "auto"
MAX_LABELS = 10_000
MAX_RATE = 3e37  # float32 ends at 3.4e38
SplitName = Literal["train", "validation", "test"]


def within(option: str) -> Any:
    """Return the bounds of a generation option, which all engines share."""
    least, most = BOUNDS[option]
    return Field(ge=least, le=most)


def known_score(value: str) -> str:
    """Return the name of a score; raise ValueError if it is unknown."""
    if value not in SCORES:
        raise ValueError(f"unknown score; use one of {', '.join(SCORES)}")
    return value


class Lengths(Section):
    """Maximum lengths, in tokens, including </s>."""

    source: Annotated[Whole, Field(ge=8, le=100_000)] = 512
    """Maximum prompt length; longer prompts are cut at their end."""
    target: Annotated[Whole, Field(ge=2, le=100_000)] = 128
    """Maximum target length in training."""
    long_targets: Literal["error", "cut", "drop"] = "error"
    """Action on a training or validation row with a longer target."""


class Train(Section):
    """The training run, by the names of transformers' Seq2SeqTrainingArguments."""

    num_train_epochs: Annotated[Real, Field(gt=0, le=100_000)] = 3.0
    """Number of passes over the training rows."""
    max_steps: Positive | None = None
    """Maximum number of optimizer steps; takes precedence over num_train_epochs."""
    per_device_train_batch_size: Rows = 8
    """Rows of a training batch on each device."""
    per_device_eval_batch_size: Rows = 16
    """Rows of an evaluation batch on each device."""
    gradient_accumulation_steps: Rows = 1
    """Batches of one optimizer step."""
    # AdamW multiplies it by 10 in the first step, and float32 ends at 3.4e38.
    learning_rate: Annotated[Real, Field(gt=0, le=MAX_RATE)] = 1e-3
    """Peak learning rate."""
    lr_scheduler_type: str = "linear"
    """Schedule: linear, cosine, constant, constant_with_warmup, polynomial or inverse_sqrt."""
    warmup_ratio: Share = 0.05
    """Share of all steps in which the learning rate rises from 0."""
    weight_decay: Annotated[Real, Field(ge=0, le=100)] = 0.0
    """Weight decay of the optimizer."""
    max_grad_norm: Annotated[Real, Field(ge=0, le=1e9)] = 1.0
    """Maximum gradient norm; 0 turns clipping off."""
    label_smoothing_factor: Annotated[Real, Field(ge=0, le=0.9)] = 0.0
    """Share of each target token's probability spread over the vocabulary, in training only (not in eval_loss)."""
    optim: str = "adamw_torch"
    """Optimizer: adamw_torch, adamw_torch_fused or adafactor."""
    seed: Seed = 42
    """Seed of initialization, dropout and the order of rows."""
    precision: Literal["auto", "bf16", "fp32", "fp16"] = "auto"
    """Number format of training. auto: bf16 if the GPU or CPU has bf16 arithmetic, else fp32. fp16 is refused."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile with dynamic shapes: minutes of compilation, then faster steps. auto: on if that pays off."""
    base_dropout: Dropout | None = None
    """Dropout rate inside the base. Default: 0 for a frozen base, which is a quarter faster on CPUs without loss of
    ROUGE on DialogSum; with method full, the base's own rate."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass. Takes less memory and is a third slower."""
    eval_every: Positive | Literal["epoch"] = "epoch"
    """Steps between evaluations on the validation rows. Each one also writes a resume point."""
    metric_for_best_model: str = "rouge1"
    """Metric that selects the final weights: loss, or a score as in evaluate.metric. With loss, training generates
    no text."""
    early_stopping_patience: Positive | None = None
    """Number of evaluations without improvement after which training stops."""
    save_total_limit: Positive = 2
    """Number of resume points kept during training: the newest ones, and the best."""
    logging_steps: Positive = 10
    """Steps between log entries."""
    report_to: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = ["tensorboard"]
    """Experiment trackers that receive the log."""

    @field_validator("compile", mode="before")
    @classmethod
    def _yaml_switch(cls, value: Any) -> Any:
        """Return on and off as text, which YAML reads as true and false."""
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

    @field_validator("metric_for_best_model")
    @classmethod
    def _known_metric(cls, value: str) -> str:
        return value if value == "loss" else known_score(value)

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
    """Generation options, by the names of transformers' GenerationConfig.

    A missing key has the value of the base's generation_config.json, else the default named here. Options of a
    command take precedence over both.
    """

    max_new_tokens: Annotated[Whole, within("max_new_tokens")] | None = None
    """Maximum answer length, in tokens. Default: lengths.target (transformers' own default is 20)."""
    min_new_tokens: Annotated[Whole, within("min_new_tokens")] | None = None
    """Minimum answer length, in tokens. Default: 0."""
    num_beams: Annotated[Whole, within("num_beams")] | None = None
    """Number of beams; 1 is greedy search. Default: 1."""
    length_penalty: Annotated[Real, within("length_penalty")] | None = None
    """Exponent on the length of beams; above 0 favors longer answers. Default: 1.0."""
    do_sample: bool | None = None
    """Sample answers instead of taking the likeliest token. Default: false."""
    temperature: Annotated[Real, within("temperature")] | None = None
    """Temperature of sampling. Default: 1.0."""
    top_k: Annotated[Whole, within("top_k")] | None = None
    """Number of likeliest tokens to sample from. Default: 50."""
    top_p: Annotated[Real, within("top_p")] | None = None
    """Share of probability to sample from. Default: 1.0."""
    no_repeat_ngram_size: Annotated[Whole, within("no_repeat_ngram_size")] | None = None
    """Size of n-grams that an answer never repeats; 0 allows all. Default: 0."""
    repetition_penalty: Annotated[Real, within("repetition_penalty")] | None = None
    """Penalty on tokens already generated. Default: 1.0."""
    seed: Seed | None = None
    """Seed of sampling. Default: a new one for each call, which is reported. Scores use `evaluate.seed`."""
    constrained: bool = True
    """Restrict answers to the labels, if the task has labels."""


class Evaluate(Section):
    """Scoring of answers."""

    metrics: Annotated[list[str], Field(min_length=1)] = ["rouge"]
    """Metrics that `lora-ft evaluate` computes: rouge, rougeSU4, bleu, chrf, exact_match, f1, meteor, bertscore.
    Two are added automatically: structured (valid, same_value) if answers are JSON, and classification (accuracy,
    macro_f1) if the task has labels; without labels, classification is an error."""
    metric: str = "rouge1"
    """Score that an ONNX precision must keep: rouge1, rouge2, rougeL, rougeLsum, rougeSU4, bleu, chrf, exact_match, f1,
    meteor or bertscore; valid or same_value if answers are JSON; accuracy or macro_f1 with labels."""
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")] = "en"
    """ISO 639 code of the language of the answers."""
    rouge_tokenizer: Literal["auto", "ascii", "unicode"] = "auto"
    """Words of ROUGE. ascii: rouge-score's own tokenizer, which drops every letter except a to z. unicode: letters of
    any script, and single characters in scripts without spaces. auto: ascii for English, else unicode."""
    use_stemmer: bool = True
    """Apply Porter's stemmer before ROUGE compares words, as in most published English ROUGE. English only."""
    stop_words: bool = False
    """Remove the most common English words before ROUGE compares words."""
    bertscore_model: str | None = None
    """Folder or hub name of BERTScore's encoder."""
    json_schema: str | None = None
    """Schema that answers are checked against: `fhir-r4`, or a JSON schema file. Needs the extra `structured`."""
    bootstrap: Annotated[Whole, Field(ge=100, le=100_000)] = 1000
    """Number of bootstrap resamples for each interval."""
    seed: Seed = 0
    """Seed of the resamples, and of sampling when answers are scored."""

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, value: list[str]) -> list[str]:
        for name in value:
            if name not in GIVES:
                raise ValueError(f"unknown metric {name}; use one of {', '.join(GIVES)}")
        return list(dict.fromkeys(value))

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str) -> str:
        return known_score(value)

    @model_validator(mode="after")
    def _can_be_scored(self) -> Evaluate:
        if self.stop_words and self.language != "en":
            raise ValueError("stop_words: there is a list for English only; set it to false, or language to en")
        if "bertscore" in (*self.metrics, self.metric) and self.bertscore_model is None:
            raise ValueError("bertscore needs bertscore_model: the folder or hub name of an encoder")
        return self


class Card(Section):
    """Entries of the model card that cannot be derived, by the hub's names; see `lora_ft.publishing.model_card`."""

    license: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")] | None = None
    """License of the adapter, by its identifier on the hub, e.g. apache-2.0 or cc-by-4.0."""
    language: list[Annotated[str, Field(pattern=r"^([a-z]{2,3}|code|multilingual)$")]] = []
    """Languages of the rows, as ISO 639 codes."""
    datasets: list[Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")]] = []
    """Names on the hub of the data sets that local rows come from. data.hub is added automatically."""
    pipeline_tag: Literal[
        "text-generation", "summarization", "translation", "question-answering", "text-classification"
    ] = "text-generation"
    """Task by the hub's name. The hub removed text2text-generation (huggingface.js#1590)."""
    tags: list[str] = []
    """Tags on the hub."""
    limits: str = ""
    """Unsuitable uses and known weaknesses of the model."""
    watts: Annotated[Real, Field(gt=0, le=1e9)] | None = None
    """Power of the machine during training, in watts, if it has no readable energy counter."""
    grams_per_kwh: Annotated[Real, Field(ge=0, le=1e6)] | None = None
    """CO2 of the electricity, in grams per kWh. Without it, the card states no emissions."""
    location: str | None = None
    """Origin of the electricity, e.g. "Quebec, Canada"."""


class Task(Section):
    """One task, with every default filled in.

    In Python, sections may be dicts, and rows of `data` lists of dicts, a `datasets.Dataset` or a pandas frame. An
    invalid task raises `TaskFaults`, a `TaskError`.
    """

    if TYPE_CHECKING:

        def __init__(
            self, *, name: str, prompt: str, data: Data | Mapping[str, Any], base: str = ..., **sections: Any
        ) -> None: ...

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=200)]
    """Name of the task and of the run's folder: letters, digits, . _ -"""
    base: str = "google/flan-t5-small"
    """Hub name, path of a checkpoint, or `offline`."""
    method: Literal["lora", "full"] = "lora"
    """lora: train an adapter on the frozen base. full: train every weight; use a learning rate of 1e-4 to 3e-4."""
    data: Data
    prompt: str
    """Prompt template, with {column} in place of a row's text."""
    codec: Literal["none", "text", "json"] = "none"
    """Encoding of prompts and targets before T5's tokenizer, which has no newline, tab, indentation or brace.

    text: any text, with marks from the vocabulary for missing characters. json: targets are JSON values (text, or
    objects and lists in jsonl rows), in a form with few quotes and no braces; prompts as with text. Answers are decoded
    to their original characters. `lengths` counts encoded tokens.
    """
    labels: list[str] | Literal["auto"] | None = None
    """Allowed targets, for classification. auto: the distinct targets of the training rows."""
    lengths: Lengths = Lengths()
    lora: Lora = Field(default_factory=lambda: Lora.model_validate({}))
    train: Train = Train()
    generate: Generate = Generate()
    evaluate: Evaluate = Evaluate()
    card: Card = Card()

    @field_validator("prompt")
    @classmethod
    def _names_a_column(cls, value: str) -> str:
        try:
            Prompt(value)
        except UsageError as error:
            raise ValueError(str(error)) from error
        return value

    @model_validator(mode="after")
    def _fits_itself(self) -> Task:
        generate = self.generate
        if (generate.min_new_tokens or 0) > self.max_new_tokens:
            named = "generate.max_new_tokens" if generate.max_new_tokens else "lengths.target"
            raise ValueError(
                f"generate.min_new_tokens is {generate.min_new_tokens}, more than {named} = {self.max_new_tokens}; "
                "lower it"
            )
        if generate.do_sample and (generate.num_beams or 1) > 1:
            raise ValueError("generate.do_sample and generate.num_beams exclude each other; choose sampling or beams")
        return self

    @model_validator(mode="after")
    def _rates_fit(self) -> Task:
        if (rate := self.train.learning_rate * (self.lora.loraplus_lr_ratio or 1)) > MAX_RATE:
            raise ValueError(
                f"train.learning_rate times lora.loraplus_lr_ratio is {rate:g}, more than {MAX_RATE:g}; lower one"
            )
        return self

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Task:
        if self.method == "full":
            for name in ("quantization", "loraplus_lr_ratio", "trainable_token_indices"):
                if getattr(self.lora, name):
                    raise ValueError(
                        f"lora.{name} is for method lora, and every weight is trained; remove one of the two"
                    )
        return self

    @property
    def base_dropout(self) -> float | None:
        """Dropout rate inside the base; None for its own rate."""
        given = self.train.base_dropout
        return 0.0 if given is None and self.method == "lora" else given

    @field_validator("labels")
    @classmethod
    def _distinct(cls, value: list[str] | str | None) -> list[str] | str | None:
        if not isinstance(value, list):
            return value
        if len(value) < 2:
            raise ValueError("give at least two labels, or auto")
        if len(value) > MAX_LABELS:
            raise ValueError(f"at most {MAX_LABELS} labels may be listed (got {len(value)}); leave labels out")
        seen = set[str]()
        for label in value:
            if not label or label != label.strip():
                raise ValueError(f"the label {shown(label)} is empty or has blanks around it; remove them")
            if label in seen:
                raise ValueError(f"the label {shown(label)} stands there twice; remove one")
            seen.add(label)
        return value

    @model_validator(mode="after")
    def _fits_labels(self) -> Task:
        if self.labels is not None and self.codec == "json":
            raise ValueError("labels are text, not JSON; leave out codec: json")
        if self.labels is None and self.data.oversample:
            raise ValueError("data.oversample needs labels; list them, or labels: auto")
        chosen = [
            ("train.metric_for_best_model", self.train.metric_for_best_model),
            ("evaluate.metric", self.evaluate.metric),
            *(("evaluate.metrics", name) for name in self.evaluate.metrics),
        ]
        for key, metric in chosen:
            if self.labels is None and metric in ("classification", *GIVES["classification"]):
                raise ValueError(f"{key} = {metric} needs labels; list them, or labels: auto")
        if self.labels is not None and self.generate.constrained:
            for name in ("min_new_tokens", "no_repeat_ngram_size"):
                if getattr(self.generate, name):
                    raise ValueError(f"generate.{name} may leave no label to answer with; remove it")
        return self

    @model_validator(mode="wrap")
    @classmethod
    def _has_no_faults(cls, value: Any, check: ModelWrapValidatorHandler[Task]) -> Task:
        """Raise TaskFaults. The last validator of the class, since pydantic runs the later ones outside of it."""
        try:
            return check(value)
        except ValidationError as error:
            raise TaskFaults(None, faults_of(error, value, {})) from error

    @property
    def known_labels(self) -> list[str]:
        """List of labels; empty without labels, or before `lora_ft.data.splits.with_labels` resolves `auto`."""
        return self.labels if isinstance(self.labels, list) else []

    @property
    def max_new_tokens(self) -> int:
        """Maximum answer length, in tokens."""
        return self.generate.max_new_tokens or self.lengths.target

    @property
    def metrics(self) -> list[str]:
        """Names of `evaluate.metrics`, and those added for JSON answers and labels."""
        structured = self.codec == "json" or self.evaluate.json_schema is not None
        more = [*(["structured"] if structured else []), *(["classification"] if self.labels else [])]
        return list(dict.fromkeys([*self.evaluate.metrics, *more]))

    def generation_options(self) -> dict[str, Any]:
        """Return the task's own generation options, by transformers' names, with max_new_tokens and any labels."""
        own = self.generate.model_dump(exclude_none=True)
        constrained = own.pop("constrained")
        labels = {"labels": self.known_labels if constrained else []} if self.known_labels else {}
        return own | labels | {"max_new_tokens": self.max_new_tokens}

    def scoring_options(self) -> dict[str, Any]:
        """Return the generation options for scoring, with a seed that makes scores of sampled answers reproducible."""
        return {"seed": self.evaluate.seed} | self.generation_options()

    def chat_settings(self) -> dict[str, Any] | None:
        """Return the settings for continuing a chat, or None if the rows are not from chats."""
        chat = self.data.chat
        if chat is None:
            return None
        return {"context": chat.context, "characters": chat.characters}
