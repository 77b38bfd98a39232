"""The verb `init`: write a commented task file for rows or a chat export, with or without a recipe's settings."""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.files import write_text
from lora_ft.core.output_paths import refuse_file
from lora_ft.core.progress import Progress, Silent
from lora_ft.core.shell_command import shell_command
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.core.user_paths import expanded
from lora_ft.data.chats.detect import find_format
from lora_ft.data.chats.discord_text import is_discord_table
from lora_ft.data.chats.kakaotalk import is_kakaotalk_table
from lora_ft.data.formats.content import content_of
from lora_ft.data.guess import Guess, guess_task, references_of, texts_of
from lora_ft.data.lengths import Lengths, measure_lengths
from lora_ft.data.readers import Row, is_readable, read_rows
from lora_ft.data.splits import load_splits
from lora_ft.models.bases import OFFLINE, find_base, is_offline_cached, load_tokenizer
from lora_ft.tasks.files import copy_schemas, load_task, read_task, recipe_file, recipes
from lora_ft.tasks.plain_yaml import parse_yaml, plain_text, quoted
from lora_ft.tasks.schema import SPLITS

DEFAULT_BASE = "google/flan-t5-small"
GROUP_CHAT = "group chat"
_CHAT_PROMPT = "Continue writing the following text.\n\n{context}"
_SIBLINGS = {"validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_FEW_ROWS = 1000
_GAPS = (120, 30, 10, 3)  # minutes of silence that end a session, tried in this order
_BLOCK = re.compile(r"^(?=[A-Za-z_]+:)", re.MULTILINE)
_GUESSED = ("name", "prompt", "data", "lengths")  # blocks of a recipe that rows replace
_SCHEMA_LINE = re.compile(r"# yaml-language-server: \$schema=.*\n")
# The path of the installed schema would be wrong on every other machine, so the user writes a copy next to the task.
_EDITORS = """\
# To let VS Code (extension YAML) complete and check the keys, run `lora-ft recipes --schema > task.schema.json` in this
# folder, and add a first line: `# yaml-language-server: $schema=task.schema.json`.
"""


@dataclass(frozen=True)
class NewTask:
    """The task file that `init` wrote.

    Attributes:
        file: Path of the task file.
        kind: Kind of task that the rows suggest, or the name of the recipe.
        reasons: Reasons for this kind, for the user.
    """

    file: Path
    kind: str
    reasons: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, object]:
        """Return the result in the types of JSON."""
        return {"file": str(self.file), "kind": self.kind, "reasons": self.reasons}


