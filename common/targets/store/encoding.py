"""Numbers as they are stored: full precision, half precision, or one byte each with scales."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from common.base.errors import StoreError
from common.base.records import to_host

ArrayEncoding = Literal["float32", "float16", "int8_channel", "int8_row"]
LARGEST_CODE = 127
STEPS_PER_DEVIATION = 16
"""Quantisation steps in one standard deviation of a channel: an error of about 1/55 of that deviation."""

with np.errstate(over="ignore"):
    POWERS_OF_TWO = np.ldexp(np.float32(1), np.arange(256))
"""By the exponent of a row; infinite from 128 on, which only forged files have."""

BLOCK_NUMBERS = 2**17
"""Numbers that a CPU encodes at a time."""

ADVICE = (
    "Check the coordinates and reflectances of the scan; if all scans do that, the checkpoint and its volume, or set "
    "encoding float32."
)

EncodedArrays = dict[str, np.ndarray]
"""Stored arrays by suffix: `""` the values or codes, and what `DecodableFeatures` needs beside them."""


@dataclass(frozen=True)
class DecodableFeatures:
    """Features [M, C] as stored, and what turns them back into numbers: values * channel_scale * row_scale.

    Decoding is left to the device that uses the features, so that fewer bytes travel there.

    Attributes:
        values: float32, float16 or int8 [M, C].
        channel_scale: float32 [C], or None for 1.
        row_scale: float16 or float32 [M], or None for 1.
    """

    values: torch.Tensor
    channel_scale: torch.Tensor | None = None
    row_scale: torch.Tensor | None = None

    def decode(self) -> torch.Tensor:
        """Features as float32 [M, C], on the device where they are."""
        decoded = self.values.float()
        if self.channel_scale is not None:
            decoded = decoded * self.channel_scale
        if self.row_scale is not None:
            decoded = decoded * self.row_scale.float()[:, None]
        return decoded


class UnstorableError(StoreError):
    """Targets hold values that their encoding cannot: the scan they are of, or the teacher, is not as others are."""


def encode(
    values: torch.Tensor, encoding: ArrayEncoding, name: str, steps_per_deviation: float = STEPS_PER_DEVIATION
) -> EncodedArrays:
    """Encode features, see `quantise`; `name` is that of the array, for errors.

    Raises:
        UnstorableError: a value is NaN or infinite, or too large for the encoding.
    """
    arrays, largest = quantise(values, encoding, steps_per_deviation)
    largest, *stored = to_host([largest, *arrays.values()])
    check_storable(float(largest), encoding, name)
    return {suffix: array.numpy() for suffix, array in zip(arrays, stored, strict=True)}


def quantise(
    values: torch.Tensor, encoding: ArrayEncoding, steps_per_deviation: float
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Encode features on their device, without waiting for it, before anybody knows whether they can be.

    Args:
        values: float [M, C].
        encoding: `float32`; `float16`; `int8_row`, a scale for each row; `int8_channel`, a step for each channel (a
            fixed share of its standard deviation) times a power of two for each row, which keeps outliers.
        steps_per_deviation: quantisation steps of `int8_channel` in one standard deviation of a channel.

    Returns:
        stored arrays by suffix, in the order of `STORED_DTYPES`; and float32 [] for `check_storable`, the largest
        absolute value (of `int8_channel` in steps), NaN or infinite if one of them is.
    """
    values = values.detach().float()
    if encoding == "int8_channel":
        return _int8_channel(values, steps_per_deviation)
    if encoding == "int8_row":
        return _int8_row(values)
    return {"": values.half() if encoding == "float16" else values.contiguous()}, _largest(values)


def check_storable(largest: float, encoding: ArrayEncoding, name: str) -> None:
    """Refuse features by the largest absolute value among them.

    Raises:
        UnstorableError: it is NaN or infinite, or too large for the encoding; names the array.
    """
    most = float(torch.finfo(torch.float16).max)
    if not math.isfinite(largest):
        raise UnstorableError(f"{name}: the teacher produced NaN or infinity. {ADVICE}")
    if encoding == "float16" and largest > most:
        raise UnstorableError(f"{name}: the teacher produced {largest:.3g}, too large for float16. {ADVICE}")
    if encoding == "int8_row" and largest / LARGEST_CODE > most:
        raise UnstorableError(f"{name}: the teacher's values are too large for int8_row. {ADVICE}")


