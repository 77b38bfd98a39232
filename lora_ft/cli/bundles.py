"""The commands that write and check models to deploy: `merge`, `export`, `verify`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lora_ft.cli import hub
from lora_ft.cli.options import (
    Adapter,
    Base,
    DtypeChoice,
    Json,
    MaxRougeDrop,
    Out,
    Overwrite,
    Quiet,
    ScoreRows,
    Split,
    SplitChoice,
    VerifyRows,
)
from lora_ft.cli.results import show, show_json
from lora_ft.core.streams import say
from lora_ft.export.precision import NAMED
from lora_ft.reports.screen import Screen

if TYPE_CHECKING:
    from lora_ft.merge import Merged
    from lora_ft.verify import Verified


def merge(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run, or adapter folder saved by PEFT.")],
    out: Out,
    base: Base = None,
    dtype: Annotated[DtypeChoice, typer.Option(help="Stored number format; merging is in fp32.")] = DtypeChoice.fp32,
    overwrite: Overwrite = False,
    push_to_hub: hub.PushTo = None,
    private: hub.Private = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Merge a run's adapter into its base.

    The result is a transformers checkpoint that needs no PEFT.
    """
    from lora_ft.merge import merge as merge_adapter
    from lora_ft.models.peft_adapter import open_adapter

    destination = hub.destination(push_to_hub, private=private)
    with Screen(quiet=quiet) as screen:
        report = merge_adapter(
            open_adapter(run), out, base=base, dtype=dtype.value, overwrite=overwrite, progress=screen
        )
    show(report, _show_merge, as_json=as_json)
    hub.upload(out, destination, as_json=as_json, quiet=quiet)


def _show_merge(report: Merged) -> None:
    proof = (
        f"merged and adapter logits differ by at most {report.difference:.2g} on {report.rows} rows"
        if report.rows
        else "all weights are the run's own"
    )
    say(f"{report.out}: {report.bytes / 1e6:.1f} MB; {proof}")


