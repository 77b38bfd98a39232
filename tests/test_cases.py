"""The inputs of `tests.cases`, if their folder exists."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cases import DEFAULT_FOLDER, Case, all_cases


@pytest.mark.parametrize("case", all_cases(), ids=str)
def test_case(case: Case, tmp_path: Path) -> None:
    if not DEFAULT_FOLDER.is_dir():
        pytest.skip(f"no inputs at {DEFAULT_FOLDER} (set LORA_FT_CASES)")
    case.check(DEFAULT_FOLDER / case.folder, tmp_path)
