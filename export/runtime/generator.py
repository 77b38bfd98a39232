"""Text from a bundle: encode once, then one decoder call per token, whole batches at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from export.errors import UsageError
from export.runtime.cpu import allowed_cpus
from export.runtime.manifest import read_manifest
from export.runtime.prompt import Prompt
from export.runtime.text import PAD, Tokenizer, by_length, pad, trim

BATCH_SIZE = 8


class Generator:
    """A loaded bundle.

    Attributes:
        manifest: what the bundle says of itself.
        tokenizer: its tokenizer.
        prompt: its task's prompt, or None where it was exported without a task.
        source_length: most tokens of a prompt; what is longer is cut.
        max_new_tokens: most tokens of an answer unless told otherwise.
        end: the token </s>.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int) -> None:
        read = lambda name: json.loads((folder / name).read_text(encoding="utf-8"))  # noqa: E731
        config, generation, task = read("config.json"), read("generation_config.json"), read("prompt.json")
        self.manifest = manifest
        self.tokenizer = Tokenizer(folder / "tokenizer.json")
        self.prompt = Prompt(task["template"]) if task["template"] is not None else None
        self.source_length: int = task["source_length"]
        self.max_new_tokens: int = generation["max_new_tokens"]
        self._start: int = generation["decoder_start_token_id"]
        self.end: int = generation["eos_token_id"]
        self._encoder, self._decoder = (_session(folder / f"{part}.onnx", threads) for part in ("encoder", "decoder"))
        self._cross = [output.name for output in self._encoder.get_outputs()]
        self._cache = [name.removeprefix("cross.") for name in self._cross]
        self._empty_cache = (int(config["num_heads"]), 0, int(config["d_kv"]))

    @classmethod
    def load(cls, folder: str | Path, *, threads: int | None = None) -> Generator:
        """Check a bundle's hashes and load it.

        Args:
            folder: the bundle.
            threads: for one call; by default the cores this process may use (affinity and cgroup quota).

        Raises:
            UsageError, LoraFtError: as `export.runtime.manifest.read_manifest`.
        """
        return cls(Path(folder), read_manifest(Path(folder)), threads or allowed_cpus())

    def generate(
        self,
        texts: Sequence[str],
        *,
        max_new_tokens: int | None = None,
        min_new_tokens: int = 0,
        batch_size: int = BATCH_SIZE,
    ) -> list[str]:
        """The greedy answer to each text, taken as it is (`prompt.fill` puts a row into the task's words)."""
        return self.tokenizer.decode(
            self.generate_tokens(
                texts, max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens, batch_size=batch_size
            )
        )

    def generate_tokens(
        self,
        texts: Sequence[str],
        *,
        max_new_tokens: int | None = None,
        min_new_tokens: int = 0,
        batch_size: int = BATCH_SIZE,
        done: Callable[[int], None] = lambda rows: None,
    ) -> list[np.ndarray]:
        """The greedy tokens of each text, up to its </s>; texts of like length are generated together.

        Args:
            texts: cut at `source_length` tokens.
            max_new_tokens: instead of the bundle's own limit.
            min_new_tokens: no </s> before so many.
            batch_size: texts generated together.
            done: told how many texts are finished.
        """
        rows = self.tokenizer.encode(texts, self.source_length)
        answers: list[np.ndarray] = [np.empty(0, np.int64)] * len(rows)
        finished = 0
        for batch in by_length(rows, batch_size):
            ids = pad([rows[i] for i in batch])
            mask = pad([[1] * len(rows[i]) for i in batch])
            out = self.generate_ids(ids, mask, max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens)
            for i, tokens in zip(batch, out, strict=True):
                answers[i] = trim(tokens, self.end)
            finished += len(batch)
            done(finished)
        return answers

    def generate_ids(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray,
        *,
        max_new_tokens: int | None = None,
        min_new_tokens: int = 0,
    ) -> np.ndarray:
        """Greedy tokens [b, n] for int64 sources [b, s]; after a row's </s> come padding tokens.

        Raises:
            UsageError: a limit is out of range.
        """
        limit = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        if len(input_ids) == 0:
            return np.empty((0, 0), np.int64)
        if limit < 1 or not 0 <= min_new_tokens <= limit:
            raise UsageError(
                f"min_new_tokens {min_new_tokens} and max_new_tokens {limit} need 0 <= min <= max, max >= 1"
            )
        fixed, cache = self._encode(input_ids, attention_mask)
        tokens = np.full((len(input_ids), 1), self._start, np.int64)
        done = np.zeros(len(input_ids), bool)
        out: list[np.ndarray] = []
        while len(out) < limit and not done.all():
            chosen, cache = self._step(tokens, fixed, cache, forbid_end=len(out) < min_new_tokens)
            tokens = np.where(done, PAD, chosen)[:, None]
            done |= tokens[:, 0] == self.end
            out.append(tokens)
        return np.concatenate(out, axis=1)

    def score(self, input_ids: np.ndarray, attention_mask: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Logits [b, n, vocabulary] of each of the given next tokens [b, n], all in one call."""
        fixed, cache = self._encode(input_ids, attention_mask)
        start = np.full((len(tokens), 1), self._start, np.int64)
        shifted = np.concatenate([start, tokens[:, :-1]], axis=1)
        return self._decode(["logits"], shifted, fixed, cache)[0].numpy()

    def _encode(self, input_ids: np.ndarray, attention_mask: np.ndarray) -> tuple[dict[str, Any], list[Any]]:
        """The decoder inputs that stay the same for these sources, and an empty cache."""
        value = ort.OrtValue.ortvalue_from_numpy
        mask = value(np.ascontiguousarray(attention_mask))
        feed = {"input_ids": value(np.ascontiguousarray(input_ids)), "attention_mask": mask}
        cross = self._encoder.run_with_ort_values(self._cross, feed)
        empty = value(np.zeros((len(input_ids), *self._empty_cache), np.float32))
        return dict(zip(self._cross, cross, strict=True), encoder_attention_mask=mask), [empty] * len(self._cache)

    def _step(
        self, tokens: np.ndarray, fixed: dict[str, Any], cache: list[Any], *, forbid_end: bool
    ) -> tuple[np.ndarray, list[Any]]:
        """The best next token of each row [b], and the longer cache."""
        wanted = "logits" if forbid_end else "next"
        best, *cache = self._decode([wanted, *(f"present.{name}" for name in self._cache)], tokens, fixed, cache)
        last = best.numpy()[:, -1]
        if forbid_end:
            last[:, self.end] = -np.inf
            last = last.argmax(-1)
        return last, cache

    def _decode(self, outputs: list[str], tokens: np.ndarray, fixed: dict[str, Any], cache: list[Any]) -> list[Any]:
        feed = fixed | {f"past.{name}": value for name, value in zip(self._cache, cache, strict=True)}
        feed["input_ids"] = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(tokens))
        return self._decoder.run_with_ort_values(outputs, feed)


def _session(path: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
