"""The cache memory of running requests, as lanes that share a limit.

Rows share a lane, and so a call, if their source lengths allow. A step reads the padding of shorter sources, so a lane
costs `Lane.padding` tokens of reading, and another lane costs another call. `_CALL` weighs the two. A request joins the
lane that is padded least. If every lane would be padded too much, it has one of its own. To widen a lane copies its
rows, so only a lane of few rows widens for a longer source.
"""

from __future__ import annotations

from lora_ft.export.runtime.job import Job
from lora_ft.export.runtime.lane import Encoded, Lane
from lora_ft.export.runtime.model import Model

# Padded source tokens whose reading takes as long as the fixed part of a step: 1.7 ms at 0.8 µs in int8.
_CALL = 2_048
_ROOM, _LARGE_ROOM = 64, 512  # least answer tokens of a lane, and most that it has room for from the start
_FEW = 2  # rows whose copying costs less than a call
_SPARE = 8  # rows whose memory a lane keeps even if they are unused
_FLOAT = 4  # bytes


class JobLane(Lane):
    """A lane that knows whose rows it has.

    Attributes:
        owners: Request and row number of each slot in use.
    """

    def __init__(self, model: Model, source_length: int, room: int, most: int) -> None:
        super().__init__(model, source_length, room, most)
        self.owners: list[tuple[Job, int]] = []

    @property
    def jobs(self) -> list[Job]:
        """The requests that have rows here."""
        return list(dict.fromkeys(job for job, _ in self.owners))

    @property
    def reserved_room(self) -> int:
        """Room that its rows may need until they have ended, in tokens."""
        return max((_room(job.longest) for job, _ in self.owners), default=_ROOM)


