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
    """Return the field's bounds of an option of generation, the same as everywhere else."""
    least, most = BOUNDS[option]
    return Field(ge=least, le=most)


def known_score(value: str) -> str:
    """The name, if it is one of a score; a fault of a task where it is not."""
    if value not in SCORES:
        raise ValueError(f"unknown score; use one of {', '.join(SCORES)}")
    return value


class Lengths(Section):
    """Limits in tokens, </s> included."""

    source: Annotated[Whole, Field(ge=8, le=100_000)] = 512
    """Prompts are cut here."""
    target: Annotated[Whole, Field(ge=2, le=100_000)] = 128
    """Longest target in training."""
    long_targets: Literal["error", "cut", "drop"] = "error"
    """What happens to a training or validation row whose target is longer."""


class Train(Section):
    """The training run, by the names of transformers' Seq2SeqTrainingArguments."""

    num_train_epochs: Annotated[Real, Field(gt=0, le=100_000)] = 3.0
    max_steps: Positive | None = None
    """Stops there whatever the epochs."""
    per_device_train_batch_size: Rows = 8
    per_device_eval_batch_size: Rows = 16
    gradient_accumulation_steps: Rows = 1
    # AdamW multiplies it by 10 in the first step, and float32 ends at 3.4e38.
    learning_rate: Annotated[Real, Field(gt=0, le=MAX_RATE)] = 1e-3
    lr_scheduler_type: str = "linear"
    warmup_ratio: Share = 0.05
    weight_decay: Annotated[Real, Field(ge=0, le=100)] = 0.0
    max_grad_norm: Annotated[Real, Field(ge=0, le=1e9)] = 1.0
    label_smoothing_factor: Annotated[Real, Field(ge=0, le=0.9)] = 0.0
    """Share of each target token's probability that is spread over the vocabulary; of training, not of eval_loss."""
    optim: str = "adamw_torch"
    seed: Seed = 42
    precision: Literal["auto", "bf16", "fp32", "fp16"] = "auto"
    """auto: bf16 where the GPU or CPU computes in it, else fp32."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile with free shapes: minutes of compiling, then faster steps. auto weighs one against the other."""
    base_dropout: Dropout | None = None
    """Dropout inside the base. A frozen one has 0 unless given, which is a quarter faster on CPUs, and DialogSum's
    ROUGE is no worse for it; with method full the base keeps its own rate."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third slower."""
    eval_every: Positive | Literal["epoch"] = "epoch"
    """Steps between evaluations on the validation rows; each is also a point to resume from."""
    metric_for_best_model: str = "rouge1"
    """Chooses the checkpoint that becomes the adapter: loss, or a score as in evaluate.metric. With loss no text is
    generated while training."""
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
    """How answers are generated, by the names of transformers' GenerationConfig.

    A key that is left out is as the base's generation_config.json says, else the default named here. Options of a
    command take precedence over these.
    """

    max_new_tokens: Annotated[Whole, within("max_new_tokens")] | None = None
    """By default lengths.target (transformers alone would stop after 20 tokens)."""
    min_new_tokens: Annotated[Whole, within("min_new_tokens")] | None = None
    """Default: 0."""
    num_beams: Annotated[Whole, within("num_beams")] | None = None
    """Default: 1."""
    length_penalty: Annotated[Real, within("length_penalty")] | None = None
    """Default: 1.0."""
    do_sample: bool | None = None
    """Default: false."""
    temperature: Annotated[Real, within("temperature")] | None = None
    """Default: 1.0."""
    top_k: Annotated[Whole, within("top_k")] | None = None
    """Default: 50."""
    top_p: Annotated[Real, within("top_p")] | None = None
    """Default: 1.0."""
    no_repeat_ngram_size: Annotated[Whole, within("no_repeat_ngram_size")] | None = None
    """Default: 0."""
    repetition_penalty: Annotated[Real, within("repetition_penalty")] | None = None
    """Default: 1.0."""
    seed: Seed | None = None
    """Seed of sampling. Without one, every call draws another, and says which; scores are of `evaluate.seed`."""
    constrained: bool = True
    """Where the task has labels, answers are labels and nothing else."""