def init(
    file: str | Path | None = None,
    *,
    data: str | Path | None = None,
    recipe: str | None = None,
    base: str | None = None,
    target: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> NewTask:
    """Write a task file.

    Args:
        file: Task file to write. Default: named after the data or the recipe, in the current folder.
        data: File or folder with rows, or a chat export. Default: the recipe's rows.
        recipe: Name of a shipped recipe whose settings are copied.
        base: Model to train. Default: the recipe's, or FLAN-T5 small.
        target: Column that the model generates. Default: guessed.
        overwrite: Replace an existing task file.
        progress: Receives stages and notes.

    Raises:
        UsageError: Neither data nor a recipe is named, the file exists, or the task cannot be guessed from the rows.
        LoraFtError: The data is damaged.
    """
    progress = progress or Silent()
    if data is None:
        if recipe is None:
            raise UsageError("neither --data nor --recipe is set", "add --data FILE or --recipe NAME")
        return copy_recipe(recipe, file, base=base, overwrite=overwrite)
    source = expanded(data)
    if not source.exists():
        raise UsageError(f"--data: {source} does not exist", "pass a file of rows, a folder, or a chat export")
    file = expanded(file or f"{_name(source)}.yaml")
    _require_new(file, overwrite)
    progress.stage(f"reading {source}")
    base = base or (None if recipe else DEFAULT_BASE)
    if chat := _chat_format(source):
        blocks, result = _chat_blocks(file, source, base), NewTask(file, GROUP_CHAT, [f"an export of {chat}"])
    else:
        blocks, result = _row_blocks(file, source, base, target)
    if recipe is not None:
        blocks = _after_recipe(recipe, blocks)
    text = "".join(blocks.values())
    progress.stage("checking the task")
    file.parent.mkdir(parents=True, exist_ok=True)  # a path of rows with `..` leads through it
    if recipe is not None:
        copy_schemas(_recipe(recipe), file.parent)
    write_text(file, _EDITORS + (_with_sessions(text, file) if result.kind == GROUP_CHAT else _checked(text, file)))
    return result


def copy_recipe(
    name: str, file: str | Path | None = None, *, base: str | None = None, overwrite: bool = False
) -> NewTask:
    """Copy a shipped recipe and its rows.

    Args:
        name: Name of the recipe.
        file: Task file to write. Default: NAME.yaml in the current folder. The folder of rows is written next to it.
        base: Model to train. Default: the recipe's.
        overwrite: Replace an existing task file. Rows are never replaced.

    Raises:
        UsageError: There is no such recipe, or the task file or its folder of rows exists.
    """
    origin = _recipe(name)
    file = expanded(file or f"{name}.yaml")
    _require_new(file, overwrite)
    text = _SCHEMA_LINE.sub("", origin.read_text(encoding="utf-8"))
    text = re.sub(r"^name: .*$", f"name: {_scalar(_name(file))}", text, flags=re.MULTILINE)
    if base is not None:
        text = re.sub(r"^base: \S+", lambda _: f"base: {quoted(base)}", text, flags=re.MULTILINE)
    root = load_task(origin).data.root
    rows = None if root is None or root == origin.parent else root
    if rows is not None:
        folder = file.parent / rows.name
        if folder.exists():
            raise UsageError(f"{folder} already exists", "pass a FILE in another folder")
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(rows, folder)
    write_text(file, _EDITORS + text)
    return NewTask(file, name, [f"rows: {file.parent / rows.name}"] if rows is not None else [])


def _recipe(name: str) -> Path:
    if name not in recipes():
        raise UsageError(f"recipe {name} does not exist", f"choose one of {', '.join(recipes())}")
    return recipe_file(name)


def _require_new(file: Path, overwrite: bool) -> None:
    if file.exists() and not overwrite:
        raise UsageError(f"{file} already exists", "pass another FILE, or add --overwrite")
    refuse_file(file, "FILE", overwrite=True)


def _checked(text: str, file: Path) -> str:
    """Return the text of a task file after reading and splitting its rows. Errors are those of `load_splits`."""
    load_splits(read_task(parse_yaml(text, str(file)).value, file))
    return text


def _with_sessions(text: str, file: Path) -> str:
    """Return the task file of a chat with the longest silence between sessions that leaves enough sessions to split."""
    for minutes in _GAPS[:-1]:
        shorter = text.replace(f"gap_minutes: {_GAPS[0]}", f"gap_minutes: {minutes}")
        try:
            return _checked(shorter, file)
        except UsageError as error:
            if "gap_minutes" not in str(error):
                raise
    return _checked(text.replace(f"gap_minutes: {_GAPS[0]}", f"gap_minutes: {_GAPS[-1]}"), file)


def _chat_format(source: Path) -> str | None:
    """Return the program that wrote a chat export, or None for rows."""
    if source.is_dir() and _split_files(source):
        return None
    if is_readable(source) and source.suffix.lower() not in (".json", ".zip"):
        tables = {"discord": is_discord_table, "kakaotalk": is_kakaotalk_table}
        return next(
            (name for name, is_table in tables.items() if source.suffix.lower() == ".csv" and is_table(source)), None
        )
    try:
        return find_format(source)
    except LoraFtError:  # JSON Lines and NaN are no JSON for the readers of chats
        if is_readable(source) or _is_json_text(source):
            return None
        raise


def _is_json_text(source: Path) -> bool:
    """Return whether a file is a .txt, compressed or not, with JSON inside."""
    content = content_of(source) if source.is_file() else None
    return content is not None and content.ending == ".txt" and content.text().lstrip().startswith(("{", "["))


def _split_files(folder: Path) -> dict[str, Path]:
    """Return the files of rows in a folder by split, or nothing if no file is named train."""
    readable = {path.name.split(".")[0].lower(): path for path in sorted(folder.iterdir()) if is_readable(path)}
    if "train" not in readable:
        return {}
    names = {"train": ("train",), **_SIBLINGS}
    paths = {split: next((readable[name] for name in names[split] if name in readable), None) for split in SPLITS}
    return {split: path for split, path in paths.items() if path is not None}


def _row_blocks(file: Path, source: Path, base: str | None, target: str | None) -> tuple[dict[str, str], NewTask]:
    """Return the blocks of a task file for rows by key, and the result to report."""
    by_split = _split_files(source) if source.is_dir() else {}
    if not by_split and source.is_dir():
        raise UsageError(f"--data: {source} has no file of rows named train", "pass a file, or a chat export")
    if not by_split:
        siblings = _split_files(source.parent)
        by_split = siblings if siblings.get("train") == source else {"train": source}
    rows = {split: _rows(path) for split, path in by_split.items()}
    if not rows["train"]:
        raise UsageError(f"--data: {by_split['train']} has no rows", "pass a file with rows")
    guess = guess_task(rows["train"], target=target)
    unlabeled = [split for split in rows if not texts_of(rows[split], guess.target)]  # Kaggle's test.csv
    left_out = [f"{by_split[split].name} has no text in {guess.target}, so it is left out" for split in unlabeled]
    by_split = {split: path for split, path in by_split.items() if split not in unlabeled}
    rows = {split: rows[split] for split in by_split}
    all_rows = [row for split in rows.values() for row in split]
    lengths = measure_lengths(all_rows, guess.prompt, guess.target, _tokenizer(base))
    scored = [row for split in ("validation", "test") for row in rows.get(split, [])]
    references = references_of(scored or rows["train"])
    blocks = {
        "name": _head(file, base, guess.kind, guess.reasons),
        "prompt": f"prompt: {quoted(guess.prompt)} # {_advice(guess)}\n",
        "codec": f"codec: {lengths.codec} # {lengths.codec_reason}\n" if lengths.codec != "none" else "",
        "labels": "labels: auto # the distinct targets of the training rows\n" if guess.labels else "",
        "data": _data(file, by_split, rows, guess, references, lengths),
        "lengths": _lengths(lengths),
        "lora": "lora: {preset: default} # r 16 on all linear layers\n",
        "train": _train(len(rows["train"]), labels=guess.labels),
        "evaluate": "evaluate: {metrics: [exact_match], metric: accuracy}\n" if guess.labels else "",
    }
    if references and not guess.labels:
        blocks["evaluate"] = "evaluate: {metrics: [rouge, bleu, chrf]}\n"
    return blocks, NewTask(file, guess.kind, [*guess.reasons, *left_out, _split_reason(by_split), lengths.reason])


def _tokenizer(base: str | None) -> Tokenizer | None:
    """Return the tokenizer of a base on this machine, else None. All FLAN-T5 have the same tokenizer."""
    if base is not None and (base == OFFLINE or Path(base).is_dir()):
        return load_tokenizer(find_base(base).folder)
    return load_tokenizer(find_base(OFFLINE).folder) if is_offline_cached() else None


def _rows(path: Path) -> list[Row]:
    return [row for _, row in read_rows(path.parent, path.name, "--data")]


def _head(file: Path, base: str | None, kind: str, reasons: Sequence[str]) -> str:
    summary = f"Kind of task: {kind}, guessed from the rows: {'; '.join(reasons)}. Check it with"
    lines = [f"# {line}" for line in textwrap.wrap(_printable(summary), 100)]
    lines += ["#", f"#   {_printable(shell_command('validate', file.name))}", "#", f"name: {_scalar(_name(file))}"]
    if base is not None:
        is_plain = re.fullmatch(r"[A-Za-z][A-Za-z0-9/._-]*", base)
        lines.append(f"base: {base if is_plain else quoted(base)} # a Hub name, the path of a checkpoint, or: offline")
    return "\n".join(lines) + "\n"


def _printable(text: str) -> str:
    """Return a text for a comment, which ends at any line break of YAML."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _advice(guess: Guess) -> str:
    return "describe the task in words" if guess.kind == "text to text" else "asks for the target"


def _data(
    file: Path,
    by_split: dict[str, Path],
    rows: dict[str, list[Row]],
    guess: Guess,
    references: str | None,
    lengths: Lengths,
) -> str:
    lines = ["data:"]
    for split, path in by_split.items():
        lines.append(f"  {split}: {quoted(_relative(path, file))} # {len(rows[split]):,} rows")
    lines.append(f"  target: {quoted(guess.target)} # the column that the model generates")
    if references:
        lines.append(f"  references: {references} # lists of acceptable texts to score answers against")
    shares = [f"{split}: 0.1" for split in ("validation", "test") if split not in by_split]
    if shares:
        lines.append(f"  split: {{{', '.join(shares)}}} # taken from the training rows at random")
    if lengths.empty_rows:
        lines.append(f"  skip_empty: true # {lengths.empty_rows:,} rows have an empty cell")
    return "\n".join(lines) + "\n"


def _split_reason(by_split: dict[str, Path]) -> str:
    from_files = ", ".join(f"{split} from {path.name}" for split, path in by_split.items() if split != "train")
    missing = [split for split in ("validation", "test") if split not in by_split]
    held_out = f"10 % of the training rows each for {' and '.join(missing)}" if missing else ""
    return "; ".join(part for part in (from_files, held_out) if part)


def _lengths(lengths: Lengths) -> str:
    lines = [
        f"# {lengths.reason}",
        "lengths:",
        f"  source: {lengths.source} # prompts: {lengths.prompts}",
        f"  target: {lengths.target} # targets: {lengths.targets}",
    ]
    if lengths.cuts_targets:
        lines.append("  long_targets: cut # or drop; by default rows with longer targets are an error")
    return "\n".join(lines) + "\n"


def _train(count: int, *, labels: bool) -> str:
    epochs, rate = (
        ("5", "2.0e-3 # with few rows, the best rate depends on the task: try 5e-4 to 4e-3")
        if count < _FEW_ROWS
        else ("3", "3.0e-3 # labels are learned best at large rates" if labels else "1.0e-3")
    )
    lines = ["train:", f"  num_train_epochs: {epochs}", f"  learning_rate: {rate}", "  per_device_train_batch_size: 8"]
    if labels:
        lines.append("  metric_for_best_model: accuracy")
    return "\n".join(lines) + "\n"


def _chat_blocks(file: Path, source: Path, base: str | None) -> dict[str, str]:
    """Return the blocks of a task file for a chat export by key."""
    path = quoted(_relative(source, file))
    return {
        "name": _head(file, base, GROUP_CHAT, ["the file is a chat export"]),
        "prompt": f"prompt: {quoted(_CHAT_PROMPT)}\n",
        "codec": "codec: text # newlines survive T5's tokenizer\n",
        "data": (
            f"data:\n  train: {path}\n"
            "  split: {validation: 0.1, test: 0.1} # whole sessions, the newest for testing\n"
            f"  chat:\n    gap_minutes: {_GAPS[0]} # a longer silence ends a session\n"
            "    context: 10 # messages before the generated one\n"
            "    anonymize: false # true replaces the senders' names\n"
        ),
        "lengths": "lengths: {source: 512, target: 128, long_targets: cut}\n",
        "lora": "lora: {preset: default} # r 16 on all linear layers\n",
        "train": (
            "train:\n  num_train_epochs: 5\n  learning_rate: 1.0e-3\n  per_device_train_batch_size: 8\n"
            "  metric_for_best_model: loss # many replies are right, so texts cannot be compared\n"
        ),
        "generate": "generate: {do_sample: true, top_k: 50, top_p: 0.95, temperature: 0.7, repetition_penalty: 1.3}\n",
    }


def _after_recipe(recipe: str, blocks: dict[str, str]) -> dict[str, str]:
    """Return a recipe's blocks without its card, and with the blocks that depend on rows replaced."""
    text = _SCHEMA_LINE.sub("", _recipe(recipe).read_text(encoding="utf-8"))
    parts = [part for part in _BLOCK.split(text) if re.match(r"[A-Za-z_]+:", part)]
    settings = {part.split(":")[0]: part.rstrip() + "\n" for part in parts}
    if "base:" in blocks["name"]:
        settings.pop("base", None)
    if "labels" in settings:
        settings["labels"] = "labels: auto # the distinct targets of the training rows\n"
    settings.pop("card", None)
    codec = {} if "codec" in settings or not blocks.get("codec") else {"codec": blocks["codec"]}
    return settings | codec | {name: blocks[name] for name in _GUESSED}


def _scalar(name: str) -> str:
    """Return a name for a task file, quoted if YAML would read it as a number or a truth value (`2024.csv`)."""
    return name if plain_text(name) else quoted(name)


def _relative(path: Path, file: Path) -> str:
    """Return a path relative to a task file's folder, or the whole path if it is shorter or on another drive."""
    whole = path.resolve().as_posix()
    try:
        relative = Path(os.path.relpath(path.resolve(), file.resolve().parent)).as_posix()
    except ValueError:
        return whole
    return min(relative, whole, key=len)


def _name(path: Path) -> str:
    """Return a valid task name from a path's name, or from its folder's name for a file such as train."""
    path = path.resolve()
    stem = path.name.split(".")[0] if path.name.split(".")[0] else path.name
    if stem.lower() in ("train", "result", "data") and path.parent.name:
        stem = path.parent.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:100] or "task"
