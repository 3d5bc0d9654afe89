"""Chunks as our own writer packs them: any decoder of Blosc and Zstandard gives the numbers back, bit for bit."""

import numcodecs.blosc
import numcodecs.zstd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.targets.store import TargetEncoding
from common.targets.store.chunks import CHECKSUM_BYTES, decode_chunk
from common.targets.store.compression import BLOCK_BYTES, chunk_bytes
from common.targets.store.zarr_zip import array_metadata

DTYPES = ("int8", "uint8", "float16", "float32", "uint32")
ENCODINGS = [TargetEncoding(codec="zstd", level=level) for level in (1, 4)]


def made_up(dtype: str, numbers: int, variety: int, seed: int) -> np.ndarray:
    """Numbers of which so many differ: from one that always repeats to bytes that nothing makes smaller."""
    found = np.random.default_rng(seed)
    words = found.integers(0, 256, (variety, np.dtype(dtype).itemsize), dtype=np.uint8).view(dtype)[:, 0]
    return words[found.integers(0, variety, numbers)]


@given(
    dtype=st.sampled_from(DTYPES),
    numbers=st.integers(1, 3000)
    | st.integers(BLOCK_BYTES // 4 - 2, BLOCK_BYTES // 4 + 2)
    | st.just(2 * BLOCK_BYTES + 7),
    variety=st.sampled_from([1, 3, 60_000]),
    encoding=st.sampled_from(ENCODINGS),
    seed=st.integers(0, 99),
)
def test_every_decoder_gives_the_numbers_back(dtype, numbers, variety, encoding, seed):
    values = made_up(dtype, numbers, variety, seed)
    chunk = chunk_bytes(values, encoding)
    metadata = array_metadata(values, encoding)
    assert decode_chunk(memoryview(chunk), metadata, "array").tobytes() == values.tobytes()
    library = {"zstd": numcodecs.zstd, "blosc": numcodecs.blosc}[metadata["codecs"][1]["name"]]
    assert bytes(library.decompress(chunk[:-CHECKSUM_BYTES])) == values.tobytes()
    assert chunk == chunk_bytes(values.copy(), encoding), "equal numbers, equal bytes"


def test_what_does_not_get_smaller_is_kept_as_it_is():
    noise = np.random.default_rng(0).integers(0, 256, 3 * BLOCK_BYTES, dtype=np.uint8)
    for dtype in ("int8", "float16", "float32"):
        chunk = chunk_bytes(noise.view(dtype), ENCODINGS[0])
        assert noise.nbytes < len(chunk) < 1.001 * noise.nbytes


@pytest.mark.parametrize("dtype", ["int8", "float16"])
def test_bell_shaped_features_come_near_their_entropy(dtype):
    """What a perfect coder of single bytes would need, by Shannon's formula."""
    steps = np.random.default_rng(0).normal(scale=2.0, size=(20_000, 64))
    values = np.round(steps).astype(np.int8) if dtype == "int8" else steps.astype(np.float16)
    planes = np.ascontiguousarray(values).view(np.uint8).reshape(-1, values.dtype.itemsize).T
    counts = [np.bincount(plane, minlength=256) for plane in planes]
    shares = [count[count > 0] / count.sum() for count in counts]
    entropy = sum(-(share * np.log2(share)).sum() * planes.shape[1] / 8 for share in shares)
    assert len(chunk_bytes(values, ENCODINGS[0])) < 1.05 * entropy
