"""Rounded sizes hold what they are for, waste less than half, and are few."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lora_ft.export.runtime.bucket import ROOM, WIDTH, Bucket

sizes = st.tuples(st.integers(1, 300), st.integers(1, 5000), st.integers(1, 5000))


@given(sizes)
def test_a_bucket_holds_its_sizes_and_wastes_less_than_half(size: tuple[int, int, int]) -> None:
    bucket = Bucket.of(*size)
    for least, wanted, rounded in zip((1, ROOM, WIDTH), size, (bucket.rows, bucket.room, bucket.width), strict=True):
        assert wanted <= rounded < 2 * max(wanted, least)


@given(sizes)
def test_all_sizes_within_a_bucket_share_it(size: tuple[int, int, int]) -> None:
    bucket = Bucket.of(*size)
    assert Bucket.of(bucket.rows, bucket.room, bucket.width) == bucket
    half = bucket.rows // 2 + 1, bucket.room // 2 + 1, bucket.width // 2 + 1
    assert Bucket.of(*half) == bucket


@given(sizes)
def test_a_grown_bucket_is_that_of_twice_the_room(size: tuple[int, int, int]) -> None:
    bucket = Bucket.of(*size)
    assert bucket.grown() == Bucket.of(bucket.rows, bucket.room + 1, bucket.width)
