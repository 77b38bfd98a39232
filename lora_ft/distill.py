"""The verb `distill`: let a teacher write the targets of rows, as a data set that a task trains on.

The teacher answers a few rows at a time, and each answer is flushed to the disk in `<out>.unfinished`. A killed job
therefore loses at most those rows. On resume the same rows are answered together as before, since the last bits of an
answer's logits depend on its batch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lora_ft.core.disk import keeping
from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.files import read_json, replace_folder, write_json, write_text
from lora_ft.core.output_paths import making, refuse_existing
from lora_ft.core.plain import plain_fields
from lora_ft.core.progress import Progress, Silent
from lora_ft.data.row_lines import row_line
from lora_ft.models.loading import load
from lora_ft.models.model import Input, Model, listed_rows
from lora_ft.runs.run import working_folder

RECORD, ROWS = "distill.json", "rows.jsonl"
_ANSWERS = "answers.jsonl"  # answers so far; removed when all rows have one
_TARGET = "target"  # default of data.target
_TEXT = "input"  # column of texts for a model without a prompt, as in the output of `generate`
_CHUNK = 64  # rows that a killed job repeats at most


@dataclass(frozen=True)
class Distilled:
    """The result of `distill`.

    Attributes:
        out: Folder of the data set.
        file: Its rows (jsonl).
        target: Column of the targets.
        rows: Number of rows.
        empty, cut: Number of rows left out because the teacher's answer is empty, or reached the maximum length.
    """

    out: Path
    file: Path
    target: str
    rows: int
    empty: int
    cut: int

    def __str__(self) -> str:
        left_out = f"; left out {self.empty:,} empty and {self.cut:,} cut answers" if self.empty or self.cut else ""
        return f"{self.file}: {self.rows:,} rows with targets in the column {self.target}{left_out}"

    def as_dict(self) -> dict[str, Any]:
        """Return the result in the types of JSON."""
        return plain_fields(self)


def distill(
    teacher: Model | str | os.PathLike[str],
    rows: Input | Iterable[Input],
    out: str | os.PathLike[str],
    *,
    options: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Distilled:
    """Let a teacher write the target of each row, and write the rows as a data set.

    Targets are the teacher's best answers, or with `mbr` the consensus of samples; single samples are never targets.

    The rows keep their columns. Targets are in the column `data.target` of the teacher's task, or in `target` if it has
    no task; a target that is already there is replaced. Rows are left out if their answer is empty, or if it was cut at
    the maximum length, since a student would learn to stop there. Texts become rows with the prompt's column.

    Args:
        teacher: Model from `load`, or an argument of `load`.
        rows: Texts or rows, as for `generate`.
        out: Folder to write: `rows.jsonl`, and `distill.json` with the teacher and the settings.
        options: Generation options by transformers' names, such as num_beams and mbr. They come before those of
            the task. Samples have the seed 0 if none is given, so that a resumed job draws the same ones.
        resume: Continue an unfinished job. Rows, teacher and options must be the same.
        overwrite: Replace `out` if lora-ft wrote it, and discard an unfinished job.
        progress: Receives the progress; None is silent.

    Raises:
        UsageError: A row does not fit the prompt, an option is not supported, or the folder exists.
        LoraFtError: All answers are empty or cut, or the disk is full.
    """
    model = teacher if isinstance(teacher, Model) else load(teacher)
    progress = progress or Silent()
    if model.notice:
        progress.note(model.notice)
    rows = listed_rows(rows)
    columns = [_row(model, row) for row in rows]
    if not columns:
        raise UsageError("there are no rows to distill", "pass at least one")
    model.prompts(rows)  # refuse a row that does not fit before the first is answered
    target = model.task.data.target if model.task else _TARGET
    options = {**(options or {}), **_sampling({**model.options, **(options or {})})}
    record = {
        "teacher": model.name,
        "kind": model.kind,
        "target": target,
        "options": {**model.options, **options},
        "rows_sha256": hashlib.sha256("\n".join(map(row_line, columns)).encode()).hexdigest(),
        "versions": {"lora-ft": version("lora-ft")},
    }
    out = Path(out)
    with making(out, overwrite=overwrite, inputs=[model.name]) as place:
        working = working_folder(place)
        _begin(working, record, resume=resume, overwrite=overwrite)
        with keeping(working, "free some space, then add --resume to continue"):
            answers = _answered(model, rows, options, working / _ANSWERS, progress)
            texts = [None if answer["cut"] else answer["text"].strip() for answer in answers]
            counts = {"rows": sum(map(bool, texts)), "empty": texts.count(""), "cut": texts.count(None)}
            if not counts["rows"]:
                raise LoraFtError(
                    f"all answers of the teacher {model.name} are empty or cut (got {counts['empty']:,} and "
                    f"{counts['cut']:,})",
                    "raise --max-new-tokens, or use another teacher, and add --overwrite",
                )
            lines = [row_line({**row, target: text}) for row, text in zip(columns, texts, strict=True) if text]
            write_text(working / ROWS, "".join(f"{line}\n" for line in lines))
            write_json(working / RECORD, record | counts)
            (working / _ANSWERS).unlink()
        replace_folder(working, place)
    return Distilled(out, out / ROWS, target, **counts)


def _sampling(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options with which only a consensus is sampled."""
    if (options.get("mbr") or 0) > 1:
        return {"do_sample": True, "seed": options.get("seed", 0)}
    return {"do_sample": False}


def _row(model: Model, row: Input) -> dict[str, Any]:
    if not isinstance(row, str):
        return dict(row)
    return {(model.prompt.single if model.prompt else None) or _TEXT: row}


def _begin(working: Path, record: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Create the folder of an unfinished job, or check that it belongs to this job."""
    exists = (working / RECORD).is_file()
    if resume:
        if not exists:
            raise UsageError(f"the unfinished job {working} does not exist", "leave out --resume")
        before = read_json(working / RECORD)
        if changed := [key for key, value in record.items() if key != "versions" and before.get(key) != value]:
            raise UsageError(
                f"{working} was begun with other settings (changed: {', '.join(changed)})",
                "restore them, or start over with --overwrite",
            )
        return
    if exists and not overwrite:
        raise UsageError(
            f"an unfinished job exists in {working}", "add --resume to continue, or --overwrite to start over"
        )
    refuse_existing(working, overwrite=overwrite)
    shutil.rmtree(working, ignore_errors=True)
    working.mkdir(parents=True)
    write_json(working / RECORD, record)


def _answered(
    model: Model, rows: Sequence[Input], options: Mapping[str, Any], file: Path, progress: Progress
) -> list[dict[str, Any]]:
    """Append the answers that are missing in a file, a few rows at a time, and return those of all rows."""
    lines = file.read_bytes().splitlines(keepends=True) if file.is_file() else []
    whole = len([line for line in lines if line.endswith(b"\n")]) // _CHUNK * _CHUNK
    progress.stage("distilling", len(rows), whole)
    with open(file, "ab") as output:
        output.truncate(sum(map(len, lines[:whole])))
        for start in range(whole, len(rows), _CHUNK):
            for answer in model.answers(rows[start : start + _CHUNK], **options):
                output.write(f"{row_line({'text': answer.text, 'cut': answer.cut})}\n".encode())
            output.flush()
            os.fsync(output.fileno())
            progress.advance(min(start + _CHUNK, len(rows)))
    return [json.loads(line) for line in file.read_bytes().splitlines()]
