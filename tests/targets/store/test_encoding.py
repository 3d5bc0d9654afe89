"""Quantising on tensors: what NumPy said before, to the last bit, and the same on every device."""

import itertools
import math

import numpy as np
import pytest
import torch

from common.targets.store.encoding import UnstorableError, decodable, encode

GENERATOR = torch.Generator().manual_seed(0)
COMMON = torch.randn(5000, 24, generator=GENERATOR)
FEATURES = {
    "common": COMMON,
    "outliers": torch.where(torch.rand(5000, 24, generator=GENERATOR) < 1e-3, 300 * COMMON, COMMON),
    "flat channels": torch.where(torch.arange(24) % 3 == 0, torch.arange(24.0), COMMON),
    "nearly flat": 1000 + 1e-3 * COMMON,
    "tiny": 1e-20 * COMMON,
    "zeros": torch.zeros(7, 3),
    "one row": COMMON[:1],
    "not contiguous": COMMON.T,
    "no row": COMMON[:0],
}


def int8_channel(values: np.ndarray) -> dict[str, np.ndarray]:
    """As stores made before were written, but for a step of channels that hardly change."""
    step = values.std(axis=0, dtype=np.float64).astype(np.float32) / 16
    size = np.sqrt(np.square(values, dtype=np.float64).mean(axis=0)).astype(np.float32)
    flat = step <= size * np.float32(1e-6)
    step[flat] = size[flat] / 126
    step[step == 0] = 1.0
    steps = values / step
    largest = np.abs(steps).max(axis=1, initial=0.0)
    exponent = np.ceil(np.log2(np.maximum(largest / 127, 1.0))).astype(np.uint8)
    codes = np.rint(np.ldexp(steps, -exponent.astype(np.int32)[:, None]))
    return {"": codes.astype(np.int8), ".channel_scale": step, ".row_exponent": exponent}


def int8_row(values: np.ndarray) -> dict[str, np.ndarray]:
    """As stores made before were written, but that nothing shares the code of a larger number, its row's largest."""
    scale = np.abs(values).max(axis=1, initial=0.0) / 127
    scale = np.nextafter(scale.astype(np.float16), np.float16(np.inf))
    codes = np.rint(values / scale.astype(np.float32)[:, None])
    codes -= (codes == codes.max(axis=1, keepdims=True)) & (values < values.max(axis=1, keepdims=True))
    return {"": codes.astype(np.int8), ".row_scale": scale}


BEFORE = {
    "int8_channel": int8_channel,
    "int8_row": int8_row,
    "float16": lambda values: {"": values.astype(np.float16)},
    "float32": lambda values: {"": values},
}


@pytest.mark.parametrize("encoding", list(BEFORE))
@pytest.mark.parametrize("name", [name for name in FEATURES if name != "no row"])
def test_arrays_are_those_of_numpy(encoding, name):
    values = FEATURES[name]
    found, expected = encode(values, encoding, "a"), BEFORE[encoding](values.numpy())
    assert found.keys() == expected.keys()
    for suffix, array in expected.items():
        assert found[suffix].dtype == array.dtype
        if suffix == ".channel_scale":
            np.testing.assert_array_max_ulp(found[suffix], array, maxulp=1)
        elif suffix == "" and encoding == "int8_channel":
            # Where a step differs in its last bit, a value in the middle of two codes may go either way.
            assert np.abs(found[suffix].astype(int) - array).max() <= 1
            assert (found[suffix] != array).mean() < 1e-3
        else:
            np.testing.assert_array_equal(found[suffix], array)


@pytest.mark.parametrize("encoding", list(BEFORE))
def test_features_of_no_row_are_stored(encoding):
    assert decodable(encode(FEATURES["no row"], encoding, "a")).decode().shape == (0, 24)


@pytest.mark.parametrize("steps", [3, 16, 40])
def test_the_error_is_half_a_step(steps):
    arrays = encode(COMMON, "int8_channel", "a", steps)
    error = (decodable(arrays).decode() - COMMON).abs() / COMMON.std(0)
    kept = torch.from_numpy(arrays[".row_exponent"] == 0)
    assert kept.any()
    assert error[kept].max() == pytest.approx(0.5 / steps, rel=0.02)


@pytest.mark.parametrize("offset", [-100.0, 0.0, 30.0])
def test_every_voxel_keeps_its_likeliest_class_in_one_byte(offset):
    """Logits of which the two largest are mostly nearer to each other than a step."""
    logits = offset + 10 * torch.randn(20_000, 20, generator=torch.Generator().manual_seed(1))
    second = torch.randint(20, (len(logits), 1), generator=torch.Generator().manual_seed(2))
    logits.scatter_(1, second, logits.amax(1, keepdim=True) - 0.001 - 0.01 * torch.rand(len(logits), 1))
    arrays = encode(logits, "int8_row", "logits")
    decoded = decodable(arrays).decode()
    assert torch.equal(decoded.argmax(1), logits.argmax(1))
    assert (decoded == decoded.amax(1, keepdim=True)).sum(1).max() == 1
    steps = (decoded - logits).abs() / torch.from_numpy(arrays[".row_scale"]).float()[:, None]
    assert steps.max() < 1.51


@pytest.mark.parametrize("encoding", list(BEFORE))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(encoding, bad):
    values = COMMON.clone()
    values[4321, 5] = bad
    with pytest.raises(UnstorableError, match="layer: the teacher produced NaN or infinity"):
        encode(values, encoding, "layer")


@pytest.mark.parametrize(("encoding", "value"), [("float16", 65505.0), ("int8_row", 127 * 65520.0)])
def test_what_is_too_large_is_refused(encoding, value):
    values = COMMON.clone()
    values[4321, 5] = -value
    with pytest.raises(UnstorableError, match=r"layer: .*too large for"):
        encode(values, encoding, "layer")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_encodes_the_same():
    for encoding, values in itertools.product(BEFORE, FEATURES.values()):
        found, expected = (encode(values.to(device), encoding, "a") for device in ("cuda", "cpu"))
        # Sums are added up in another order there, so a step may differ in its last bit, a code by one, and a row that
        # just fits its exponent may get the next one.
        ours, theirs = decodable(found), decodable(expected)
        step = 2.0 * (ours.channel_scale if ours.channel_scale is not None else torch.ones(1))
        step = step * (1.0 if ours.row_scale is None else ours.row_scale.float()[:, None])
        allowed = step if encoding.startswith("int8") else 1e-6 * theirs.decode().abs()
        assert ((ours.decode() - theirs.decode()).abs() <= allowed).all(), encoding
