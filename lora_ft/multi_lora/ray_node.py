"""What a node of a cluster says of itself, and what of it a pack takes. Light: torch is asked about GPUs only."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version

from lora_ft.core.memory import device_memory
from lora_ft.multi_lora.storage import Storage
from lora_ft.training.compute_dtype import ComputeDtype, choose_compute_dtype


@dataclass(frozen=True)
class RayNode:
    """What a node says of itself.

    Attributes:
        host: its name.
        device: that packs would train on.
        memory: of that device, in bytes.
        precision: that it would choose.
        version: of lora-ft.
        token: that it found in the storage, or None.
    """

    host: str
    device: str
    memory: int
    precision: ComputeDtype
    version: str
    token: str | None


@dataclass(frozen=True)
class ResourceRequest:
    """What of a node a pack may use: CPUs, and the part of one GPU."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU{'s' * (self.cpus != 1)}" + (f" and {self.gpus:g} GPU" if self.gpus else "")


def inspect_node(place: str, name: str, asked: str, portion: ResourceRequest) -> RayNode:
    """Look at this node.

    Args:
        place, name: of the storage, and of a file in it.
        asked: train.precision of the tasks.
        portion: that a pack may use.
    """
    device = "cpu"
    if portion.gpus:
        from lora_ft.training.plan import training_device

        device = training_device()
    return RayNode(
        platform.node(),
        device,
        device_memory(device),
        choose_compute_dtype(asked, device),
        version("lora-ft"),
        Storage(place).get(name),
    )
