"""Section `lora` of a task: presets and target modules."""

from __future__ import annotations

import pytest

from lora_ft.tasks.files import load_task
from tests.lora_ft.tasks.task_files import MakeTask, without


@pytest.mark.parametrize(
    ("preset", "r", "alpha", "targets"),
    [("tiny", 8, 16, ["q", "v"]), ("default", 16, 32, "all-linear"), ("large", 64, 64, "all-linear")],
)
def test_preset_supplies_missing_values(
    make_task: MakeTask, preset: str, r: int, alpha: int, targets: str | list[str]
) -> None:
    lora = load_task(make_task(lora={"preset": preset})).lora
    assert (lora.r, lora.lora_alpha, lora.target_modules) == (r, alpha, targets)
    lora = load_task(make_task(lora={"preset": preset, "r": 5, "target_modules": "o"})).lora
    assert (lora.r, lora.lora_alpha, lora.target_modules) == (5, alpha, ["o"])


def test_missing_section_uses_the_default_preset(make_task: MakeTask) -> None:
    lora = load_task(without(make_task(), "lora")).lora
    assert (lora.r, lora.lora_alpha, lora.target_modules) == (16, 32, "all-linear")


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("q,v", ["q", "v"]),
        (" q , v ", ["q", "v"]),
        (["q", "wo"], ["q", "wo"]),
        ("all-linear", "all-linear"),
        ("decoder", "decoder"),
    ],
)
def test_target_modules_become_a_list_unless_they_have_a_name(
    make_task: MakeTask, value: str | list[str], names: str | list[str]
) -> None:
    assert load_task(make_task(lora={"target_modules": value})).lora.target_modules == names
