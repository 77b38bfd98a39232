"""Section `evaluate` of a task: scoring of answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from lora_ft.tasks.fields import Section, Seed, Whole
from lora_ft.tasks.judge import Judge
from lora_ft.tasks.metric_names import SCORES_OF, check_score

FHIR_R4 = "fhir-r4"
"""Name of the JSON schema that ships with the project."""


class Evaluate(Section):
    """Scoring of answers."""

    metrics: Annotated[list[str], Field(min_length=1)] = ["rouge"]
    """Metrics that `lora-ft evaluate` computes: rouge, rougeSU4, bleu, chrf, exact_match, f1, meteor, bertscore. Those
    that compare answers with their sources instead of references: extractiveness, entity_precision, nli, judge.
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
    nli_model: str | None = None
    """Folder or hub name of the metric nli's classifier, whose config names a label for entailment."""
    nli_window: Annotated[Whole, Field(ge=1, le=1000)] = 1
    """Source sentences that may entail a sentence of the answer together. 3 or more suit dialogues."""
    judge: Judge | None = None
    """Model that grades answers, for the metric judge."""
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
            if name not in SCORES_OF:
                raise ValueError(f"unknown metric {name}; use one of {', '.join(SCORES_OF)}")
        return list(dict.fromkeys(value))

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str) -> str:
        return check_score(value)

    @model_validator(mode="after")
    def _can_be_scored(self) -> Evaluate:
        if self.stop_words and self.language != "en":
            raise ValueError(
                f"stop_words is for English only (got language {self.language}); set it to false, or language to en"
            )
        if "bertscore" in (*self.metrics, self.metric) and self.bertscore_model is None:
            raise ValueError("bertscore requires bertscore_model; set the folder or hub name of an encoder")
        if "nli" in self.metrics and self.nli_model is None:
            raise ValueError("nli requires nli_model; set the folder or hub name of a classifier trained for NLI")
        if "judge" in self.metrics and self.judge is None:
            raise ValueError("the metric judge requires the key judge; set its url, model and prompt")
        return self