def _int8_row(values: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    codes, scale = torch.empty_like(values, dtype=torch.int8), values.new_empty(len(values), dtype=torch.float16)
    largest = values.new_zeros(len(values))
    for rows in _row_blocks(values):
        largest[rows] = _largest(values[rows], 1)
        # The next larger number, so that the largest value of a row still fits into a code: they are not negative.
        scale[rows] = ((largest[rows] / LARGEST_CODE).half().view(torch.int16) + 1).view(torch.float16)
        codes[rows] = _rounded_below_the_top(values[rows] / scale[rows].float()[:, None])
    return {"": codes, ".row_scale": scale}, _largest(largest)


def _rounded_below_the_top(steps: torch.Tensor) -> torch.Tensor:
    """Whole steps near the numbers of each row [M, C]; what is below the row's largest number stays below it.

    Of plain rounding 1 % of the voxels would come back with two likeliest classes. One step less is enough.
    """
    if not steps.numel():
        return steps
    top = steps.amax(1, keepdim=True)
    codes = steps.round()
    return torch.where(steps < top, torch.minimum(codes, top.round() - 1), codes)


def _int8_channel(values: torch.Tensor, steps_per_deviation: float) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    step = _channel_steps(values, steps_per_deviation)
    codes, exponents = torch.empty_like(values, dtype=torch.int8), values.new_empty(len(values), dtype=torch.uint8)
    largest = values.new_zeros(len(values))
    for rows in _row_blocks(values):
        steps = values[rows] / step
        largest[rows] = _largest(steps, 1)
        # The smallest power of two that brings the row's largest value into a code, none below 1; exact on any device.
        mantissa, exponent = torch.frexp(largest[rows] / LARGEST_CODE)
        exponent = (exponent - (mantissa == 0.5).int()).clamp_min_(0)
        codes[rows] = steps.mul_(((127 - exponent) << 23).view(torch.float32)[:, None]).round_()
        exponents[rows] = exponent.byte()
    return {"": codes, ".channel_scale": step, ".row_exponent": exponents}, _largest(largest)


def _channel_steps(values: torch.Tensor, steps_per_deviation: float) -> torch.Tensor:
    """Step of each channel, float32 [C]; NaN where a value is not finite."""
    total, squares = (values.new_zeros(values.shape[1], dtype=torch.float64) for _ in range(2))
    for rows in _row_blocks(values):
        exact = values[rows].double()
        total += exact.sum(0)
        squares += exact.square_().sum(0)
    count = max(len(values), 1)
    step = (squares / count - (total / count).square()).clamp_min_(0).sqrt().float() / steps_per_deviation
    # A channel that never changes has no deviation; its size then decides, and what hardly changes still fits a code.
    size = (squares / count).sqrt().float()
    step = torch.where(step <= size * 1e-6, size / (LARGEST_CODE - 1), step)
    return torch.where(step == 0, 1.0, step)


def _row_blocks(values: torch.Tensor) -> Iterator[slice]:
    """Slices of rows: on a CPU few enough to stay in its cache from one operation to the next."""
    block = max(BLOCK_NUMBERS // max(values.shape[1], 1), 1) if values.device.type == "cpu" else max(len(values), 1)
    return (slice(start, start + block) for start in range(0, len(values), block))


def _largest(values: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """Largest absolute value, of all or along an axis; NaN if there is one, 0 of nothing."""
    if not values.numel():
        return values.sum(dim).abs()
    if dim is None:
        low, high = torch.aminmax(values)
        return torch.maximum(high, -low)
    return values.abs().amax(dim)


STORED_DTYPES: dict[ArrayEncoding, dict[str, str]] = {
    "float32": {"": "float32"},
    "float16": {"": "float16"},
    "int8_row": {"": "int8", ".row_scale": "float16"},
    "int8_channel": {"": "int8", ".channel_scale": "float32", ".row_exponent": "uint8"},
}
"""Arrays of each encoding by suffix: the values [M, C], what a row has [M], what a channel has [C]."""


def misfit(arrays: EncodedArrays, encoding: ArrayEncoding) -> tuple[str, str] | None:
    """Suffix of the first stored array whose dtype or shape is not that of its encoding, and what is wrong with it."""
    values = arrays[""]
    if values.ndim != 2:
        return "", f"has the shape {values.shape} instead of rows and channels"
    for suffix, dtype in STORED_DTYPES[encoding].items():
        found = arrays[suffix]
        expected = values.shape if not suffix else values.shape[1:] if "channel" in suffix else values.shape[:1]
        if found.shape != expected or found.dtype != np.dtype(dtype):
            return suffix, f"is {found.dtype} {found.shape} instead of {dtype} {expected}, as {encoding} has it"
    return None


def decodable(arrays: EncodedArrays) -> DecodableFeatures:
    """Stored arrays as features that can be decoded."""
    channel_scale, row_scale = arrays.get(".channel_scale"), arrays.get(".row_scale")
    if ".row_exponent" in arrays:
        row_scale = POWERS_OF_TWO[arrays[".row_exponent"]]
    return DecodableFeatures(
        torch.from_numpy(arrays[""]),
        None if channel_scale is None else torch.from_numpy(channel_scale),
        None if row_scale is None else torch.from_numpy(row_scale),
    )
