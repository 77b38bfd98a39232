"""Text from a bundle: prompts in, answers out, whole batches at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from export.runtime.codec import codec_named
from export.runtime.cpu import allowed_cpus
from export.runtime.decoding import Special, strategy
from export.runtime.manifest import read_manifest
from export.runtime.model import Model
from export.runtime.options import Options
from export.runtime.prompt import Prompt
from export.runtime.session import choose_provider
from export.runtime.text import PAD, Tokenizer, by_length, pad

BATCH_SIZE = 8


@dataclass(frozen=True)
class Generated:
    """One answer.

    Attributes:
        tokens: int64 [n], with </s> where it ended.
        scores: with output_scores, the log-probability of each token [n]; for beam search the answer's score [1].
    """

    tokens: np.ndarray
    scores: np.ndarray | None = None


class Generator:
    """A loaded bundle. Options of generation go by transformers' names, see `Options`.

    Attributes:
        folder: the bundle.
        manifest: what it says of itself.
        tokenizer: its tokenizer, with its task's codec.
        prompt: its task's prompt, or None where it was exported without a task.
        source_length: most tokens of a prompt; what is longer is cut.
        chat: of a task about chats, what going on with one takes besides the prompt; else None.
        labels: of a task that has them: its answers are these and nothing else.
        defaults: its own options of generation.
        special: its start, end and padding tokens.
        model: its graphs.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int, provider: str = "cpu") -> None:
        read = lambda name: json.loads((folder / name).read_text(encoding="utf-8"))  # noqa: E731
        config, generation, task = read("config.json"), read("generation_config.json"), read("prompt.json")
        self.folder, self.manifest = folder, manifest
        self.tokenizer = Tokenizer(folder / "tokenizer.json", codec_named(task["codec"]))
        self.prompt = Prompt(task["template"]) if task["template"] is not None else None
        self.source_length: int = task["source_length"]
        self.chat: dict[str, Any] | None = task.get("chat")
        self.labels: tuple[str, ...] = tuple(task.get("labels", ()))
        self._allowed = [row[:-1] for row in self.tokenizer.encode_targets(self.labels)]
        tokens = (generation.pop(f"{name}_token_id") for name in ("decoder_start", "eos", "pad"))
        self.special = Special(*tokens)
        self.defaults: dict[str, Any] = generation
        self._vocabulary: int = config["vocab_size"]
        layers = config.get("num_decoder_layers") or config["num_layers"]
        self.model = Model(folder, (layers, config["num_heads"], config["d_kv"], self._vocabulary), threads, provider)

    @classmethod
    def load(cls, folder: str | Path, *, threads: int | None = None, provider: str = "auto") -> Generator:
        """Check a bundle's hashes and load it.

        Args:
            folder: the bundle.
            threads: for one call; by default the cores this process may use (affinity and cgroup quota).
            provider: "cpu", "cuda", or "auto": CUDA where this onnxruntime has it and that runs the bundle's precision,
                else the processor.

        Raises:
            UsageError, LoraFtError: as `export.runtime.manifest.read_manifest` and `choose_provider`.
        """
        manifest = read_manifest(Path(folder))
        chosen = choose_provider(provider, manifest["precision"])
        return cls(Path(folder), manifest, threads or allowed_cpus(), chosen)

    def generate(self, texts: Sequence[str], *, batch_size: int = BATCH_SIZE, **options: Any) -> list[str]:
        """The answers to each text, taken as it is (`prompt.fill` puts a row into the task's words).

        `num_return_sequences` answers to a text stand together.
        """
        made = self.answer(texts, batch_size=batch_size, **options)
        return self.tokenizer.decode([answer.tokens for answer in made])

    def answer(
        self, texts: Sequence[str], *, batch_size: int = BATCH_SIZE, done: Callable[[int], None] = lambda rows: None,
        **options: Any,
    ) -> list[Generated]:  # fmt: skip
        """As `generate`, the tokens and their scores; texts of like length are generated together.

        Args:
            texts: cut at `source_length` tokens.
            batch_size: texts generated together.
            done: told how many texts are finished.
            options: instead of the bundle's own; `allowed=()` lets it answer freely where it has labels.
        """
        chosen = self._options({"allowed": self._allowed} | options, self.defaults)
        copies = chosen.num_return_sequences
        rows = [np.array(row) for row in self.tokenizer.encode(texts, self.source_length)]
        answers: list[Generated] = [Generated(np.empty(0, np.int64))] * (len(rows) * copies)
        finished = 0
        for number, batch in enumerate(by_length(rows, batch_size)):
            made = self._answer_batch([rows[i] for i in batch], replace(chosen, seed=(*_flat(chosen.seed), number)))
            for i, start in zip(batch, range(0, len(made), copies), strict=True):
                answers[i * copies : (i + 1) * copies] = made[start : start + copies]
            finished += len(batch)
            done(finished)
        return answers

    def stream(self, text: str, **options: Any) -> Iterator[str]:
        """The answer to one text, bit by bit as it is made.

        Beam search knows its answer only at the end, which is then all that comes; so does the codec `json`.
        """
        (row,) = self.tokenizer.encode([text], self.source_length)
        chosen = self._options({"allowed": self._allowed} | options, self.defaults)
        source = self.model.encode(np.array([row]), np.ones((1, len(row)), np.int64))
        detokenize = self.tokenizer.stream()
        tokens, said = list[int](), ""
        for piece in strategy(chosen, stream=True)(self.model, source, [np.array(row)], chosen, self.special):
            if piece.answer == 0:
                for token in piece.tokens.tolist():
                    tokens.append(token)
                    if bit := detokenize(token):
                        said += bit
                        yield bit
        (whole,) = self.tokenizer.decode([tokens])
        if whole != said and whole.startswith(said):  # a character whose last bytes never came
            yield whole[len(said) :]

    def generate_ids(self, input_ids: np.ndarray, attention_mask: np.ndarray, **options: Any) -> np.ndarray:
        """Tokens [b, n] for int64 sources [b, s] padded on the right; after a row's </s> come padding tokens.

        Greedy and free unless the options say otherwise: of the bundle's own only `max_new_tokens` and `prompt_lookup`
        hold here, and labels are of texts.
        """
        lengths = np.asarray(attention_mask).sum(axis=1)
        rows = [row[:length] for row, length in zip(input_ids, lengths, strict=True)]
        if not rows:
            return np.empty((0, 0), np.int64)
        own = {name: value for name, value in self.defaults.items() if name in ("max_new_tokens", "prompt_lookup")}
        chosen = self._options(options, own)
        return pad([answer.tokens for answer in self._answer_batch(rows, chosen)], self.special.pad)

    def score(self, input_ids: np.ndarray, attention_mask: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Logits [b, n, vocabulary] of each of the given next tokens [b, n], all in one call."""
        source = self.model.encode(input_ids, attention_mask)
        start = np.full((len(tokens), 1), self.special.start)
        shifted = np.concatenate([start, tokens[:, :-1]], axis=1)
        return self.model.logits(source, self.model.cache(len(tokens)), shifted)

    def _options(self, given: dict[str, Any], own: dict[str, Any]) -> Options:
        options = Options.of(own | {name: value for name, value in given.items() if value is not None})
        options.check_tokens(self._vocabulary)
        return options

    def _answer_batch(self, rows: Sequence[np.ndarray], options: Options) -> list[Generated]:
        ids = pad(rows, PAD)
        source = self.model.encode(ids, (np.arange(ids.shape[1]) < [[len(row)] for row in rows]).astype(np.int64))
        pieces: list[list[Any]] = [[] for _ in range(len(rows) * options.num_return_sequences)]
        for piece in strategy(options)(self.model, source, rows, options, self.special):
            pieces[piece.answer].append(piece)
        return [
            Generated(
                np.concatenate([piece.tokens for piece in answer]),
                np.concatenate([piece.scores for piece in answer]) if options.output_scores else None,
            )
            for answer in pieces
        ]


def _flat(seed: int | tuple[int, ...]) -> tuple[int, ...]:
    return seed if isinstance(seed, tuple) else (seed,)
