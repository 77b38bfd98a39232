"""The verbs of bundles: `export` makes one, `verify` checks it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lora_ft.cli import hub
from lora_ft.cli.choices import Out, Overwrite, SplitChoice
from lora_ft.core.streams import say
from lora_ft.reports.screen import Screen


def export(
    model: Annotated[
        list[str],
        typer.Argument(metavar="RUN|ADAPTER|CHECKPOINT...", help="With --adapters any number of RUN or NAME=RUN."),
    ],
    out: Out,
    base: Annotated[str | None, typer.Option(help="Instead of the base that a run or an adapter names.")] = None,
    adapters: Annotated[
        bool, typer.Option("--adapters", help="One bundle of the runs' base and all their adapters: a bank.")
    ] = False,
    precision: Annotated[
        str,
        typer.Option(
            help="fp32, int8, w8, w4, int8-w8, int8-w4, int8-w4g128, for GPUs fp16 and bf16, a mixture "
            "(encoder=int8,decoder=w4,…), or auto: the fastest here that keeps its score."
        ),
    ] = "fp32",
    max_rouge_drop: Annotated[
        float, typer.Option(min=0, help="Points that a precision may lose of the task's evaluate.metric.")
    ] = 0.5,
    score_rows: Annotated[int, typer.Option(min=1, help="Rows of the task that precisions are scored on.")] = 200,
    force: Annotated[bool, typer.Option("--force", help="Publish despite a loss, or lacking settings.")] = False,
    layout: Annotated[
        str, typer.Option(help="bundle; optimum (also for transformers.js); single: one file that generates.")
    ] = "bundle",
    triton: Annotated[bool, typer.Option("--triton", help="With single: also a Triton model repository.")] = False,
    verify_rows: Annotated[int, typer.Option(min=1, help="Rows of the task compared with PyTorch.")] = 16,
    verify_split: Annotated[SplitChoice, typer.Option(help="Where rows are taken from.")] = SplitChoice.validation,
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY.pem", help="Sign the folder with a private EC key (extra: sign).")
    ] = None,
    overwrite: Overwrite = False,
    push_to_hub: hub.PushTo = None,
    private: hub.Private = False,
) -> None:
    """Export to ONNX: a bundle, compared with PyTorch before it is published."""
    from lora_ft.cli.tables import show_export, show_shelved
    from lora_ft.core.errors import UsageError
    from lora_ft.export_onnx import export as job

    if len(model) > 1 and not adapters:
        raise UsageError(f"{len(model)} models were given", "add --adapters to put runs into one bundle")
    if adapters and (layout != "bundle" or triton):
        raise UsageError("a bank has the layout bundle", "leave out --layout and --triton")
    destination = hub.destination(push_to_hub, private=private)
    if sign is not None:
        from lora_ft.deployment.signing import check_key

        check_key(sign)
        if destination:
            raise UsageError("pushing rewrites paths, so the signature would not hold", "leave out --sign or the push")
    if adapters:
        from lora_ft.bank import export_bank
        from lora_ft.deployment.bank_adapter import VerificationSettings

        checks = VerificationSettings(verify_rows, verify_split.value, score_rows, max_rouge_drop, force)
        with Screen() as screen:
            made = export_bank(
                model, out, base=base, precision=precision, checks=checks, overwrite=overwrite, progress=screen
            )
        show_shelved(made)
        _sign(out, sign)
        hub.upload(out, destination)
        return
    with Screen() as screen:
        done = job(
            model[0],
            out,
            base=base,
            precision=precision,
            max_drop=max_rouge_drop,
            score_rows=score_rows,
            force=force,
            layout=layout,
            triton=triton,
            verify_rows=verify_rows,
            verify_split=verify_split.value,
            overwrite=overwrite,
            progress=screen,
        )
    show_export(done)
    _sign(out, sign)
    hub.upload(out, destination)


def _sign(folder: Path, key: Path | None) -> None:
    """Sign an exported folder where that was asked for."""
    if key is not None:
        from lora_ft.deployment.signing import sign

        say(f"signed: {sign(folder, key)}")


def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    against: Annotated[
        str | None, typer.Option(metavar="RUN|CHECKPOINT", help="Also compare with PyTorch on rows of its task.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Of a bank, with --against: the adapter that is compared; else its base.")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows.")] = 16,
    split: Annotated[SplitChoice, typer.Option(help="Which rows.")] = SplitChoice.validation,
    key: Annotated[
        Path | None, typer.Option(metavar="PUB.pem", help="Also check the signature that --sign made.")
    ] = None,
) -> None:
    """Check a bundle's files, and that it still answers as when it was published.

    Hashes show damage, not who made a bundle: they do not cover README.md and the manifest. --key does.
    """
    from lora_ft.core.errors import UsageError
    from lora_ft.export.runtime.manifest import is_bundle
    from lora_ft.verify import verify as job

    if adapter and against is None:
        raise UsageError("--adapter goes with --against", "without either, all adapters are verified")
    if key is not None:
        from lora_ft.deployment.signing import check_signature

        check_signature(bundle, key)
        say(f"{bundle}: every file is signed by the owner of {key}")
        if not is_bundle(bundle) and (bundle / "lora-ft.json").is_file():  # another layout: only bundles answer here
            return
    found = job(bundle)
    say(f"{bundle}: {len(found.manifest['files'])} files are as published ({found.manifest['precision']})")
    if key is None:
        say("not checked: README.md, and who wrote the manifest and its hashes (--key checks a signature)")
    say(f"built-in sentences: {found.now}")
    for name, report in found.adapters.items():
        say(f"with the adapter {name}: {report}")
    if against is not None:
        from lora_ft.export_onnx import compare_again

        with Screen() as screen:
            report = compare_again(bundle, against, adapter=adapter, rows=rows, split=split.value, progress=screen)
        say(f"{split.value} rows of {against}: {report}")
