"""A bank published: one base in one precision, with graphs that take adapters, and the first adapters beside it."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora_ft.core.files import sha256, staged_folder
from lora_ft.core.output_paths import refuse_existing
from lora_ft.core.tokenizer import Tokenizer
from lora_ft.export.bundle.adapter_slots import AdapterSlots, MergedWeights, adapted, ranks_of
from lora_ft.export.bundle.assemble import BundleMetadata, assemble, read_model, rescaled, seal
from lora_ft.export.bundle.bank import BankAdapter, BankLayout, add_adapter
from lora_ft.export.checkpoint.architecture import Architecture
from lora_ft.export.checkpoint.weight_files import weight_files
from lora_ft.export.onnx.lora import Group
from lora_ft.export.onnx.precision import FP32, Precision
from lora_ft.export.onnx.smoothquant import Fold, Folded, Sample, calibrate, joined
from lora_ft.export.onnx.t5 import T5, Weights
from lora_ft.export.parity import Probe, Reference, Report, compare, require
from lora_ft.export.runtime import manifest
from lora_ft.export.runtime.generator import Generator


def write_bank(
    checkpoint: Path,
    tokenizer: Tokenizer,
    origin: BundleMetadata,
    references: Iterable[Reference],
    probe: Reference,
    members: Sequence[BankAdapter],
    out: Path,
    *,
    precision: Precision = FP32,
    samples: Sequence[Sample] = (),
    scaled: bool | None = None,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda stage: None,
) -> dict[str, Report]:
    """Build a bank, compare the base and every adapter with PyTorch, and publish it.

    Args:
        checkpoint: transformers folder of the base.
        tokenizer, origin, references, probe, scaled: as `publish.write_bundle` takes them, of the base alone.
        members: the adapters; the bank has room for their layers and ranks.
        out: folder to make.
        precision: of the base; adapters are bytes where its weights are integers.
        samples: rows to calibrate the base with; adapters bring their own.
        overwrite: replace `out` where it exists.
        progress: told the name of each stage as it begins.

    Returns:
        How each adapter compares with PyTorch, by name.

    Raises:
        UsageError: `out` exists, the checkpoint is no T5, or two adapters have the same name.
        LoraFtError: the base or an adapter differs from PyTorch; nothing is left behind.
    """
    refuse_existing(out, overwrite=overwrite)
    architecture, weights = read_model(checkpoint)
    if scaled is not None:
        architecture = rescaled(architecture, scaled)
    build = _Builder(
        architecture, tokenizer, origin, weights.config, ranks_of(one.adapter for one in members), base_hash(checkpoint)
    )
    with staged_folder(out, overwrite=overwrite) as staging, tempfile.TemporaryDirectory(prefix="lora-ft-") as scratch:
        references = list(references)
        progress(f"building {FP32}")
        exact = build(Path(scratch, "fp32"), FP32, weights, Fold({}, {}, {}))
        progress(f"comparing {FP32}")
        report = compare(exact, references)
        require(report)
        require(Probe.of(probe, architecture.special).check(exact))
        chosen = exact
        if precision != FP32:
            progress("calibrating")
            wanted = lambda layer: precision.storage(layer).compensates  # noqa: E731
            seen = [calibrate(architecture, weights, samples, wanted)]
            # what an adapter makes of its own rows may be larger than what the base makes of them
            seen += [
                calibrate(architecture, MergedWeights(weights, one.adapter), one.samples, wanted) for one in members
            ]
            rounded = Folded(architecture, weights, joined(seen), precision.storage)
            progress(f"building {precision}")
            chosen = build(Path(scratch, "chosen"), precision, rounded, rounded.fold)
            progress(f"comparing {precision}")
            report = compare(chosen, references)
        kept = Probe.of(probe, architecture.special)
        kept.write(chosen.folder / manifest.PROBE)
        found = {"parity": report.as_dict(), "probe": kept.check(chosen).as_dict(), manifest.ADAPTERS: {}}
        seal(
            chosen.folder,
            {**chosen.manifest, **found},
            staging,
            prompt_lookup=precision.exact and report.lookup_is_lossless,
            provenance=origin.provenance,
        )
        reports = {}
        for one in members:
            progress(f"adding {one.name}")
            reports[one.name] = add_adapter(staging, one, architecture, weights)
    return reports


def base_hash(checkpoint: Path) -> str:
    """Of a base's weights, by which adapters and banks are told to belong together."""
    digests = [sha256(file) for file in weight_files(checkpoint)]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@dataclass(frozen=True)
class _Builder:
    """Assembles a bank without adapters in some precision."""

    architecture: Architecture
    tokenizer: Tokenizer
    origin: BundleMetadata
    config: dict[str, object]
    ranks: dict[str, int]
    base: str

    def __call__(self, folder: Path, precision: Precision, weights: Weights, fold: Fold) -> Generator:
        folder.mkdir()
        groups: dict[str, Group] = {}  # filled as the graphs are built
        plain = T5(self.architecture, weights, precision.storage)
        with_adapters = T5(self.architecture, weights, adapted(precision.storage, self.ranks, groups))
        made = assemble(folder, plain, str(precision), self.config, self.tokenizer, self.origin, with_adapters)
        BankLayout(AdapterSlots(self.ranks, groups), fold, self.base).write(folder)
        return made