class Pool:
    """The lanes of a model.

    Args:
        model: Graphs of the bundle.
        rows: Maximum number of rows.
        limit: Maximum memory of all lanes, in bytes.

    Attributes:
        lanes: Lanes with rows.
    """

    def __init__(self, model: Model, rows: int, limit: int) -> None:
        self._model, self._most, self._limit = model, rows, limit
        heads, d_kv = model.head_shape
        self._token_bytes = len(model.cache_names) * heads * d_kv * _FLOAT
        self.lanes: list[JobLane] = []
        self._is_tidy = True  # until rows join or leave

    @property
    def rows(self) -> int:
        """Number of running rows."""
        return sum(lane.rows for lane in self.lanes)

    @property
    def size(self) -> int:
        """Memory of all lanes, in bytes."""
        return sum(lane.size for lane in self.lanes)

    def needed(self, job: Job) -> int:
        """Return the memory that a request may need alone, in bytes."""
        return self._bytes(job.rows, width_of(job.length), _room(job.longest))

    def place(self, job: Job) -> JobLane | None:
        """Return the lane for a request, possibly a new one, or None if the memory does not suffice now."""
        lane = self._find(job)
        if lane is None and any(not lane.owners for lane in self.lanes):
            self.lanes = [lane for lane in self.lanes if lane.owners]
            lane = self._find(job)
        return lane

    def _find(self, job: Job) -> JobLane | None:
        width, reserved = width_of(job.length), sum(map(self._reserved, self.lanes))
        fitting = [lane for lane in self.lanes if self._fits(lane, width)]
        for lane in sorted(fitting, key=lambda lane: (lane.source_length < width, abs(lane.source_length - width))):
            wide = max(lane.source_length, width)
            padding = lane.padding + lane.rows * (wide - lane.source_length) + job.rows * (wide - job.length)
            room = max(_room(job.longest), lane.reserved_room)
            needed = self._bytes(max(lane.touched, lane.rows + job.rows), wide, room)
            if padding <= _CALL and reserved - self._reserved(lane) + needed <= self._limit:
                return lane
        if reserved + self.needed(job) <= self._limit:
            return JobLane(self._model, width, min(_room(job.longest), _LARGE_ROOM), self._most)
        return None

    def _fits(self, lane: JobLane, width: int) -> bool:
        """Return whether a source may join. An empty lane should not be much wider, since it will be alone there."""
        if not lane.owners:
            return lane.source_length in (width, 2 * width)
        return lane.source_length >= width or lane.rows <= _FEW

    def join(self, job: Job, lane: JobLane, encoded: Encoded) -> None:
        """Let a request's rows join the lane that `place` returned."""
        width = width_of(job.length)
        if width > lane.source_length:
            lane.resize(source_length=width, room=lane.room)
        if lane not in self.lanes:
            self.lanes.append(lane)
        self._is_tidy = False
        job.lane = lane
        for number in range(job.rows):
            job.slots.append(lane.add(encoded))
            lane.owners.append((job, number))

    def leave(self, job: Job) -> None:
        """Free a request's rows."""
        lane = job.lane
        if lane is None:
            return
        self._is_tidy = False
        for slot in sorted(job.slots, reverse=True):
            lane.remove(slot)
            mover, number = lane.owners.pop()
            if slot < len(lane.owners):
                lane.owners[slot] = mover, number
                mover.slots[number] = slot
        job.lane, job.slots = None, []

    def grow(self, lane: JobLane, tokens: int) -> None:
        """Make room for rows of this many answer tokens."""
        if tokens > lane.room:
            lane.resize(source_length=lane.source_length, room=_room(tokens))

    def tidy(self) -> None:
        """Free empty lanes, join lanes that need not be two, and give back memory that fewer rows do not need.

        The last lane stays if it becomes empty, since the next request then finds its memory and its bound steps.
        """
        if self._is_tidy:  # as after most steps
            return
        self._is_tidy = True
        empty = [lane for lane in self.lanes if not lane.owners and lane.touched <= _SPARE]
        self.lanes = sorted((lane for lane in self.lanes if lane.owners), key=lambda lane: lane.source_length)
        if not self.lanes:
            self.lanes = empty[:1]
            self.forget_adapters()
            return
        for narrow, wide in zip(self.lanes, self.lanes[1:], strict=False):
            padding = narrow.padding + narrow.rows * (wide.source_length - narrow.source_length) + wide.padding
            room = max(narrow.reserved_room, wide.reserved_room)
            needed = self._bytes(max(wide.touched, narrow.rows + wide.rows), wide.source_length, room)
            elsewhere = sum(self._reserved(lane) for lane in self.lanes if lane not in (narrow, wide))
            if 2 * padding <= _CALL and elsewhere + needed <= self._limit:
                self._merge(narrow, wide)
        self.lanes = [lane for lane in self.lanes if lane.owners]
        for lane in self.lanes:
            width = width_of(int(lane.source_lengths[: lane.rows].max()))
            if lane.padding > _CALL and 2 * width <= lane.source_length:
                lane.resize(source_length=width, room=lane.room)
            elif lane.touched > max(4 * lane.rows, _SPARE):
                lane.resize(source_length=lane.source_length, room=lane.room)

    def forget_adapters(self) -> None:
        """Let go of adapters that no row has."""
        for lane in self.lanes:
            lane.forget_adapters()

    def _merge(self, narrow: JobLane, wide: JobLane) -> None:
        self.grow(wide, int(narrow.lengths[: narrow.rows].max()))
        for (job, number), slot in zip(narrow.owners, wide.absorb(narrow), strict=True):
            job.lane, job.slots[number] = wide, slot
            wide.owners.append((job, number))
        narrow.owners = []

    def _reserved(self, lane: JobLane) -> int:
        """Return the memory that a lane may need until its rows have ended, in bytes."""
        return self._bytes(lane.touched, lane.source_length, max(lane.reserved_room, lane.room))

    def _bytes(self, rows: int, source_length: int, room: int) -> int:
        return rows * (source_length + room) * self._token_bytes


def _room(tokens: int) -> int:
    """Return the room for a number of answer tokens."""
    return max(_ROOM, 1 << (tokens - 1).bit_length())


def width_of(length: int) -> int:
    """Return the padded length of a source: 64, 96, 128, 192 and so on, so that similar sources fit one another."""
    power = max(64, 1 << (length - 1).bit_length())
    return power * 3 // 4 if power > 64 and length <= power * 3 // 4 else power