def export(
    model: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...", help="Run, adapter or checkpoint. With --adapters: any number of [NAME=]RUN."
        ),
    ],
    out: Out,
    base: Base = None,
    adapters: Annotated[
        bool, typer.Option("--adapters", help="Export a bank: one base and the adapters of all runs.")
    ] = False,
    precision: Annotated[
        str,
        typer.Option(
            help=f"Weight format. {', '.join(NAMED)}. Or a mixture; int8-w4 is {NAMED['int8-w4'].spelled_out()}. "
            "auto: the fastest on this machine within --max-rouge-drop."
        ),
    ] = "fp32",
    max_rouge_drop: MaxRougeDrop = 0.5,
    score_rows: ScoreRows = 200,
    force: Annotated[bool, typer.Option("--force", help="Publish despite a larger drop or missing settings.")] = False,
    layout: Annotated[
        str, typer.Option(help="bundle, optimum or single. optimum also runs in transformers.js; single is one file.")
    ] = "bundle",
    triton: Annotated[bool, typer.Option("--triton", help="With single: also a Triton model repository.")] = False,
    drafts: Annotated[
        bool, typer.Option("--drafts", help="Include phrases of training answers to draft from.")
    ] = False,
    verify_rows: VerifyRows = 16,
    verify_split: Annotated[SplitChoice, typer.Option(help="Split of these rows.")] = SplitChoice.validation,
    sign: Annotated[
        Path | None, typer.Option(metavar="KEY.pem", help="Sign with a private EC key (extra: sign).")
    ] = None,
    overwrite: Overwrite = False,
    push_to_hub: hub.PushTo = None,
    private: hub.Private = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Export to ONNX, verified against PyTorch first."""
    from lora_ft.core.errors import UsageError

    if len(model) > 1 and not adapters:
        raise UsageError(f"export takes one model (got {len(model)})", "add --adapters to export a bank")
    if adapters and triton:
        raise UsageError(
            "a bank cannot be a Triton repository: its runtime passes the adapters to the graphs, and Triton has no "
            "such step",
            "export each run with --layout single --triton, or serve the bank with lora-ft serve",
        )
    if adapters and layout != "bundle":
        raise UsageError("--adapters requires --layout bundle", "leave out --layout")
    if adapters and drafts:
        raise UsageError("--adapters does not support --drafts", "leave out --drafts")
    destination = hub.destination(push_to_hub, private=private)
    if sign is not None:
        _check_signing(sign, pushed=destination is not None)
    shared: dict[str, Any] = {"base": base, "precision": precision, "overwrite": overwrite}
    if adapters:
        gate = (verify_rows, verify_split.value, score_rows, max_rouge_drop, force)
        _export_bank(model, out, shared, gate, as_json=as_json, quiet=quiet)
    else:
        limits = {"max_drop": max_rouge_drop, "score_rows": score_rows, "force": force}
        rows = {"verify_rows": verify_rows, "verify_split": verify_split.value}
        _export_model(
            model[0],
            out,
            {**shared, **limits, **rows, "layout": layout, "triton": triton, "drafts": drafts},
            as_json=as_json,
            quiet=quiet,
        )
    if sign is not None:
        from lora_ft.deployment.signing import sign as sign_folder

        signature = sign_folder(out, sign)
        if not as_json:
            say(f"signed: {signature}")
    hub.upload(out, destination, as_json=as_json, quiet=quiet)


def _check_signing(key: Path, *, pushed: bool) -> None:
    """Raise UsageError if the key cannot sign, or if pushing would break the signature."""
    from lora_ft.core.errors import UsageError
    from lora_ft.deployment.signing import check_key

    check_key(key)
    if pushed:
        raise UsageError("pushing rewrites paths, which breaks the signature", "leave out --sign or --push-to-hub")


def _export_bank(
    runs: list[str], out: Path, options: dict[str, Any], gate: tuple[Any, ...], *, as_json: bool, quiet: bool
) -> None:
    from lora_ft.bank import export_bank
    from lora_ft.cli.tables import show_bank
    from lora_ft.deployment.bank_adapter import VerificationSettings

    with Screen(quiet=quiet) as screen:
        result = export_bank(runs, out, checks=VerificationSettings(*gate), progress=screen, **options)
    show(result, show_bank, as_json=as_json)


def _export_model(model: str, out: Path, options: dict[str, Any], *, as_json: bool, quiet: bool) -> None:
    from lora_ft.cli.tables import show_export
    from lora_ft.export_onnx import export_onnx as export_model

    with Screen(quiet=quiet) as screen:
        result = export_model(model, out, progress=screen, **options)
    show(result, show_export, as_json=as_json)


def verify(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="Exported folder.")],
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Also compare with this run or checkpoint in PyTorch.")
    ] = None,
    adapter: Adapter = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the task compared with PyTorch.")] = 16,
    split: Split = SplitChoice.validation,
    key: Annotated[
        Path | None, typer.Option(metavar="PUB.pem", help="Also check the signature made by export --sign.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check the files and the answers of a bundle.

    Hashes detect damage, but not forgery, and cover neither README.md nor the manifest. --key covers all files.
    """
    from lora_ft.core.errors import UsageError
    from lora_ft.export.runtime.manifest import LAYOUT_RECORD, is_bundle
    from lora_ft.verify import verify as verify_bundle

    if adapter and against is None:
        raise UsageError("--adapter requires --against", "add --against, or leave it out to verify all adapters")
    if key is not None:
        from lora_ft.deployment.signing import check_signature

        check_signature(bundle, key)
        if not as_json:
            say(f"{bundle}: every file is signed by the owner of {key}")
        if not is_bundle(bundle) and (bundle / LAYOUT_RECORD).is_file():  # other layouts than bundles cannot run here
            return
    verified, comparison = verify_bundle(bundle), None
    if against is not None:
        from lora_ft.export_onnx import compare_again

        with Screen(quiet=quiet) as screen:
            comparison = compare_again(bundle, against, adapter=adapter, rows=rows, split=split.value, progress=screen)
    if as_json:
        show_json({"bundle": verified, "against": comparison})
        return
    _show_verified(bundle, verified, signed=key is not None)
    if comparison is not None:
        say(f"{split.value} rows of {against}: {comparison}")


def _show_verified(bundle: Path, verified: Verified, *, signed: bool) -> None:
    say(f"{bundle}: {len(verified.manifest['files'])} files are as published ({verified.manifest['precision']})")
    if not signed:
        say("not checked: README.md, and the origin of the manifest (--key checks a signature)")
    say(f"built-in sentences: {verified.now}")
    for name, report in verified.adapters.items():
        say(f"adapter {name}: {report}")