class Evaluate(Section):
    """How answers are scored."""

    metrics: Annotated[list[str], Field(min_length=1)] = ["rouge"]
    """What `lora-ft evaluate` gives: rouge, rougeSU4, bleu, chrf, exact_match, f1, meteor, bertscore.
    Two come by themselves: structured (valid, same_value) where answers are JSON, and classification (accuracy,
    macro_f1) where the task has labels, without which it is a fault."""
    metric: str = "rouge1"
    """The score that an ONNX precision must not lose: rouge1, rouge2, rougeL, rougeLsum, or what another of the
    metrics gives: rougeSU4, bleu, chrf, exact_match, f1, meteor, bertscore; valid or same_value where answers are JSON,
    accuracy or macro_f1 with labels."""
    language: Annotated[str, Field(pattern=r"^[a-z]{2,3}$")] = "en"
    """ISO 639 code of what the answers are written in."""
    rouge_tokenizer: Literal["auto", "ascii", "unicode"] = "auto"
    """What ROUGE takes for words. ascii: rouge-score's own, which drops every letter but a to z. unicode: letters of
    any script, each character of scripts without spaces. auto: ascii for English, else unicode."""
    use_stemmer: bool = True
    """Porter's stemmer before ROUGE compares words, as in most published English ROUGE; it knows English only."""
    stop_words: bool = False
    """Leave out the commonest English words before ROUGE compares."""
    bertscore_model: str | None = None
    """Folder or hub name of the encoder that bertscore compares with."""
    json_schema: str | None = None
    """What answers must be valid JSON by: `fhir-r4`, or a JSON schema file. Needs the extra `structured`."""
    bootstrap: Annotated[Whole, Field(ge=100, le=100_000)] = 1000
    """Resamples behind each interval."""
    seed: Seed = 0
    """Seed of the resamples, and of sampled answers that are scored."""

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
    """What the model card says that nothing else knows, by the hub's names; see `lora_ft.publishing.model_card`."""

    license: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")] | None = None
    """Of the adapter, as the hub abbreviates it, e.g. apache-2.0 or cc-by-4.0."""
    language: list[Annotated[str, Field(pattern=r"^([a-z]{2,3}|code|multilingual)$")]] = []
    """Of the rows: ISO 639 codes."""
    datasets: list[Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)?$")]] = []
    """Names on the hub of what local rows were taken from; data.hub is named anyway."""
    pipeline_tag: Literal[
        "text-generation", "summarization", "translation", "question-answering", "text-classification"
    ] = "text-generation"
    """The hub has no text2text-generation any more (huggingface.js#1590)."""
    tags: list[str] = []
    limits: str = ""
    """What the model should not be used for, or is known to do badly."""
    watts: Annotated[Real, Field(gt=0, le=1e9)] | None = None
    """What the machine draws while it trains, where no energy counter can be read."""
    grams_per_kwh: Annotated[Real, Field(ge=0, le=1e6)] | None = None
    """CO2 of the electricity; without it no carbon is claimed."""
    location: str | None = None
    """Where that electricity is from, e.g. "Quebec, Canada"."""


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
    """Names the run's folder: letters, digits, . _ -"""
    base: str = "google/flan-t5-small"
    """Hub name, path of a checkpoint, or `offline`."""
    method: Literal["lora", "full"] = "lora"
    """lora: an adapter on the frozen base. full: every weight, which wants a learning rate of 1e-4 to 3e-4."""
    data: Data
    prompt: str
    """What the model is asked, with {column} where a row's text goes."""
    codec: Literal["none", "text", "json"] = "none"
    """What prompts and targets go through before T5's tokenizer, which has no newline, tab, indentation, brace …

    text: any text, in marks that it has. json: targets are JSON values (text, or objects and lists in jsonl rows), in
    a form with few quotes and no braces; prompts as with text. Answers come back in their own characters. lengths
    count tokens of the form.
    """
    labels: list[str] | Literal["auto"] | None = None
    """The only texts that targets may be, for classification; auto: the distinct targets of the training rows."""
    lengths: Lengths = Lengths()
    lora: Lora = Field(default_factory=lambda: Lora.model_validate({}))
    train: Train = Train()
    generate: Generate = Generate()
    evaluate: Evaluate = Evaluate()
    card: Card = Card()

    @model_validator(mode="wrap")
    @classmethod
    def _has_no_faults(cls, value: Any, check: ModelWrapValidatorHandler[Task]) -> Task:
        try:
            return check(value)
        except ValidationError as error:
            raise TaskFaults(None, faults_of(error, value, {})) from error

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
        """Dropout inside the base; None: its own rate."""
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

    @property
    def known_labels(self) -> list[str]:
        """The labels, or none: `lora_ft.data.splits.with_labels` finds those of `auto`."""
        return self.labels if isinstance(self.labels, list) else []

    @property
    def max_new_tokens(self) -> int:
        """Most tokens of an answer."""
        return self.generate.max_new_tokens or self.lengths.target

    @property
    def metrics(self) -> list[str]:
        """Of `evaluate.metrics`, and what JSON answers and labels are measured by."""
        structured = self.codec == "json" or self.evaluate.json_schema is not None
        more = [*(["structured"] if structured else []), *(["classification"] if self.labels else [])]
        return list(dict.fromkeys([*self.evaluate.metrics, *more]))

    def generation_options(self) -> dict[str, Any]:
        """Return what the task itself sets, by transformers' names; max_new_tokens, and labels where there are some."""
        own = self.generate.model_dump(exclude_none=True)
        constrained = own.pop("constrained")
        labels = {"labels": self.known_labels if constrained else []} if self.known_labels else {}
        return own | labels | {"max_new_tokens": self.max_new_tokens}

    def scoring_options(self) -> dict[str, Any]:
        """Return the options of answers that are scored: where they are sampled, a score can be had again."""
        return {"seed": self.evaluate.seed} | self.generation_options()

    def chat_settings(self) -> dict[str, Any] | None:
        """What going on with a chat takes besides the prompt, or None where the rows are no chats."""
        chat = self.data.chat
        if chat is None:
            return None
        return {"context": chat.context, "characters": chat.characters}
