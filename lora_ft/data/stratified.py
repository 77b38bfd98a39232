"""Cut splits off the training rows, at random or stratified by label."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from lora_ft.core.errors import UsageError


def cut(
    count: int, shares: Mapping[str, float], seed: int, labels: Sequence[str] | None = None
) -> dict[str, list[int]]:
    """Return the row numbers of each split; rows that no split takes are in "train".

    Args:
        count: Number of rows.
        shares: Share of the rows for each split to cut off, from 0 to 1.
        seed: Seed of the shuffle before the cut.
        labels: Label of each row. With labels, each split has its share of every label.

    Raises:
        UsageError: A split has no rows, or a label has a single row and cannot be in several splits.
    """
    order = random.Random(seed).sample(range(count), count)
    sizes = {name: round(share * count) for name, share in shares.items()}
    for name, size in sizes.items():
        if size == 0:
            raise UsageError(
                f"data.split.{name} = {shares[name]:g} of {count:,} row{'s' * (count != 1)} leaves {name} empty",
                f"add rows, give a larger share, or set data.split.{name}=0",
            )
    if sum(sizes.values()) >= count:
        raise UsageError(f"data.split leaves no training rows of {count}", "give smaller shares")
    if labels is not None:
        return _stratified(order, sizes, shares, labels)
    out, start = {}, 0
    for name, size in sizes.items():
        out[name], start = order[start : start + size], start + size
    return out | {"train": order[start:]}


def oversampled(labels: Sequence[str], seed: int) -> list[int]:
    """Return row numbers, with rows repeated so that every label is as frequent as the commonest.

    Rows of a label are repeated equally often, except that some rows drawn at random come once more.

    Args:
        labels: Label of each row.
        seed: Seed of the draw.
    """
    groups = _grouped(range(len(labels)), labels)
    most, draw = max(map(len, groups.values()), default=0), random.Random(seed)
    numbers = list(range(len(labels)))
    for members in groups.values():
        whole, extra = divmod(most - len(members), len(members))
        numbers += members * whole + sorted(draw.sample(members, extra))
    return numbers


def _stratified(
    order: Sequence[int], sizes: Mapping[str, int], shares: Mapping[str, float], labels: Sequence[str]
) -> dict[str, list[int]]:
    """Distribute the rows of each label by the largest-remainder method, and keep a row of each label for training."""
    counts = Counter(labels)
    alone = [label for label in counts if counts[label] == 1]
    if alone:
        more = f" (and {len(alone) - 1} more)" if len(alone) > 1 else ""
        raise UsageError(
            f"the label {alone[0]!r}{more} has a single row, and data.split cuts splits that should each have one",
            "add rows of it, remove it, or name files in data.validation and data.test",
        )
    groups = _grouped(order, labels)
    free = {label: groups[label] for label in sorted(groups)}
    out: dict[str, list[int]] = {}
    for name, size in sizes.items():
        exact = {label: shares[name] * counts[label] for label in free}
        quota = {label: min(int(exact[label]), len(free[label]) - 1) for label in free}
        while sum(quota.values()) < size:
            able = [label for label in free if quota[label] < len(free[label]) - 1]
            if not able:
                break
            quota[max(able, key=lambda label: exact[label] - quota[label])] += 1
        selected = {i for label in free for i in free[label][: quota[label]]}
        out[name] = [i for i in order if i in selected]
        free = {label: rows[quota[label] :] for label, rows in free.items()}
    remaining = {i for rows in free.values() for i in rows}
    return out | {"train": [i for i in order if i in remaining]}


def _grouped(order: Iterable[int], labels: Sequence[str]) -> dict[str, list[int]]:
    """Return the row numbers of each label, in the order of `order`."""
    groups: dict[str, list[int]] = {}
    for i in order:
        groups.setdefault(labels[i], []).append(i)
    return groups
