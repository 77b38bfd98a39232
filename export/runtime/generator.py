"""Generate text from a bundle, in batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lora_ft.core.constraint import constrained
from lora_ft.core.errors import LoraFtError, UsageError, sound_content
from lora_ft.core.generation_options import Options, overridden
from lora_ft.core.hardware import allowed_cpus
from lora_ft.core.special_tokens import SPECIAL, SpecialTokens
from lora_ft.core.tokenizer import Tokenizer, by_adapter, pad, ragged
from lora_ft.core.trie import Trie
from lora_ft.export.precision import parse
from lora_ft.export.runtime.bank import Bank, RowAdapters, unknown_adapter
from lora_ft.export.runtime.decoding import decode, greedy, strategy
from lora_ft.export.runtime.decoding.draft_length import controller_of
from lora_ft.export.runtime.device_loop import DeviceLoop
from lora_ft.export.runtime.generated import Generated
from lora_ft.export.runtime.graph_files import PublishedFiles
from lora_ft.export.runtime.inputs import Prompted, check_sizes, flat_seed, listed, unmasked_rows
from lora_ft.export.runtime.kernel_choice import choose_kernels
from lora_ft.export.runtime.manifest import ADAPTERS, DRAFTS, LABELS, PHRASES, read_adapters, read_manifest
from lora_ft.export.runtime.model import Model
from lora_ft.export.runtime.phrases import VERSION as PHRASES_VERSION
from lora_ft.export.runtime.phrases import Phrases
from lora_ft.export.runtime.session import choose_provider
from lora_ft.export.runtime.settings import Settings

BATCH_SIZE = 8
Adapters = str | Sequence[str | None] | None  # one for all rows, or one per row; None is the base


class Generator:
    """A loaded bundle. Generation options have the names that transformers uses; see `Options`.

    In a bank, each text may name an adapter, and is then processed with the codec, source length and options of that
    adapter's task. The attributes of this class describe the base.

    Attributes:
        folder: Folder of the bundle.
        manifest: Content of manifest.json.
        settings: Prompt, lengths and options of the base's task.
        tokenizer, prompt, source_length, chat, labels, defaults: Parts of `settings`.
        adapters: Names of the adapters.
        special: Start, end and padding tokens.
        model: Graphs of the bundle.
        step_engine: What takes the decoder's steps: the kernel, or the graphs and why.
        encoder_engine: What encodes sources: the kernel, or the graph and why.
        device_loop: Greedy search on the device, if it was asked for.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], threads: int, provider: str = "cpu") -> None:
        config, generation, task = (
            json.loads((folder / name).read_text(encoding="utf-8"))
            for name in ("config.json", "generation_config.json", "prompt.json")
        )
        self.folder, self.manifest, self._threads, self._provider = folder, manifest, threads, provider
        check_sizes(config, folder / "config.json")
        tokenizer = Tokenizer(folder / "tokenizer.json")
        special = SpecialTokens.of(generation, config["vocab_size"], str(folder / "generation_config.json"))
        self.special = special.closed_by(tokenizer.closing)
        if tokenizer.rows > config["vocab_size"]:
            raise LoraFtError(
                f"{folder / 'tokenizer.json'} has more tokens than the model (got {tokenizer.rows:,}, model: "
                f"{config['vocab_size']:,})",
                "resize the base's embedding before training, and export again",
            )
        defaults = {name: value for name, value in generation.items() if name not in SPECIAL}
        is_lossless = provider in parse(manifest["precision"]).independent
        defaults["prompt_lookup"] = is_lossless and defaults.get("prompt_lookup", False)
        self.settings = Settings.of(task, defaults, tokenizer)
        self.tokenizer, self.prompt = self.settings.tokenizer, self.settings.prompt
        self.source_length, self.chat = self.settings.source_length, self.settings.chat
        self.labels, self.defaults = self.settings.labels, self.settings.defaults
        self._vocabulary: int = config["vocab_size"]
        layers = config.get("num_decoder_layers") or config["num_layers"]
        shape = layers, config["num_heads"], config["d_kv"], self._vocabulary
        entries = manifest.get(ADAPTERS)
        self.bank = Bank.open(folder, entries, provider) if entries is not None else None
        with_labels = provider == "cpu" and (folder / LABELS).is_file()
        label_tokens = Trie(self.settings.allowed, self.special.end).tokens if with_labels else ()
        files, inputs = PublishedFiles(folder, manifest.get("files")), self.bank.inputs if self.bank else {}
        self.model = Model(files, shape, threads, provider, inputs, label_tokens)
        self.step_engine, self.encoder_engine = "graphs", "graph"
        self.device_loop: DeviceLoop | None = None
        if manifest.get(DRAFTS, {}).get("version") == PHRASES_VERSION:
            controller_of(self.model).phrases = Phrases.read(folder / PHRASES, self._vocabulary)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        threads: int | None = None,
        provider: str = "auto",
        kernel: bool = True,
        device_steps: int = 0,
    ) -> Generator:
        """Check a bundle's hashes and load it.

        Args:
            folder: Folder of the bundle.
            threads: Threads per call. Default: the cores available to this process (affinity and cgroup quota).
            provider: "cpu", "cuda" or "auto". "auto" is CUDA if it is available and supports the bundle's precision,
                else the processor.
            kernel: Use the package lora-ft-kernels where it is installed and fits the bundle.
            device_steps: For GPUs, not measured on one yet: steps of greedy search between two looks at the tokens, 1
                to 8. Default: 0, each step returns its tokens.

        Raises:
            UsageError, LoraFtError: See `lora_ft.export.runtime.manifest.read_manifest` and `choose_provider`.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        with sound_content(folder, "export the bundle again"):
            name = choose_provider(provider, manifest["precision"])
            generator = cls(folder.absolute(), manifest, threads or allowed_cpus(), name)
            model = generator.model
            if kernel:
                chosen = choose_kernels(model, folder, manifest, generator.special, generator.bank)
                generator.step_engine, generator.encoder_engine = chosen
            if device_steps:
                generator.device_loop = DeviceLoop(folder, model, device_steps)
                generator.step_engine = str(generator.device_loop)
            return generator

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the folder and the arguments of `load`, since every process needs its own sessions."""
        steps = self.device_loop.steps if self.device_loop else 0
        kernel = bool(self.model.kernel or self.model.encoder)
        return _reload, (self.folder, self._threads, self._provider, kernel, steps)

    def reload(self) -> None:
        """Read the adapters of a bank again. Answers that are under way keep the adapter that they began with.

        Raises:
            UsageError: The bundle is not a bank, or its other files have changed.
            LoraFtError: The manifest or a new adapter is damaged. The adapters stay as before.
        """
        if self.bank is None:
            raise UsageError(f"{self.folder} is not a bank, so it has no adapters to read again", "load it again")
        manifest = read_adapters(self.folder, self.manifest)
        self.bank, self.manifest = self.bank.renewed(manifest[ADAPTERS] or {}), manifest

    @property
    def adapters(self) -> list[str]:
        return self.bank.names if self.bank else []

    def of(self, adapter: str | None) -> Settings:
        """Return the settings of an adapter's task, or the base's for None.

        Raises:
            UsageError: The bundle has no such adapter.
        """
        if adapter is None:
            return self.settings
        if self.bank is None:
            raise unknown_adapter(adapter, [])
        return self.bank.settings(adapter, self.settings.tokenizer)

    def generate(
        self, texts: str | Sequence[str], *, adapter: Adapters = None, batch_size: int = BATCH_SIZE, **options: Any
    ) -> list[str]:
        """Return the answers to each text. Texts are used unchanged; `prompt.fill` applies the template to a row.

        A single str is one text, and its answer is returned in a list too. With `num_return_sequences`, the answers to
        a text are consecutive. `answer` also reports which texts were truncated.
        """
        texts = listed(texts)
        answers = self._answers(texts, self._names(adapter, len(texts)), batch_size, lambda rows: None, options)
        return [
            text
            for settings, group in answers
            for text in settings.tokenizer.decode([answer.tokens for answer in group])
        ]

    def answer(
        self,
        texts: str | Sequence[str],
        *,
        adapter: Adapters = None,
        batch_size: int = BATCH_SIZE,
        on_progress: Callable[[int], None] = lambda rows: None,
        **options: Any,
    ) -> list[Generated]:
        """Return the same answers as `generate`, as tokens and scores. Texts of similar length share a batch.

        Args:
            texts: One text, or several. Texts longer than `source_length` tokens are truncated, and their answers have
                `source_cut` set.
            adapter: Adapter of all texts, or of each. Texts with different adapters share a batch if their options
                agree.
            batch_size: Maximum number of texts per batch.
            on_progress: Called with the number of finished texts after each batch.
            options: Options that override those of the task. `allowed=()` and `json_schema=False` lift restrictions.

        Raises:
            UsageError: An adapter or option does not exist, or the number of adapters differs from that of texts.
        """
        texts = listed(texts)
        answers = self._answers(texts, self._names(adapter, len(texts)), batch_size, on_progress, options)
        return [answer for _, group in answers for answer in group]

    def stream(self, text: str, *, adapter: str | None = None, **options: Any) -> Iterator[str]:
        """Yield the answer to one text in parts, as soon as they are generated.

        With beam search or the codec `json`, the answer is known only at the end and is yielded as a whole.
        """
        prompted = self.prepare(text, options, adapter)
        source = self.model.encode(prompted.ids[None], np.ones((1, len(prompted.ids)), np.int64), prompted.adapters)
        tokenizer = prompted.settings.tokenizer
        detokenize = tokenizer.stream()
        tokens, streamed = list[int](), ""
        for piece in decode(self.model, source, [prompted.ids], prompted.options, self.special, stream=True):
            if piece.answer == 0:
                for token in piece.tokens.tolist():
                    tokens.append(token)
                    if bit := detokenize(token):
                        streamed += bit
                        yield bit
        (whole,) = tokenizer.decode([tokens])
        if whole != streamed and whole.startswith(streamed):  # the answer ends inside a character
            yield whole[len(streamed) :]

    def prepare(self, text: str, options: Mapping[str, Any], adapter: str | None = None) -> Prompted:
        """Return a text and its options, ready to be decoded as `generate` decodes it alone.

        Raises:
            UsageError: The text is not a str, or an adapter or option does not exist.
        """
        if not isinstance(text, str):
            raise UsageError(f"the prompt is not one text (got {type(text).__name__})", "call it once per text")
        bank = self.bank  # `reload` may replace it at any time
        if adapter is not None and bank is None:
            raise unknown_adapter(adapter, [])
        adapters = bank.select([adapter]) if bank else None
        settings = self.settings if adapter is None or bank is None else bank.settings(adapter, self.tokenizer)
        merged = self._options({"allowed": settings.allowed} | dict(options), settings.defaults, settings.tokenizer)
        if merged.seed is not None:
            merged = replace(merged, seed=(*flat_seed(merged.seed), 0))  # the seed of the first batch
        (ids,), (cut,) = settings.tokenizer.encode_sources([text], settings.source_length)
        return Prompted(np.array(ids), merged, settings, adapters, cut)

    def generate_ids(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, *, adapter: Adapters = None, **options: Any
    ) -> np.ndarray:
        """Return answers as tokens [b, n], padded after </s>, for int64 sources [b, s] padded on either side.

        Decoding is greedy and unrestricted unless `options` change it. Of the task's options only `max_new_tokens` and
        `prompt_lookup` apply, and labels do not.

        Raises:
            UsageError: A row of the mask is not a single run of ones, or a token id is outside the vocabulary.
        """
        names = self._names(adapter, len(input_ids))
        rows = unmasked_rows(np.asarray(input_ids), np.asarray(attention_mask), self._vocabulary)
        if not rows:
            return np.empty((0, 0), np.int64)
        options_of = {}
        for name in dict.fromkeys(names):
            defaults = self.of(name).defaults
            shared = {key: value for key, value in defaults.items() if key in ("max_new_tokens", "prompt_lookup")}
            options_of[name] = self._options(options, shared, self.of(name).tokenizer)
        answers = self._in_batches(
            rows, names, [options_of[name] for name in names], len(rows), lambda rows: None, False
        )
        return pad([answer.tokens for some in answers for answer in some], self.special.pad)

    def score(
        self, input_ids: np.ndarray, attention_mask: np.ndarray, tokens: np.ndarray, *, adapter: Adapters = None
    ) -> np.ndarray:
        """Return the logits [b, n, vocabulary] at each target token [b, n], in a single decoder call.

        Raises:
            UsageError: A token id is outside the vocabulary.
        """
        for name, ids in (("input_ids", input_ids), ("tokens", tokens)):
            if ids.size and not 0 <= ids.min() <= ids.max() < self._vocabulary:
                raise UsageError(f"{name} are not in 0..{self._vocabulary - 1}", "use token ids of this vocabulary")
        adapters = self._chosen(self._names(adapter, len(tokens)))
        source = self.model.encode(input_ids, attention_mask, adapters)
        start = np.full((len(tokens), 1), self.special.start)
        shifted = np.concatenate([start, tokens[:, :-1]], axis=1)
        return self.model.logits(source, self.model.cache(len(tokens)), shifted)

    def _names(self, adapter: Adapters, rows: int) -> list[str | None]:
        """Return the adapter of each row."""
        names = [adapter] * rows if adapter is None or isinstance(adapter, str) else list(adapter)
        if len(names) != rows:
            raise UsageError(
                f"the number of adapters is not the number of texts (got {len(names)} for {rows})",
                "name one adapter, or one per text",
            )
        for name in set(names) - set(self.adapters) - {None}:
            raise unknown_adapter(str(name), self.adapters)
        return names

    def _chosen(self, names: Sequence[str | None]) -> RowAdapters | None:
        return self.bank.select(names) if self.bank else None

    def _options(self, options: dict[str, Any], defaults: dict[str, Any], tokenizer: Tokenizer) -> Options:
        checked = Options.of(constrained(overridden(defaults, options), tokenizer))
        checked.check_tokens(self._vocabulary)
        return checked

    def _answers(
        self,
        texts: Sequence[str],
        names: Sequence[str | None],
        batch_size: int,
        on_progress: Callable[[int], None],
        options: dict[str, Any],
    ) -> list[tuple[Settings, list[Generated]]]:
        """Return the answers to each text, with the settings of its adapter."""
        tasks = {name: self.of(name) for name in dict.fromkeys(names)}
        options_of = {
            name: self._options({"allowed": task.allowed} | options, task.defaults, task.tokenizer)
            for name, task in tasks.items()
        }
        rows, cut = [np.empty(0, np.int64)] * len(texts), [False] * len(texts)
        for name, task in tasks.items():
            places = [i for i, adapter in enumerate(names) if adapter == name]
            ids, longer = task.tokenizer.encode_sources([texts[i] for i in places], task.source_length)
            for i, row, is_cut in zip(places, ids, longer, strict=True):
                rows[i], cut[i] = np.array(row), is_cut
        answers = self._in_batches(rows, names, [options_of[name] for name in names], batch_size, on_progress, True)
        return [
            (tasks[name], [replace(generated, source_cut=True) for generated in group] if is_cut else group)
            for name, group, is_cut in zip(names, answers, cut, strict=True)
        ]

    def _in_batches(
        self,
        rows: Sequence[np.ndarray],
        names: Sequence[str | None],
        options: Sequence[Options],
        batch_size: int,
        on_progress: Callable[[int], None],
        fresh_seed: bool,
    ) -> list[list[Generated]]:
        """Return the answers to each row. With `fresh_seed`, each batch has its own seed."""
        answers: list[list[Generated]] = [[] for _ in rows]
        groups: dict[Options, list[int]] = {}
        for i, row_options in enumerate(options):
            # a higher limit only extends greedy answers, so rows with different limits can share a batch
            groups.setdefault(replace(row_options, max_new_tokens=1) if _cuts(row_options) else row_options, []).append(
                i
            )
        number = finished = 0
        for places in groups.values():
            limit = max(options[i].max_new_tokens for i in places)
            shared = replace(options[places[0]], max_new_tokens=limit)
            for batch in by_adapter([rows[i] for i in places], [names[i] for i in places], batch_size):
                batch_rows = [places[i] for i in batch]
                seeded = shared
                if fresh_seed and shared.seed is not None:
                    seeded = replace(shared, seed=(*flat_seed(shared.seed), number))
                copies, generated = shared.num_return_sequences, self._answer_batch(rows, names, batch_rows, seeded)
                for i, start in zip(batch_rows, range(0, len(generated), copies), strict=True):
                    answers[i] = [answer.cut(options[i].max_new_tokens) for answer in generated[start : start + copies]]
                number, finished = number + 1, finished + len(batch_rows)
                on_progress(finished)
        return answers

    def _answer_batch(
        self, all_rows: Sequence[np.ndarray], names: Sequence[str | None], batch: Sequence[int], options: Options
    ) -> list[Generated]:
        rows = [all_rows[i] for i in batch]
        if self.device_loop and strategy(options) is greedy.search:
            chunks = self.device_loop.search(rows, options, self.special)
        else:
            ids, mask = ragged(rows, self.special.pad)
            source = self.model.encode(ids, mask, self._chosen([names[i] for i in batch]))
            chunks = decode(self.model, source, rows, options, self.special)
        pieces: list[list[Any]] = [[] for _ in range(len(rows) * options.num_return_sequences)]
        for piece in chunks:
            pieces[piece.answer].append(piece)
        return [
            Generated(
                np.concatenate([piece.tokens for piece in answer]),
                np.concatenate([piece.scores for piece in answer]) if options.output_scores else None,
            )
            for answer in pieces
        ]


def _reload(folder: Path, threads: int, provider: str, kernel: bool, steps: int) -> Generator:
    return Generator.load(folder, threads=threads, provider=provider, kernel=kernel, device_steps=steps)


def _cuts(options: Options) -> bool:
    """Return whether a lower limit on new tokens only truncates the answer."""
    return options.plain and not options.min_new_tokens
