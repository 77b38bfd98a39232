"""Generated clinical notes: the committed rows are those of the script, and each note states its resource."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from benchmarks.clinical_notes import FIRST, FOLDER, SPLITS, _main, generated

ROWS = 1600


def texts(value: Any) -> list[str]:
    """Return the texts of a resource that a note spells as they are."""
    if isinstance(value, list):
        return [text for part in value for text in texts(part)]
    if not isinstance(value, dict):
        return []
    own = [value[key] for key in ("family", "city", "lotNumber", "text") if key in value]
    own += [value["display"]] if list(value) == ["display"] else value.get("given", [])
    return own + [text for part in value.values() for text in texts(part)]


def test_the_committed_rows_are_those_of_the_script(tmp_path: Path) -> None:
    for name in SPLITS:
        shutil.copy(FOLDER / f"{name}.jsonl", tmp_path)
    _main(ROWS, folder=tmp_path)
    assert (tmp_path / "train.jsonl").read_bytes() == (FOLDER / "train.jsonl").read_bytes()


def test_every_note_states_the_texts_of_its_resource() -> None:
    for row in generated(350, 3, set()):
        stated = texts(row["resource"])
        assert stated and all(text.lower() in row["note"].lower() for text in stated), row


def test_kinds_take_turns_and_nobody_returns() -> None:
    rows = list(generated(21, 0, set()))
    assert [row["id"] for row in rows[::7]] == [f"allergy-{FIRST}", f"allergy-{FIRST + 1}", f"allergy-{FIRST + 2}"]
    again = list(generated(21, 0, {name for row in rows for name in texts(row["resource"])}))
    assert not {json.dumps(row["resource"]) for row in rows} & {json.dumps(row["resource"]) for row in again}
