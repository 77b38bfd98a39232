"""A peft folder is accepted in place of a run: merged, scored, exported, added to banks and used to generate."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lora_ft.bank import add, export_bank
from lora_ft.cli import run as lora_ft
from lora_ft.core.errors import UsageError
from lora_ft.export.runtime import Generator
from lora_ft.export_onnx import export_onnx
from lora_ft.merge import merge
from lora_ft.models.bases import find_base, load_tokenizer
from lora_ft.models.loading import load
from lora_ft.models.peft_adapter import PeftAdapter, holds_adapter, open_adapter
from lora_ft.runs.run import Run
from tests.export.oracle import torch_model
from tests.lora_ft.models.test_checkpoints import save_sentencepiece
from tests.lora_ft.test_foreign_adapters import by_peft, configure, logits, make
from tests.tiny import save_tiny_t5


@pytest.fixture
def adapter(tiny_base: Path, tmp_path: Path) -> Path:
    folder = make(tiny_base, tmp_path / "my adapter", target_modules=["q", "v"])
    configure(folder, base_model_name_or_path=str(tiny_base))
    return folder


def test_merged_adapter_equals_pefts_merge(
    tiny_base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert lora_ft(["merge", str(adapter), "--out", str(tmp_path / "merged")]) == 0
    assert "differ by at most" in capsys.readouterr().out
    expected = by_peft(tiny_base, adapter)
    torch.testing.assert_close(logits(torch_model(tmp_path / "merged")), expected, rtol=1e-4, atol=1e-4)
    assert json.loads((tmp_path / "merged" / "merge.json").read_text())["adapter"] == "my_adapter"
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "# my\\_adapter" in card and "with a merged LoRA adapter" in card and str(tmp_path) not in card
    assert load(str(tmp_path / "merged")).kind == "checkpoint"


def test_adapter_without_a_base_needs_the_option_base(tiny_base: Path, adapter: Path, tmp_path: Path) -> None:
    configure(adapter, base_model_name_or_path=None)
    with pytest.raises(UsageError, match=r"does not name a base; pass it as --base"):
        merge(open_adapter(adapter), tmp_path / "merged")
    configure(adapter, base_model_name_or_path="/home/someone/else")
    with pytest.raises(UsageError, match=r"no base at /home/someone/else; pass a copy as --base"):
        merge(open_adapter(adapter), tmp_path / "merged")
    assert merge(open_adapter(adapter), tmp_path / "merged", base=str(tiny_base)).rows == 4


def test_adapter_for_a_revision_of_its_base_needs_the_option_base(
    tiny_base: Path, adapter: Path, tmp_path: Path
) -> None:
    configure(adapter, revision="v1.0")  # means nothing for a folder
    assert open_adapter(adapter).find_base().folder == tiny_base
    configure(adapter, base_model_name_or_path="someone/base")
    with pytest.raises(UsageError, match=r"for revision 'v1\.0' of its base someone/base, .*--revision v1\.0"):
        merge(open_adapter(adapter), tmp_path / "merged")
    assert open_adapter(adapter).find_base(str(tiny_base)).folder == tiny_base
    configure(adapter, revision="main")
    with pytest.raises(UsageError, match="someone/base is not a folder, and the Hub cannot be asked"):
        merge(open_adapter(adapter), tmp_path / "merged")


def test_adapter_generates_and_is_scored_on_a_named_task(
    adapter: Path, make_task: object, tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = make_task()  # type: ignore[operator]
    assert lora_ft(["generate", str(adapter), "hello", "--max-new-tokens", "3"]) == 0
    assert lora_ft(["evaluate", str(adapter), "--base", str(tiny_base)]) == 2
    assert "stores no task" in capsys.readouterr().err
    assert lora_ft(["evaluate", str(adapter), "--task", str(task), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert lora_ft(["merge", str(adapter), "--out", str(tmp_path / "m")]) == 0
    capsys.readouterr()
    assert lora_ft(["evaluate", str(tmp_path / "m"), "--task", str(task), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["scores"] == scores["scores"]["scores"]
    assert sorted(path.name for path in adapter.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_adapter_is_exported(adapter: Path, tmp_path: Path) -> None:
    exported = export_onnx(str(adapter), tmp_path / "bundle", verify_rows=4)
    assert exported.parity.identical_rows == exported.parity.rows
    assert Generator.load(tmp_path / "bundle").manifest["adapter"] == "my_adapter"


def test_adapters_are_exported_as_a_bank_and_added_to_it(
    tiny_base: Path, adapter: Path, tiny_run: Run, tmp_path: Path
) -> None:
    second = make(tiny_base, tmp_path / "other", target_modules=["q"], r=2)
    export_bank([str(adapter), str(tiny_run.folder)], tmp_path / "bank")
    add(tmp_path / "bank", [f"second={second}"], base=str(tiny_base))
    bank = Generator.load(tmp_path / "bank")
    assert bank.adapters == ["my_adapter", "second", "tiny"]
    alone = load(str(adapter))
    texts = ["say: hello", "one two three"]
    expected = [answer.text for answer in alone.backend.generate(texts, {"max_new_tokens": 8})]
    assert bank.generate(texts, adapter="my_adapter", max_new_tokens=8) == expected


@pytest.mark.parametrize(
    "config, named",
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias"),
        ({"use_dora": True}, "use_dora"),
    ],
)
def test_banks_refuse_other_parts_than_matrices(
    tiny_base: Path, tmp_path: Path, config: dict[str, object], named: str
) -> None:
    folder = make(tiny_base, tmp_path / "more", target_modules=["q"], **config)
    with pytest.raises(UsageError, match=rf"the adapter of .* has {named}"):
        export_bank([str(folder)], tmp_path / "bank", base=str(tiny_base))


def add_token(source: Path, folder: Path, token: str = "<new>") -> None:
    """Write a tokenizer with one more token than that of `source` into the folder of an adapter."""
    tokenizer = load_tokenizer(source)
    tokenizer.add([token])
    tokenizer.save(folder / "tokenizer.json")


def test_banks_refuse_adapters_with_more_tokens_than_their_base(adapter: Path, tiny_base: Path, tmp_path: Path) -> None:
    add_token(tiny_base, adapter)
    with pytest.raises(UsageError, match="has more tokens than its base, which a bank cannot store; export it"):
        export_bank([str(adapter)], tmp_path / "bank")


def test_tokens_added_to_a_slow_tokenizer_are_used(adapter: Path, tiny_base: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_base, tmp_path / "base"))
    save_sentencepiece(base, "<hl>")
    for name in ("spiece.model", "tokenizer_config.json", "added_tokens.json"):
        shutil.copy(base / name, adapter)
    assert open_adapter(adapter).tokenizer(find_base(str(base)), "none")[1] is None
    (base / "added_tokens.json").unlink()
    tokenizer, extended = open_adapter(adapter).tokenizer(find_base(str(base)), "none")
    assert tokenizer is extended and tokenizer.ids(["<hl>"]) == [tokenizer.rows - 1]


def test_unknown_keys_are_reported(adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(adapter, use_hyper_lora=True)
    assert lora_ft(["merge", str(adapter), "--out", str(tmp_path / "merged")]) == 0
    assert "and ignored: use_hyper_lora" in capsys.readouterr().err
    assert "use_hyper_lora" in load(str(adapter)).notice
    assert lora_ft(["export", "--adapters", str(adapter), "--out", str(tmp_path / "bank")]) == 0
    assert capsys.readouterr().err.count("and ignored: use_hyper_lora") == 1
    assert lora_ft(["adapters", "merge", str(adapter), str(adapter), "--out", str(tmp_path / "sum")]) == 0
    assert capsys.readouterr().err.count("and ignored: use_hyper_lora") == 2


def test_adapter_folder_of_a_run_opens_the_run(tiny_run: Run, tiny_base: Path, tmp_path: Path) -> None:
    assert isinstance(open_adapter(tiny_run.adapter), Run) and holds_adapter(tiny_run.adapter)
    alone = Path(shutil.copytree(tiny_run.adapter, tmp_path / "alone"))
    assert isinstance(open_adapter(alone), PeftAdapter)
    assert not holds_adapter(tiny_base) and not holds_adapter(tmp_path / "none")
    with pytest.raises(UsageError, match="neither a run nor an adapter"):
        open_adapter(tmp_path / "none")


def test_config_of_the_base_beside_an_adapter_does_not_make_it_a_checkpoint(
    adapter: Path, tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copy(tiny_base / "config.json", adapter)
    assert holds_adapter(adapter) and load(str(adapter)).kind == "adapter"
    assert export_onnx(str(adapter), tmp_path / "bundle", verify_rows=4).parity.passed
    shutil.copy(tiny_base / "model.safetensors", adapter)
    with pytest.raises(UsageError, match="is both a checkpoint and an adapter"):
        load(str(adapter))


def test_base_of_other_dimensions_is_refused(adapter: Path, tmp_path: Path) -> None:
    wide = save_tiny_t5(tmp_path / "wide", d_model=40)
    assert lora_ft(["merge", str(adapter), "--base", str(wide), "--out", str(tmp_path / "merged")]) == 1


def test_base_is_refused_for_a_model_without_an_adapter(tiny_base: Path) -> None:
    with pytest.raises(UsageError, match=r"--base is set, but .* has no adapter"):
        load(str(tiny_base), base=str(tiny_base))
