"""Train several adapters on one base, taking one step of all of them at a time."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lora_ft.core.energy import SOURCES, meter
from lora_ft.core.tokenizer import IGNORED
from lora_ft.multi_lora.batched_linear import TARGET
from lora_ft.multi_lora.dashboard import AdapterStatus, Dashboard
from lora_ft.multi_lora.group_member import MemberTrainer, failure_text, publish
from lora_ft.multi_lora.joint_batches import MemberBatch, concatenate, pack, plan_passes
from lora_ft.multi_lora.resume_point import AdapterState
from lora_ft.multi_lora.snapshots import Snapshot, Snapshots
from lora_ft.multi_lora.stacked_adamw import StackedAdamW
from lora_ft.multi_lora.stacked_weights import StackedWeights
from lora_ft.training.resume_keeper import ValidationStopped
from lora_ft.training.trainer import token_loss

_OVERHEAD = 10  # snapshots take at most one tenth of the time
_LONGEST = 600.0  # maximum time between snapshots, in seconds
_TICKS = 20  # number of ticks over which the step time is averaged


class AdapterGroup:
    """Group of adapters that trains until each member has finished, stopped early or failed.

    Args:
        model: Base model with the layers of `stack`.
        stack: Adapters of the members, in the order of the members.
        members: Members; `begin` has been called on each.
        snapshots: Receives the snapshots of the group.
        bf16: True to compute the forward pass under bf16 autocast.
        dashboard: Receives the status of all members.
        snapshot: Snapshot to resume from, or None. `members` lists its members, in the same order.
    """

    def __init__(
        self,
        model: Any,
        stack: StackedWeights,
        members: Sequence[MemberTrainer],
        snapshots: Snapshots,
        *,
        bf16: bool,
        dashboard: Dashboard,
        snapshot: Snapshot | None = None,
    ) -> None:
        self._model, self._stack, self._snapshots, self._bf16, self._dashboard = (
            model,
            stack,
            snapshots,
            bf16,
            dashboard,
        )
        self.members = list(members)
        self._optimizer = StackedAdamW(stack)
        self._tick = snapshot.tick if snapshot else 0
        self._closed: list[str] = list(snapshot.closed) if snapshot else []
        self.failed: dict[str, str] = dict(snapshot.failed) if snapshot else {}
        self._ended: list[AdapterStatus] = []
        self._seconds: deque[float] = deque(maxlen=_TICKS)
        self._saved_at, self._saving, self._saved_tick = time.perf_counter(), 0.0, snapshot.tick if snapshot else -1
        self._samples, self._joules = 0, meter(stack.device.type)
        self._joules_before = self._joules() if self._joules else 0.0
        if snapshot:
            stack.restore(snapshot.rows["weights"])
            self._optimizer.means.copy_(snapshot.rows["means"])
            self._optimizer.squares.copy_(snapshot.rows["squares"])

    @property
    def steps(self) -> int:
        """Maximum number of remaining steps over all members."""
        return max((member.steps_left for member in self.members), default=0)

    def step(self) -> None:
        """Take one step of every member. Finished members leave, and their runs are published."""
        began = time.perf_counter()
        losses, norms = self._train()
        for member, loss, norm in zip(self.members, losses, norms, strict=True):
            member.check(loss, norm)
            if not member.failure:
                member.stepped(loss, norm)
        self._seconds.append(time.perf_counter() - began)
        self._settle()

    def resume(self) -> None:
        """Settle members whose validation a stop left out, as a tick of its own, since it ends with a snapshot."""
        if not all(member.settled for member in self.members):
            self._settle()

    def _settle(self) -> None:
        """End a tick: log and evaluate the members that stepped, and publish those that finished.

        If a stop ends a validation, the snapshot of the tick records which members are still to be settled.
        """
        self._tick += 1
        for number, member in enumerate(self.members):
            if member.failure or member.settled:
                continue
            try:
                self._attempt(
                    member,
                    lambda number=number, member=member: member.settle(
                        lambda: self._route_rows(number), lambda: self._stack.read(number)
                    ),
                )
            except ValidationStopped:
                break
        if any(member.stopped for member in self.members):
            self._remove_finished()
        elif self._is_due() and self._may_save():
            self.save()
        self._dashboard.rows(self.rows())

    def rows(self) -> list[AdapterStatus]:
        """Return the status of every member; members that have left come last."""
        seconds = sum(self._seconds) / max(len(self._seconds), 1)
        return [*(member.row(seconds) for member in self.members), *self._ended]

    def _train(self) -> tuple[list[float], list[float]]:
        """Take a step of all members and return the loss and the gradient norm of each."""
        self._model.train()
        self._stack.gradients.zero_()
        windows = [member.window() for member in self.members]
        tokens = [int(sum((batch["labels"] != IGNORED).sum() for batch in window)) for window in windows]
        self._samples += sum(len(batch["labels"]) for window in windows for batch in window)
        losses = [0.0] * len(windows)
        for i in range(max(map(len, windows))):
            shares = [MemberBatch(number, window[i]) for number, window in enumerate(windows) if i < len(window)]
            passes = [shares] if self._stack.packing else plan_passes(shares, self._stack.device.type)
            for pass_shares in passes:
                for share, loss in zip(pass_shares, self._backward(pass_shares, tokens), strict=True):
                    losses[share.adapter] += loss
        norms: list[float] = self._optimizer.step([member.next_step() for member in self.members]).tolist()
        return losses, norms

    def _backward(self, shares: Sequence[MemberBatch], tokens: Sequence[int]) -> list[float]:
        """Accumulate the gradients of one pass and return the members' losses, which are independent of each other."""
        device = self._stack.device
        batch, labels, sizes = self._pack(shares) if self._stack.packing else self._concatenate(shares)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._bf16):
            if (states := self._read_states(shares)) is not None:
                batch["encoder_outputs"] = (states,)
            outputs = self._model(**batch, use_cache=False)
            losses = [
                token_loss(
                    _Outputs(logits),
                    targets,
                    tokens[share.adapter],
                    smoothing=self.members[share.adapter].task.train.label_smoothing_factor,
                )
                for share, logits, targets in zip(shares, outputs.logits.split(sizes), labels, strict=True)
            ]
        together = torch.stack(losses)
        with warnings.catch_warnings():  # gradients are rows of a matrix, like their weights
            warnings.filterwarnings("ignore", "grad and param do not obey the gradient layout contract")
            together.sum().backward()
        values: list[float] = together.detach().tolist()
        return values

    def _concatenate(self, shares: Sequence[MemberBatch]) -> tuple[dict[str, Any], Sequence[Tensor], list[int]]:
        """Route a padded batch, and return it with the labels and the rows of each share."""
        device, rows = self._stack.device, [share.rows for share in shares]
        batch: dict[str, Any] = concatenate(shares, device)
        labels = batch.pop("labels").split(rows)
        counts = [(share.adapter, share.rows) for share in shares]
        drops = [self.members[share.adapter].drop(share.batch) for share in shares]
        self._stack.route.send(counts, len(self.members), device, drops)
        return batch, labels, rows

    def _pack(self, shares: Sequence[MemberBatch]) -> tuple[dict[str, Any], Sequence[Tensor], list[int]]:
        """Route a packed batch, and return it with the labels and the number of target tokens of each share."""
        batch: dict[str, Any]
        batch, spans = pack(shares)
        del batch["labels"]
        self._stack.route.send_packed([share.adapter for share in shares], spans)
        labels = [share.batch["labels"] for share in shares]
        return batch, labels, [span.stop - span.start for span in spans[TARGET]]

    def _read_states(self, shares: Sequence[MemberBatch]) -> Tensor | None:
        """Return the encoder's states for a pass, or None if the pass runs the encoder.

        Returns:
            [rows, width, d], or packed [tokens, d].
        """
        width = max(share.lengths[0] for share in shares)
        parts = []
        for share in shares:
            kept = self.members[share.adapter].states
            if kept is None:
                return None  # then no member has states
            missing = 0 if self._stack.packing else width - share.lengths[0]
            parts.append(pad(kept.read(share.batch), (0, 0, 0, missing)))
        return torch.cat(parts)

    def _route_rows(self, number: int) -> None:
        self._stack.route.send_all(number)

    def _attempt(self, member: MemberTrainer, work: Any) -> None:
        """Run an action of one member. An error ends that member alone; a full disk or a stop ends all."""
        try:
            work()
        except (OSError, ValidationStopped):
            raise
        except Exception as error:
            member.failure = failure_text(error)

    def _remove_finished(self) -> None:
        """Remove finished members.

        Save a snapshot without them before publishing their runs, so that a killed process can repeat the publish step.
        """
        leaving = [member for member in self.members if member.stopped]
        for number, member in enumerate(self.members):
            if member in leaving and not member.failure:
                self._attempt(member, lambda number=number, member=member: self._close(number, member))
        for member in leaving:
            if member.failure:
                self.failed[member.name] = member.failure
                self._dashboard.note(f"{member.name} failed: {member.failure}")
            else:
                self._closed.append(member.name)
            early = "" if member.state.global_step >= member.plan.steps else "stopped early"
            end = "paused" if member.paused else member.failure or early or "finished"
            self._ended.append(member.row(0.0, end))
        staying = [number for number, member in enumerate(self.members) if member not in leaving]
        self.members = [self.members[number] for number in staying]
        self._stack.keep(staying)
        self._optimizer.keep(staying)
        self.save()
        for member in leaving:
            if not member.failure:
                publish(member.task, member.folder)

    def _close(self, number: int, member: MemberTrainer) -> None:
        """Write the files of a member that leaves: its run, or the state from which it continues later."""
        if member.paused:
            member.pause(self._tensors(number))
        else:
            member.close(self._tensors(number), self._share(member))

    def _tensors(self, number: int) -> AdapterState:
        """Return copies of a member's weights and optimizer moments."""
        means, squares = self._optimizer.means, self._optimizer.squares
        return AdapterState(
            self._stack.read(number), self._stack.read(number, means), self._stack.read(number, squares)
        )

    def _share(self, member: MemberTrainer) -> dict[str, Any]:
        """Return metrics for a member's share of the group and of its energy, divided by rows."""
        share = (member.state.global_step - member.resumed) * member.plan.global_batch / max(self._samples, 1)
        energy = None
        if self._joules:
            joules = (self._joules() - self._joules_before) * share
            source = f"{SOURCES[member.plan.device]}; this adapter's share by rows"
            energy = {"joules": round(joules, 1), "source": source}
        return {"pack": {"adapters": len(self.members), "share": round(share, 4)}, "energy": energy}

    def _is_due(self) -> bool:
        """Return whether a process killed now would lose an evaluation or minutes of training."""
        return any(member.due for member in self.members) or time.perf_counter() - self._saved_at >= _LONGEST

    def _may_save(self) -> bool:
        return time.perf_counter() - self._saved_at >= _OVERHEAD * self._saving

    def save(self) -> None:
        """Write a snapshot, unless one of this tick exists."""
        if self._saved_tick == self._tick:
            return
        began = time.perf_counter()
        rows = {"weights": self._stack.weights, "means": self._optimizer.means, "squares": self._optimizer.squares}
        members: dict[str, dict[str, Any] | None] = {member.name: member.export() for member in self.members}
        cpu = {name: tensor.cpu() for name, tensor in rows.items()}
        self._snapshots.write(Snapshot(self._tick, cpu, members, self._closed, self.failed))
        for member in self.members:
            member.due = False
            member.prune()
        self._saved_tick, self._saved_at = self._tick, time.perf_counter()
        self._saving = self._saved_at - began


class _Outputs:
    """Model outputs of one adapter's rows."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits
