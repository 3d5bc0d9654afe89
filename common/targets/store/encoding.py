"""Numbers as they are stored: full precision, half precision, or one byte each with scales."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from common.base.errors import StoreError
from common.base.records import move_tensors

ArrayEncoding = Literal["float32", "float16", "int8_channel", "int8_row"]
LARGEST_CODE = 127
STEPS_PER_DEVIATION = 16
"""Quantisation steps in one standard deviation of a channel: an error of about 1/55 of that deviation."""

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

    def to(self, device: torch.device | str) -> "DecodableFeatures":
        """The same features on another device."""
        return move_tensors(self, device)

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
    values: np.ndarray, encoding: ArrayEncoding, name: str, steps_per_deviation: float = STEPS_PER_DEVIATION
) -> EncodedArrays:
    """Encode features.

    Args:
        values: float32 [M, C].
        encoding: `float32`; `float16`; `int8_row`, a scale for each row; `int8_channel`, a step for each channel (a
            fixed share of its standard deviation) times a power of two for each row, which keeps outliers.
        name: of the array, for errors.
        steps_per_deviation: quantisation steps of `int8_channel` in one standard deviation of a channel.

    Raises:
        UnstorableError: a value is NaN or infinite, or too large for the encoding.
    """
    if not np.isfinite(values).all():
        raise UnstorableError(f"{name}: the teacher produced NaN or infinity. {ADVICE}")
    if encoding == "int8_channel":
        return _int8_channel(values, steps_per_deviation)
    return ENCODERS[encoding](values, name)


def _float32(values: np.ndarray, name: str) -> EncodedArrays:
    return {"": np.ascontiguousarray(values, np.float32)}


def _float16(values: np.ndarray, name: str) -> EncodedArrays:
    largest = float(np.abs(values).max(initial=0.0))
    if largest > float(np.finfo(np.float16).max):
        raise UnstorableError(f"{name}: the teacher produced {largest:.3g}, too large for float16. {ADVICE}")
    return {"": values.astype(np.float16)}


def _int8_row(values: np.ndarray, name: str) -> EncodedArrays:
    scale = np.abs(values).max(axis=1, initial=0.0) / LARGEST_CODE
    if scale.max(initial=0.0) > float(np.finfo(np.float16).max):
        raise UnstorableError(f"{name}: the teacher's values are too large for int8_row. {ADVICE}")
    # Rounded up, so that the largest value of a row still fits into a code.
    scale = np.nextafter(scale.astype(np.float16), np.float16(np.inf))
    codes = np.rint(values / scale.astype(np.float32)[:, None])
    return {"": codes.astype(np.int8), ".row_scale": scale}


def _int8_channel(values: np.ndarray, steps_per_deviation: float) -> EncodedArrays:
    step = values.std(axis=0, dtype=np.float64).astype(np.float32) / steps_per_deviation
    # A channel that never changes has no deviation; its largest value then decides.
    flat = step <= np.abs(values).max(axis=0, initial=0.0) * 1e-6
    step[flat] = np.abs(values[:, flat]).max(axis=0, initial=0.0) / LARGEST_CODE
    step[step == 0] = 1.0
    steps = values / step
    largest = np.abs(steps).max(axis=1, initial=0.0)
    exponent = np.ceil(np.log2(np.maximum(largest / LARGEST_CODE, 1.0))).astype(np.uint8)
    codes = np.rint(np.ldexp(steps, -exponent.astype(np.int32)[:, None]))
    return {"": codes.astype(np.int8), ".channel_scale": step, ".row_exponent": exponent}


ENCODERS: dict[str, Callable[[np.ndarray, str], EncodedArrays]] = {
    "float32": _float32,
    "float16": _float16,
    "int8_row": _int8_row,
}
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
        row_scale = np.ldexp(np.float32(1.0), arrays[".row_exponent"].astype(np.int32))
    return DecodableFeatures(
        torch.from_numpy(arrays[""]),
        None if channel_scale is None else torch.from_numpy(channel_scale),
        None if row_scale is None else torch.from_numpy(row_scale),
    )
