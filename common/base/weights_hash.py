"""What tells two sets of weights apart."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch


def weights_hash(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and values, independent of order and of the file's format."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        values, dtype = _array(weights[name].detach().cpu())
        digest.update(f"{name} {values.shape} {dtype}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _array(tensor: torch.Tensor) -> tuple[np.ndarray, str]:
    """The values of a tensor, or their bytes where NumPy does not have its dtype, and the dtype's name."""
    try:
        values = np.ascontiguousarray(tensor.numpy())
    except TypeError:  # such as bfloat16
        return tensor.contiguous().unsqueeze(-1).view(torch.uint8).numpy(), str(tensor.dtype)
    return values, values.dtype.str
