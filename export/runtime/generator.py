"""Generate text from a bundle, in batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lora_ft.core.errors import LoraFtError, UsageError, sound_content
from lora_ft.core.generation_options import Options
from lora_ft.core.hardware import allowed_cpus
from lora_ft.core.special_tokens import SPECIAL, SpecialTokens
from lora_ft.core.tokenizer import Tokenizer, by_adapter, pad, ragged
from lora_ft.export.runtime.bank import Bank, Chosen, unknown
from lora_ft.export.runtime.decoding import strategy
from lora_ft.export.runtime.manifest import ADAPTERS, read_manifest
from lora_ft.export.runtime.model import Model
from lora_ft.export.runtime.session import choose_provider
from lora_ft.export.runtime.settings import Settings

BATCH_SIZE = 8
Adapters = str | Sequence[str | None] | None  # one for all rows, or one a row; None is the base


@dataclass(frozen=True)
class Generated:
    """One answer.

    Attributes:
        tokens: Tokens int64 [n], with </s> if the answer ended.
        scores: With output_scores, the log-probability of each token [n]; for beam search the answer's score [1].
        source_cut: Whether its text was longer than the source length and was cut.
    """

    tokens: np.ndarray
    scores: np.ndarray | None = None
    source_cut: bool = False


# Larger sizes in a config are damage (the largest T5 has 24 layers); lists of such lengths would fill the memory.
_LARGEST = {"num_layers": 1_000, "num_decoder_layers": 1_000}


class Generator:
    """A loaded bundle. Options of generation go by transformers' names, see `Options`.

    Where the bundle has a bank of adapters, each text has the one that is named for it, with that task's codec, length
    and options; the attributes here are those of the base.

    Attributes:
        folder: Folder of the bundle.
        manifest: Content of manifest.json.
        settings: Prompt, lengths and options of its task.
        tokenizer, prompt, source_length, chat, labels, defaults: Parts of `settings`.
        adapters: Names of its adapters.
        special: Start, end and padding tokens.
        model: Graphs of the bundle.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int, provider: str = "cpu") -> None:
        read = lambda name: json.loads((folder / name).read_text(encoding="utf-8"))  # noqa: E731
        config, generation = read("config.json"), read("generation_config.json")
        self.folder, self.manifest, self._threads, self._provider = folder, manifest, threads, provider
        _check_sizes(config, folder / "config.json")
        tokenizer = Tokenizer(folder / "tokenizer.json")
        special = SpecialTokens.of(generation, config["vocab_size"], str(folder / "generation_config.json"))
        self.special = special.closed_by(tokenizer.closing)
        if tokenizer.rows > config["vocab_size"]:
            raise LoraFtError(
                f"{folder / 'tokenizer.json'} has {tokenizer.rows:,} tokens, and the model knows "
                f"{config['vocab_size']:,}",
                "resize the base's embedding before it is trained, and export again",
            )
        own = {name: value for name, value in generation.items() if name not in SPECIAL}
        exact = manifest["precision"] == "fp32"  # in other precisions drafts change answers: 3 of 40 rows in int8
        own["prompt_lookup"] = exact and own.get("prompt_lookup", False)
        self.settings = Settings.of(read("prompt.json"), own, tokenizer)
        self.tokenizer, self.prompt = self.settings.tokenizer, self.settings.prompt
        self.source_length, self.chat = self.settings.source_length, self.settings.chat
        self.labels, self.defaults = self.settings.labels, self.settings.defaults
        self._vocabulary: int = config["vocab_size"]
        layers = config.get("num_decoder_layers") or config["num_layers"]
        shape = layers, config["num_heads"], config["d_kv"], self._vocabulary
        entries = manifest.get(ADAPTERS)
        if entries is not None and not exact:
            entries = {name: {**entry, "prompt_lookup": False} for name, entry in entries.items()}
        self.bank = Bank.open(folder, entries, provider) if entries is not None else None
        self.model = Model(folder, shape, threads, provider, self.bank.inputs if self.bank else {})

    @classmethod
    def load(cls, folder: str | Path, *, threads: int | None = None, provider: str = "auto") -> Generator:
        """Check a bundle's hashes and load it.

        Args:
            folder: Folder of the bundle.
            threads: Threads a call. Default: the cores this process may use (affinity and cgroup quota).
            provider: "cpu", "cuda", or "auto": CUDA if this onnxruntime has it and it runs the bundle's precision,
                else the processor.

        Raises:
            UsageError, LoraFtError: See `lora_ft.export.runtime.manifest.read_manifest` and `choose_provider`.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        with sound_content(folder, "export the bundle again"):
            chosen = choose_provider(provider, manifest["precision"])
            return cls(folder, manifest, threads or allowed_cpus(), chosen)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the folder and the arguments of `load`, since every process needs its own sessions."""
        return _reload, (self.folder, self._threads, self._provider)

    @property
    def adapters(self) -> list[str]:
        return self.bank.names if self.bank else []

    def of(self, adapter: str | None) -> Settings:
        """Return the settings of an adapter's task, or the base's for None.

        Raises:
            UsageError: There is no such adapter.
        """
        if adapter is None:
            return self.settings
        if self.bank is None:
            raise unknown(adapter, [])
        return self.bank.settings(adapter, self.settings.tokenizer)

    def generate(
        self, texts: str | Sequence[str], *, adapter: Adapters = None, batch_size: int = BATCH_SIZE, **options: Any
    ) -> list[str]:
        """The answers to each text, taken as it is (`prompt.fill` puts a row into the task's words).

        A single str is one text, and its answer comes in a list, too. `num_return_sequences` answers to a text stand
        together. `answer` tells which texts were cut.
        """
        texts = listed(texts)
        found = self._answers(texts, self._names(adapter, len(texts)), batch_size, lambda rows: None, options)
        return [text for settings, some in found for text in settings.tokenizer.decode([one.tokens for one in some])]

    def answer(
        self,
        texts: str | Sequence[str],
        *,
        adapter: Adapters = None,
        batch_size: int = BATCH_SIZE,
        done: Callable[[int], None] = lambda rows: None,
        **options: Any,
    ) -> list[Generated]:
        """As `generate`, the tokens and their scores; texts of like length are generated together.

        Args:
            texts: One text, or several. What is longer than `source_length` tokens is cut, and `source_cut` says so.
            adapter: of all texts, or of each; texts with unlike ones are generated together where their options agree.
            batch_size: texts generated together.
            done: told how many texts are finished.
            options: instead of the task's own; `allowed=()` lets it answer freely where it has labels.

        Raises:
            UsageError: there is no such adapter or option, or not as many adapters as texts.
        """
        texts = listed(texts)
        found = self._answers(texts, self._names(adapter, len(texts)), batch_size, done, options)
        return [answer for _, some in found for answer in some]

    def stream(self, text: str, *, adapter: str | None = None, **options: Any) -> Iterator[str]:
        """The answer to one text, bit by bit as it is made.

        Beam search knows its answer only at the end, which is then all that comes; so does the codec `json`.
        """
        settings = self.of(adapter)
        if not isinstance(text, str):
            raise UsageError(f"stream takes one text (got {type(text).__name__})", "call it for each text")
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
        if whole != said and whole.startswith(said):  # a character without its last bytes
            yield whole[len(said) :]

    def generate_ids(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, *, adapter: Adapters = None, **options: Any
    ) -> np.ndarray:
        """Tokens [b, n] for int64 sources [b, s] padded on either side; after a row's </s> come padding tokens.

        Greedy and free unless the options say otherwise: of the tasks' own only `max_new_tokens` and `prompt_lookup`
        hold here, and labels are of texts.

        Raises:
            UsageError: A mask is not 0 and 1 in one run a row, or an id is not in the vocabulary.
        """
        names = self._names(adapter, len(input_ids))
        rows = _sources(np.asarray(input_ids), np.asarray(attention_mask), self._vocabulary)
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
    ) -> np.ndarray:
        """Logits [b, n, vocabulary] of each of the given next tokens [b, n], all in one call.

        Raises:
            UsageError: An id is not in the vocabulary.
        """
        for name, ids in (("input_ids", input_ids), ("tokens", tokens)):
            if ids.size and not 0 <= ids.min() <= ids.max() < self._vocabulary:
                raise UsageError(f"{name} are not in 0..{self._vocabulary - 1}", "give ids of this vocabulary")
        chosen = self._chosen(self._names(adapter, len(tokens)))
        source = self.model.encode(input_ids, attention_mask, chosen)
        start = np.full((len(tokens), 1), self.special.start)
        shifted = np.concatenate([start, tokens[:, :-1]], axis=1)
        return self.model.logits(source, self.model.cache(len(tokens)), shifted)

    def _names(self, adapter: Adapters, rows: int) -> list[str | None]:
        """Return the adapter of each row."""
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
        self,
        texts: Sequence[str],
        names: Sequence[str | None],
        batch_size: int,
        done: Callable[[int], None],
        options: dict[str, Any],
    ) -> list[tuple[Settings, list[Generated]]]:
        """Return the answers to each text, with the settings of its adapter."""
        tasks = {name: self.of(name) for name in dict.fromkeys(names)}
        chosen = {
            name: self._options({"allowed": task.allowed} | options, task.defaults) for name, task in tasks.items()
        }
        rows, cut = [np.empty(0, np.int64)] * len(texts), [False] * len(texts)
        for name, task in tasks.items():
            own = [i for i, other in enumerate(names) if other == name]
            ids, longer = task.tokenizer.encode_sources([texts[i] for i in own], task.source_length)
            for i, row, is_cut in zip(own, ids, longer, strict=True):
                rows[i], cut[i] = np.array(row), is_cut
        answers = self._in_batches(rows, names, [chosen[name] for name in names], batch_size, done, True)
        return [
            (tasks[name], [replace(one, source_cut=True) for one in some] if is_cut else some)
            for name, some, is_cut in zip(names, answers, cut, strict=True)
        ]

    def _in_batches(
        self,
        rows: Sequence[np.ndarray],
        names: Sequence[str | None],
        options: Sequence[Options],
        batch_size: int,
        done: Callable[[int], None],
        fresh_seed: bool,
    ) -> list[list[Generated]]:
        """Return the answers to each row; with `fresh_seed`, each batch has its own seed."""
        answers: list[list[Generated]] = [[] for _ in rows]
        groups: dict[Options, list[int]] = {}
        for i, own in enumerate(options):
            # a higher limit only extends greedy answers, so rows with different limits share batches
            groups.setdefault(replace(own, max_new_tokens=1) if _cuts(own) else own, []).append(i)
        number = finished = 0
        for places in groups.values():
            limit = max(options[i].max_new_tokens for i in places)
            shared = replace(options[places[0]], max_new_tokens=limit)
            for batch in by_adapter([rows[i] for i in places], [names[i] for i in places], batch_size):
                some = [places[i] for i in batch]
                seeded = shared
                if fresh_seed and shared.seed is not None:
                    seeded = replace(shared, seed=(*_flat(shared.seed), number))
                copies, made = shared.num_return_sequences, self._answer_batch(rows, names, some, seeded)
                for i, start in zip(some, range(0, len(made), copies), strict=True):
                    answers[i] = [_cut(one, options[i].max_new_tokens) for one in made[start : start + copies]]
                number, finished = number + 1, finished + len(some)
                done(finished)
        return answers

    def _answer_batch(
        self, all_rows: Sequence[np.ndarray], names: Sequence[str | None], batch: Sequence[int], options: Options
    ) -> list[Generated]:
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


