"""Describe a node of a cluster, and the resources of a group on it. Torch is imported only if GPUs are requested."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version

from lora_ft.core.memory import device_memory
from lora_ft.multi_lora.storage import Storage
from lora_ft.training.compute_dtype import ComputeDtype, choose_compute_dtype


@dataclass(frozen=True)
class RayNode:
    """Description of a node.

    Attributes:
        host: Host name.
        device: Device on which groups would train.
        memory: Memory of that device, in bytes.
        precision: Precision that the node would choose.
        version: Version of lora-ft.
        token: Token that the node read from the storage, or None.
    """

    host: str
    device: str
    memory: int
    precision: ComputeDtype
    version: str
    token: str | None


@dataclass(frozen=True)
class ResourceRequest:
    """Resources of one adapter group on a node: CPUs, and a fraction of one GPU."""

    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU{'s' * (self.cpus != 1)}" + (f" and {self.gpus:g} GPU" if self.gpus else "")


def inspect_node(place: str, name: str, precision: str, request: ResourceRequest) -> RayNode:
    """Return a description of this node.

    Args:
        place: Folder or URL of the storage.
        name: Name of a file in the storage whose content is the token.
        precision: Setting train.precision of the tasks.
        request: Resources of one adapter group.
    """
    device = "cpu"
    if request.gpus:
        from lora_ft.training.plan import training_device

        device = training_device()
    return RayNode(
        platform.node(),
        device,
        device_memory(device),
        choose_compute_dtype(precision, device),
        version("lora-ft"),
        Storage(place).get(name),
    )
