"""The verb `doctor`: facts about the machine and the installation, for a bug report."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from importlib.util import find_spec
from pathlib import Path

import onnxruntime

from lora_ft.core.hardware import allowed_cpus, cpu_generation, cpu_name
from lora_ft.core.memory import allowed_memory
from lora_ft.export.runtime.kernel import VARIABLE

_PACKAGES = (
    "lora-ft",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "evaluate",
    "rouge-score",
    "sacrebleu",
    "nltk",
    "tokenizers",
    "safetensors",
    "onnx",
    "optimum-onnx",
    "numpy",
    "pydantic",
    "huggingface-hub",
    "traceforge-title-model",
)
_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16")


def examine() -> dict[str, str]:
    """Return facts about this machine and installation, in display order."""
    return environment() | {"hub": _hub(), "offline base": _offline()}


def environment() -> dict[str, str]:
    """Return the facts that measurements depend on."""
    return {
        "python": f"{platform.python_version()} ({platform.system()} {platform.machine()})",
        **{name: _version(name) for name in _PACKAGES},
        "lora-ft-kernels": _kernels(),
        "onnxruntime": _onnxruntime(),
        "cpu": cpu_name(),
        "cpu generation": cpu_generation(),
        "cpu flags": " ".join(flag for flag in _FLAGS if flag in _cpu_flags()) or "none relevant",
        "cores": f"{allowed_cpus()} allowed of {os.cpu_count()}",
        "frequency governor": _first_line(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")) or "unknown",
        "container": _container(),
        "memory": _memory(),
        "gpus": _gpus(),
        "onnxruntime providers": ", ".join(onnxruntime.get_available_providers()),
        "commit": _commit(),
    }


def stolen() -> float:
    """Return the time that the host gave to other virtual machines since boot, in core-seconds; 0 if unknown."""
    fields = _first_line(Path("/proc/stat")).split()
    return int(fields[8]) / os.sysconf("SC_CLK_TCK") if len(fields) > 8 else 0.0


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _kernels() -> str:
    """Return the version of the optional decoder step, and whether it is switched off."""
    version = _version("lora-ft-kernels")
    return f"{version} (off: {VARIABLE} is 0)" if os.environ.get(VARIABLE) == "0" else version


def _onnxruntime() -> str:
    """Return the version and the package. All onnxruntime packages share one module: the last one installed wins."""
    package = onnxruntime.package_name
    return onnxruntime.__version__ + (f" ({package})" if package != "onnxruntime" else "")


def _cpu_flags() -> frozenset[str]:
    from lora_ft.training.compute_dtype import cpu_flags

    return cpu_flags()


def _first_line(path: Path) -> str:
    try:
        return next(iter(path.read_text(encoding="utf-8").splitlines()), "")
    except OSError:
        return ""


def _container() -> str:
    """Return the kind of container that this process runs in, if it can be detected."""
    if Path("/.dockerenv").exists():
        return "docker"
    if Path("/run/.containerenv").exists():
        return "podman"
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        return "kubernetes"
    return os.environ.get("container", "none detected")  # noqa: SIM112  (lower case, as systemd sets it)


def _commit() -> str:
    """Return the commit of this source tree, with a + if files differ from it."""
    import subprocess

    def git(*arguments: str) -> str:
        process = subprocess.run(
            ["git", "-C", str(Path(__file__).parents[1]), *arguments], capture_output=True, text=True, check=False
        )
        return process.stdout.strip() if process.returncode == 0 else ""

    try:
        if not (Path(__file__).parents[1] / ".git").exists():
            return "no source tree"
        return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ("+" if git("status", "--porcelain") else "")
    except OSError:
        return "unknown (git is not installed)"


def _memory() -> str:
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    except OSError:
        return "unknown"
    total, free = (int(fields[key].split()[0]) / 2**20 for key in ("MemTotal", "MemAvailable"))
    allowed = allowed_memory() / 2**30
    limit = f", {allowed:.1f} GiB allowed" if allowed < 0.99 * total else ""
    return f"{total:.1f} GiB, {free:.1f} GiB available{limit}"


def _gpus() -> str:
    if find_spec("torch") is None:
        return "unknown (torch is not installed)"
    import torch

    if not torch.cuda.is_available():
        return "none"
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _hub() -> str:
    if find_spec("huggingface_hub") is None:
        return "unknown (huggingface-hub is not installed)"
    from lora_ft.core.hub import hub_trouble

    return hub_trouble() or "answers"


def _offline() -> str:
    from lora_ft.models.bases import cache_folder, is_offline_cached

    if is_offline_cached():
        return f"cached in {cache_folder()}"
    return "not cached; its package is " + ("installed" if find_spec("traceforge_title_model") else "not installed")
