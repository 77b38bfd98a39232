"""Text from a bundle: prompts in, answers out, whole batches at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from export.errors import UsageError
from export.runtime.bank import Bank, Chosen, unknown
from export.runtime.cpu import allowed_cpus
from export.runtime.decoding import Special, strategy
from export.runtime.manifest import ADAPTERS, read_manifest
from export.runtime.model import Model
from export.runtime.options import Options
from export.runtime.session import choose_provider
from export.runtime.settings import Settings
from export.runtime.special import SPECIAL
from export.runtime.text import Tokenizer, by_adapter, pad, ragged

BATCH_SIZE = 8
Adapters = str | Sequence[str | None] | None  # of all rows, or of each; None is the base


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

    Where the bundle has a bank of adapters, each text has the one that is named for it, with that task's codec, length
    and options; the attributes here are those of the base.

    Attributes:
        folder: the bundle.
        manifest: what it says of itself.
        settings: what its task says of texts.
        tokenizer, prompt, source_length, chat, labels, defaults: of `settings`.
        adapters: names of its adapters.
        special: its start, end and padding tokens.
        model: its graphs.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int, provider: str = "cpu") -> None:
        read = lambda name: json.loads((folder / name).read_text(encoding="utf-8"))  # noqa: E731
        config, generation = read("config.json"), read("generation_config.json")
        self.folder, self.manifest = folder, manifest
        tokenizer = Tokenizer(folder / "tokenizer.json")
        special = Special.of(generation, config["vocab_size"], str(folder / "generation_config.json"))
        self.special = special.closed_by(tokenizer.closing)
        own = {name: value for name, value in generation.items() if name not in SPECIAL}
        self.settings = Settings.of(read("prompt.json"), own, tokenizer)
        self.tokenizer, self.prompt = self.settings.tokenizer, self.settings.prompt
        self.source_length, self.chat = self.settings.source_length, self.settings.chat
        self.labels, self.defaults = self.settings.labels, self.settings.defaults
        self._vocabulary: int = config["vocab_size"]
        layers = config.get("num_decoder_layers") or config["num_layers"]
        shape = layers, config["num_heads"], config["d_kv"], self._vocabulary
        self.bank = Bank.open(folder, manifest[ADAPTERS], provider) if ADAPTERS in manifest else None
        self.model = Model(folder, shape, threads, provider, self.bank.inputs if self.bank else {})

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

    @property
    def adapters(self) -> list[str]:
        return self.bank.names if self.bank else []

    def of(self, adapter: str | None) -> Settings:
        """What the task of an adapter says of texts, or with None the base's.

        Raises:
            UsageError: there is no such adapter.
        """
        if adapter is None:
            return self.settings
        if self.bank is None:
            raise unknown(adapter, [])
        return self.bank.settings(adapter, self.settings.tokenizer)

    def generate(
        self, texts: Sequence[str], *, adapter: Adapters = None, batch_size: int = BATCH_SIZE, **options: Any
    ) -> list[str]:  # fmt: skip
        """The answers to each text, taken as it is (`prompt.fill` puts a row into the task's words).

        `num_return_sequences` answers to a text stand together.
        """
        found = self._answers(texts, self._names(adapter, len(texts)), batch_size, lambda rows: None, options)
        return [text for settings, some in found for text in settings.tokenizer.decode([one.tokens for one in some])]

    def answer(
        self, texts: Sequence[str], *, adapter: Adapters = None, batch_size: int = BATCH_SIZE,
        done: Callable[[int], None] = lambda rows: None, **options: Any,
    ) -> list[Generated]:  # fmt: skip
        """As `generate`, the tokens and their scores; texts of like length are generated together.

        Args:
            texts: cut at `source_length` tokens.
            adapter: of all texts, or of each; texts with unlike ones are generated together where their options agree.
            batch_size: texts generated together.
            done: told how many texts are finished.
            options: instead of the task's own; `allowed=()` lets it answer freely where it has labels.

        Raises:
            UsageError: there is no such adapter or option, or not as many adapters as texts.
        """
        found = self._answers(texts, self._names(adapter, len(texts)), batch_size, done, options)
        return [answer for _, some in found for answer in some]

    def stream(self, text: str, *, adapter: str | None = None, **options: Any) -> Iterator[str]:
        """The answer to one text, bit by bit as it is made.

        Beam search knows its answer only at the end, which is then all that comes; so does the codec `json`.
        """
        settings = self.of(adapter)
        (row,) = settings.tokenizer.encode([text], settings.source_length)
        chosen = self._options({"allowed": settings.allowed} | options, settings.defaults)
        source = self.model.encode(np.array([row]), np.ones((1, len(row)), np.int64), self._chosen([adapter]))
        detokenize = settings.tokenizer.stream()
        tokens, said = list[int](), ""
        for piece in strategy(chosen, stream=True)(self.model, source, [np.array(row)], chosen, self.special):
            if piece.answer == 0:
                for token in piece.tokens.tolist():
                    tokens.append(token)
                    if bit := detokenize(token):
                        said += bit
                        yield bit
        (whole,) = settings.tokenizer.decode([tokens])
        if whole != said and whole.startswith(said):  # a character whose last bytes never came
            yield whole[len(said) :]

    def generate_ids(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, *, adapter: Adapters = None, **options: Any
    ) -> np.ndarray:  # fmt: skip
        """Tokens [b, n] for int64 sources [b, s] padded on the right; after a row's </s> come padding tokens.

        Greedy and free unless the options say otherwise: of the tasks' own only `max_new_tokens` and `prompt_lookup`
        hold here, and labels are of texts.
        """
        names = self._names(adapter, len(input_ids))
        lengths = np.asarray(attention_mask).sum(axis=1)
        rows = [row[:length] for row, length in zip(input_ids, lengths, strict=True)]
        if not rows:
            return np.empty((0, 0), np.int64)
        own = {}
        for name in dict.fromkeys(names):
            defaults = self.of(name).defaults
            kept = {key: value for key, value in defaults.items() if key in ("max_new_tokens", "prompt_lookup")}
            own[name] = self._options(options, kept)
        answers = self._in_batches(rows, names, [own[name] for name in names], len(rows), lambda rows: None, False)
        return pad([answer.tokens for some in answers for answer in some], self.special.pad)

    def score(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, tokens: np.ndarray, *, adapter: Adapters = None
    ) -> np.ndarray:  # fmt: skip
        """Logits [b, n, vocabulary] of each of the given next tokens [b, n], all in one call."""
        chosen = self._chosen(self._names(adapter, len(tokens)))
        source = self.model.encode(input_ids, attention_mask, chosen)
        start = np.full((len(tokens), 1), self.special.start)
        shifted = np.concatenate([start, tokens[:, :-1]], axis=1)
        return self.model.logits(source, self.model.cache(len(tokens)), shifted)

    def _names(self, adapter: Adapters, rows: int) -> list[str | None]:
        """The adapter of each row."""
        names = [adapter] * rows if adapter is None or isinstance(adapter, str) else list(adapter)
        if len(names) != rows:
            raise UsageError(f"{len(names)} adapters were named for {rows} texts", "name one, or one for each")
        for name in set(names) - set(self.adapters) - {None}:
            raise unknown(str(name), self.adapters)
        return names

    def _chosen(self, names: Sequence[str | None]) -> Chosen | None:
        return self.bank.choose(names) if self.bank else None

    def _options(self, given: dict[str, Any], own: dict[str, Any]) -> Options:
        options = Options.of(own | {name: value for name, value in given.items() if value is not None})
        options.check_tokens(self._vocabulary)
        return options

    def _answers(
        self, texts: Sequence[str], names: Sequence[str | None], batch_size: int, done: Callable[[int], None],
        options: dict[str, Any],
    ) -> list[tuple[Settings, list[Generated]]]:  # fmt: skip
        """The answers to each text, with the settings of its adapter."""
        tasks = {name: self.of(name) for name in dict.fromkeys(names)}
        chosen = {name: self._options({"allowed": task.allowed} | options, task.defaults)
                  for name, task in tasks.items()}  # fmt: skip
        rows = [np.empty(0, np.int64)] * len(texts)
        for name, task in tasks.items():
            own = [i for i, other in enumerate(names) if other == name]
            for i, row in zip(own, task.tokenizer.encode([texts[i] for i in own], task.source_length), strict=True):
                rows[i] = np.array(row)
        answers = self._in_batches(rows, names, [chosen[name] for name in names], batch_size, done, True)
        return [(tasks[name], some) for name, some in zip(names, answers, strict=True)]

    def _in_batches(
        self, rows: Sequence[np.ndarray], names: Sequence[str | None], options: Sequence[Options], batch_size: int,
        done: Callable[[int], None], anew: bool,
    ) -> list[list[Generated]]:  # fmt: skip
        """The answers to each row; with `anew`, each batch draws by a seed of its own."""
        answers: list[list[Generated]] = [[] for _ in rows]
        groups: dict[Options, list[int]] = {}
        for i, own in enumerate(options):
            # what greedy search finds within a limit it also finds within a higher one, so such rows go together
            groups.setdefault(replace(own, max_new_tokens=1) if _cuts(own) else own, []).append(i)
        number = finished = 0
        for places in groups.values():
            limit = max(options[i].max_new_tokens for i in places)
            shared = replace(options[places[0]], max_new_tokens=limit)
            for batch in by_adapter([rows[i] for i in places], [names[i] for i in places], batch_size):
                some = [places[i] for i in batch]
                seeded = shared
                if anew and shared.seed is not None:
                    seeded = replace(shared, seed=(*_flat(shared.seed), number))
                copies, made = shared.num_return_sequences, self._answer_batch(rows, names, some, seeded)
                for i, start in zip(some, range(0, len(made), copies), strict=True):
                    answers[i] = [_cut(one, options[i].max_new_tokens) for one in made[start : start + copies]]
                number, finished = number + 1, finished + len(some)
                done(finished)
        return answers

    def _answer_batch(
        self, all_rows: Sequence[np.ndarray], names: Sequence[str | None], batch: Sequence[int], options: Options
    ) -> list[Generated]:  # fmt: skip
        rows = [all_rows[i] for i in batch]
        ids, mask = ragged(rows, self.special.pad)
        source = self.model.encode(ids, mask, self._chosen([names[i] for i in batch]))
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


def _cuts(options: Options) -> bool:
    """Whether a lower limit only cuts the answer."""
    return options.plain and not options.min_new_tokens


def _cut(answer: Generated, limit: int) -> Generated:
    return answer if len(answer.tokens) <= limit else Generated(answer.tokens[:limit], answer.scores)


def _flat(seed: int | tuple[int, ...]) -> tuple[int, ...]:
    return seed if isinstance(seed, tuple) else (seed,)
