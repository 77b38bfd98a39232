"""Bases are found by path, Hub name or `offline`, refused with a remedy, and loaded with the checkpoint's weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from transformers.utils import logging

from lora_ft.core.errors import LoraFtError, UsageError
from lora_ft.core.hub import hub_trouble
from lora_ft.models.bases import (
    Base,
    cache_folder,
    find_base,
    is_offline_cached,
    load_model,
    load_tokenizer,
    quiet_transformers,
)
from tests.lora_ft.models.sentencepiece_files import train_sentencepiece
from tests.tiny import save_tiny_t5


@pytest.fixture(autouse=True)
def _uncached_hub_check() -> Iterator[None]:
    hub_trouble.cache_clear()
    yield
    hub_trouble.cache_clear()


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "copy"))


def test_folder_is_used_in_place(tiny_base: Path) -> None:
    base = find_base(str(tiny_base))
    assert base == Base(str(tiny_base), tiny_base, "")
    assert base.config["d_model"] == 32


def test_home_folder_is_expanded(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny_base.parent))
    assert find_base(f"~/{tiny_base.name}").folder == tiny_base


def test_a_home_that_does_not_exist_is_named() -> None:
    with pytest.raises(UsageError, match="~nobody-here has no home folder"):
        find_base("~nobody-here/base")


def test_an_export_is_not_a_base(bundle: Path) -> None:
    with pytest.raises(UsageError, match="is an export, not a checkpoint; pass the run or the checkpoint"):
        find_base(str(bundle))


def test_path_without_a_config_is_refused(copy: Path) -> None:
    (copy / "config.json").unlink()
    with pytest.raises(UsageError) as caught:
        find_base(str(copy))
    assert caught.value.message == f"the base {copy} has no config.json"
    assert "checkpoint of a T5" in caught.value.remedy


@pytest.mark.parametrize("kind", ["bart", None])
def test_unsupported_model_type_is_refused(copy: Path, kind: str | None) -> None:
    (copy / "config.json").write_text(json.dumps({"model_type": kind}), encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        find_base(str(copy))
    assert f"model_type '{kind}'" in caught.value.message and "t5" in caught.value.remedy


def test_pickled_checkpoint_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(UsageError) as caught:
        find_base(str(copy))
    assert "only pytorch_model.bin, and lora-ft never loads pickles" in caught.value.message


@pytest.mark.parametrize("name", ["/no/such/folder", "./none", "~/none", "a/b/c"])
def test_missing_path_does_not_reach_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(UsageError) as caught:
        find_base(name)
    assert caught.value.message == f"there is no base at {name}" and "offline" in caught.value.remedy


def test_invalid_hub_name_is_refused() -> None:
    with pytest.raises(UsageError, match="neither a folder nor a Hub name"):
        find_base("two words")


def test_a_name_is_not_said_to_be_on_a_hub_that_cannot_be_asked() -> None:
    with pytest.raises(UsageError) as caught:
        find_base("nobody/has-this-base")
    assert caught.value.message.startswith("nobody/has-this-base is not a folder, and the Hub cannot be asked")
    assert "HF_HUB_OFFLINE is set" in caught.value.message
    assert caught.value.remedy == "correct the path of the checkpoint, or use base 'offline'"


class Hub:
    """Stand-in for huggingface_hub.snapshot_download."""

    def __init__(self, folder: Path, *, cached: bool, error: Exception | None = None) -> None:
        self.folder, self.cached, self.error = folder, cached, error
        self.downloads = 0

    def __call__(self, name: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        assert not any(pattern.endswith((".bin", ".pt", ".h5")) for pattern in allow_patterns)
        if local_files_only and not self.cached:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")
        if not local_files_only:
            self.downloads += 1
            if self.error is not None:
                raise self.error
        return str(self.folder)


def test_cached_base_does_not_need_the_hub(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tiny_base, cached=True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    assert find_base("someone/base") == Base("someone/base", tiny_base) and hub.downloads == 0


def test_base_on_the_hub_is_downloaded(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tiny_base, cached=False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    monkeypatch.setattr("lora_ft.models.bases.hub_trouble", lambda: None)
    assert find_base("someone/base").folder == tiny_base and hub.downloads == 1


def test_error_of_the_hub_about_an_unknown_base_is_shown(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(tiny_base, cached=False, error=ValueError("404 Client Error.\nlong advice"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    monkeypatch.setattr("lora_ft.models.bases.hub_trouble", lambda: None)
    with pytest.raises(
        UsageError, match=r"someone/base is not a folder, and .* \(404 Client Error\.\); correct the path"
    ):
        find_base("someone/base")


def test_offline_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora_ft.models.offline_base.find_spec", lambda _: None)
    with pytest.raises(UsageError) as caught:
        find_base("offline")
    assert "traceforge-title-model" in caught.value.message
    assert caught.value.remedy == "pip install 'lora-ft[offline]'"
    assert not is_offline_cached()


def test_environment_sets_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LORA_FT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("LORA_FT_CACHE")
    assert cache_folder() == tmp_path / "xdg" / "lora-ft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "lora-ft"


def test_model_is_loaded_in_float32_and_evaluation_mode_with_an_untied_head(tiny_base: Path) -> None:
    model = load_model(tiny_base)
    assert not model.training and {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    weights = load_file(tiny_base / "model.safetensors")
    assert torch.equal(model.lm_head.weight, weights["lm_head.weight"])
    assert torch.equal(model.shared.weight, weights["shared.weight"])
    assert torch.equal(model.encoder.embed_tokens.weight, weights["shared.weight"])
    assert not torch.equal(model.lm_head.weight, model.shared.weight)


def test_bfloat16_checkpoint_is_loaded_in_float32(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = save_tiny_t5(tmp_path / "half", torch_dtype="bfloat16")
    weights = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert {parameter.dtype for parameter in load_model(folder).parameters()} == {torch.float32}


def test_tied_head_stays_tied(tmp_path: Path) -> None:
    model = load_model(save_tiny_t5(tmp_path / "tied", tie_word_embeddings=True))
    assert torch.equal(model.lm_head.weight, model.shared.weight)


def test_dropout_and_attention_can_be_set(tiny_base: Path) -> None:
    def rates(model: torch.nn.Module) -> set[float]:
        return {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)}

    assert rates(load_model(tiny_base)) == {0.1}
    model = load_model(tiny_base, dropout=0.0, attention="eager")
    assert rates(model) == {0.0} and model.config._attn_implementation == "eager"


def test_loading_is_silent_and_restores_the_logging_level(tiny_base: Path, capfd: pytest.CaptureFixture[str]) -> None:
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_model(tiny_base)
    out = capfd.readouterr()
    assert (out.out, out.err) == ("", "")
    with pytest.raises(KeyError), quiet_transformers():
        raise KeyError
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bar)


def test_tokenizer_is_read_from_the_checkpoint(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base)
    rows = tokenizer.encode(["say: hi", ""])
    assert rows[0][-1] == 1 and rows[1] == [1] and tokenizer.size == 71
    assert tokenizer.decode(rows) == ["say: hi", ""]


def test_base_without_a_tokenizer_is_refused(copy: Path) -> None:
    """transformers 5 would create a tokenizer that knows almost no character."""
    (copy / "tokenizer.json").unlink()
    with pytest.raises(LoraFtError, match=r"has neither tokenizer\.json nor spiece\.model"):
        load_tokenizer(copy)


def test_invalid_sentencepiece_model_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    (copy / "spiece.model").write_bytes(b"not a model")
    with pytest.raises(LoraFtError, match=r"the tokenizer in .* cannot be loaded"):
        load_tokenizer(copy)


def test_truncated_tokenizer_file_is_refused(copy: Path) -> None:
    path = copy / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(LoraFtError, match=r"tokenizer\.json cannot be read"):
        load_tokenizer(copy)


def test_sentencepiece_model_is_converted(copy: Path) -> None:
    texts = ["Hello there, the printer is broken.", "two spaces 12"]
    train_sentencepiece(copy, texts)
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 100}')
    (copy / "config.json").write_text(json.dumps({"vocab_size": 160}))
    tokenizer, pieces = load_tokenizer(copy), SentencePieceProcessor(model_file=str(copy / "spiece.model"))
    assert tokenizer.encode(texts) == [[*pieces.encode(text), 1] for text in texts]
    assert tokenizer.decode(tokenizer.encode(texts)) == texts


def test_tokenizer_with_more_tokens_than_embedding_rows_is_refused(copy: Path) -> None:
    content = json.loads((copy / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 80, "content": "<new>"})
    (copy / "tokenizer.json").write_text(json.dumps(content))
    content["model"]["vocab"] += [[f"[{i}]", -1.0] for i in range(80 - len(content["model"]["vocab"]))]
    (copy / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"needs 81 embedding rows, but the model has 80; resize the model"):
        load_tokenizer(copy)


@pytest.mark.parametrize("content", ["{", "[]", ""])
def test_damaged_generation_config_is_refused(copy: Path, content: str) -> None:
    (copy / "generation_config.json").write_text(content)
    with pytest.raises(LoraFtError, match=r"generation_config\.json"):
        load_model(copy)


def test_quantized_checkpoint_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"quantization_config": {"load_in_8bit": True}}))
    with pytest.raises(UsageError, match="are quantized"):
        find_base(str(copy))


def test_checkpoint_that_contains_an_adapter_is_refused(copy: Path) -> None:
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="is both a checkpoint and an adapter"):
        load_model(copy)


@pytest.mark.parametrize(
    "change", [{"d_kv": "8"}, {"dropout_rate": "high"}, {"dtype": "floaty"}, {"num_layers": 10**9}]
)
def test_invalid_config_raises_one_error_with_its_path(copy: Path, change: dict[str, object]) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | change))
    try:
        load_model(copy)
    except LoraFtError as error:
        assert str(copy) in str(error)
