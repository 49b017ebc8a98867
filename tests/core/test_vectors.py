"""Vectors cut and quantised: what is promised of them on disk."""

from __future__ import annotations

import numpy as np
import pytest

from mme5core.vectors import Int8Calibration, cut, pack_bits


def unit(count: int, width: int) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_cut_vector_has_unit_length_and_the_direction_of_its_first_columns() -> None:
    vectors = unit(20, 16)
    short = cut(vectors, 5)
    assert short.shape == (20, 5) and short.dtype == np.float32
    assert np.allclose(np.linalg.norm(short, axis=1), 1, atol=1e-6)
    assert np.allclose(short * np.linalg.norm(vectors[:, :5], axis=1, keepdims=True), vectors[:, :5], atol=1e-6)
    assert np.array_equal(cut(vectors, 16), vectors)


def test_a_vector_without_direction_is_zero_and_not_nan() -> None:
    assert np.array_equal(cut(np.array([[0.0, 0.0, 1.0]], dtype=np.float32), 2), np.zeros((1, 2), np.float32))


@pytest.mark.parametrize("dim", [0, 17])
def test_a_width_that_does_not_fit_is_refused(dim: int) -> None:
    with pytest.raises(ValueError, match=f"dim={dim} does not fit vectors of width 16"):
        cut(unit(2, 16), dim)


def test_int8_codes_are_within_half_a_step_and_use_the_whole_range() -> None:
    vectors = unit(300, 8)
    calibration = Int8Calibration.fit([vectors[:100], vectors[:0], vectors[100:]])
    codes = calibration.encode(vectors)
    assert codes.dtype == np.int8 and (codes.min(axis=0) == -128).all() and (codes.max(axis=0) == 127).all()
    assert (np.abs(calibration.decode(codes) - vectors) <= calibration.step / 2 + 1e-6).all()
    # Beyond the range that was seen a code does not wrap around.
    assert (calibration.encode(np.full((1, 8), 9.0, np.float32)) == 127).all()


def test_a_column_that_never_changes_survives() -> None:
    vectors = np.full((4, 3), 0.5, dtype=np.float32)
    calibration = Int8Calibration.fit([vectors])
    assert np.array_equal(calibration.decode(calibration.encode(vectors)), vectors)


def test_without_vectors_there_is_nothing_to_calibrate_on() -> None:
    with pytest.raises(ValueError, match="no vectors to calibrate on"):
        Int8Calibration.fit([np.zeros((0, 4), np.float32)])


def test_bits_are_the_signs_in_the_order_of_the_columns() -> None:
    vectors = unit(10, 20)
    packed = pack_bits(vectors)
    assert packed.shape == (10, 3) and packed.dtype == np.uint8
    assert np.array_equal(np.unpackbits(packed, axis=1)[:, :20], (vectors > 0).astype(np.uint8))


def test_calibrations_that_differ_in_their_range_alone_have_other_digests() -> None:
    one, other = (Int8Calibration.fit([np.array([[0.0], [top]], np.float32)]) for top in (1.0, 2.0))
    assert one.low == other.low and one.digest() != other.digest()