def _reload(folder: Path, threads: int, provider: str) -> Generator:
    return Generator.load(folder, threads=threads, provider=provider)


def _check_sizes(config: dict[str, Any], path: Path) -> None:
    """Raise LoraFtError if a size that the graphs need is missing or out of range."""
    for key in ("vocab_size", "num_layers", "num_heads", "d_kv", "num_decoder_layers"):
        value = config.get(key)
        if not (type(value) is int and 0 < value <= _LARGEST.get(key, 2**24)) and not (
            key == "num_decoder_layers" and value is None
        ):
            raise LoraFtError(f"{path}: {key} is not a size (got {value!r:.100})", "export the bundle again")


def listed(texts: str | Sequence[str]) -> list[str]:
    """Return texts as a list; a single str is one text.

    Raises:
        UsageError: One of them is not a text.
    """
    several = [texts] if isinstance(texts, str) else list(texts)
    for number, text in enumerate(several, 1):
        if not isinstance(text, str):
            raise UsageError(f"text {number} is not a str (got {type(text).__name__})", "give texts")
    return several


def _sources(ids: np.ndarray, mask: np.ndarray, vocabulary: int) -> list[np.ndarray]:
    """Return the tokens of each row [b, s] that its mask [b, s] shows.

    Distances within a source are relative, so padding may stand on either side; a gap would change them.
    """
    if ids.ndim != 2 or ids.shape != mask.shape:
        raise UsageError(
            f"input_ids and attention_mask are not of one shape [b, s] (got {ids.shape} and {mask.shape})",
            "pad rows to one length",
        )
    if not np.issubdtype(ids.dtype, np.integer) or not np.isin(mask, (0, 1)).all():
        raise UsageError("input_ids are not integers, or attention_mask is not 0 and 1 everywhere", "correct them")
    rows = []
    for number, (row, seen) in enumerate(zip(ids, mask.astype(bool), strict=True), 1):
        places = np.flatnonzero(seen)
        if not len(places) or places[-1] - places[0] >= len(places):
            state = "shows no token" if not len(places) else "has a gap"
            raise UsageError(f"attention_mask of row {number} {state}", "put padding before or behind the tokens")
        shown = row[places].astype(np.int64)
        if shown.min() < 0 or shown.max() >= vocabulary:
            raise UsageError(f"input_ids of row {number} are not in 0..{vocabulary - 1}", "give ids of this vocabulary")
        rows.append(shown)
    return rows


def _cuts(options: Options) -> bool:
    """Return whether a lower limit only cuts the answer."""
    return options.plain and not options.min_new_tokens


def _cut(answer: Generated, limit: int) -> Generated:
    return answer if len(answer.tokens) <= limit else replace(answer, tokens=answer.tokens[:limit])


def _flat(seed: int | tuple[int, ...]) -> tuple[int, ...]:
    return seed if isinstance(seed, tuple) else (seed,)
