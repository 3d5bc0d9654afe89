"""Any damage to a scan file is noticed, or does no harm: never other numbers."""

from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import settings as run_settings
from hypothesis import strategies as st

from common.base.errors import StoreError
from common.targets.store import TargetStore
from common.targets.store.merging import whole_copy
from tests.shared.memory_storage import MemoryStorage
from tests.targets.store.made_up_targets import SCANS, numbers, points_of, store_files

SCAN = SCANS[0]
NAME = f"sequences/{SCAN.sequence}/{SCAN.frame}.v0.zarr.zip"

Edit = tuple[str, float, bytes]
places = st.one_of(
    st.floats(0.0, 1.0, exclude_max=True),
    # The zip directory and the end record at the end of the file, and the first header.
    st.floats(0.85, 1.0, exclude_max=True),
    st.floats(0.0, 0.02),
)
edits = st.tuples(
    st.sampled_from(["flip", "overwrite", "insert", "remove", "truncate", "repeat"]),
    places,
    st.binary(min_size=1, max_size=24),
)


def edited(data: bytes, edit: Edit) -> bytes:
    """The data with one kind of damage at a place in 0..1 of its length."""
    kind, place, content = edit
    start = int(place * len(data))
    end = min(start + len(content), len(data))
    if kind == "flip":
        flipped = bytes(byte ^ (1 << mask % 8) for byte, mask in zip(data[start:end], content, strict=False))
        return data[:start] + flipped + data[end:]
    if kind == "overwrite":
        return data[:start] + content + data[end:]
    if kind == "insert":
        return data[:start] + content + data[start:]
    if kind == "remove":
        return data[:start] + data[end:]
    if kind == "truncate":
        return data[:start]
    return data[:end] + data[start:]


@pytest.fixture(scope="module", params=["float32 none", "float16 zstd", "int8_row lz4", "int8_channel zstd"])
def files(request) -> dict[str, bytes]:
    """Files of a small store, in several encodings and codecs."""
    return store_files(*request.param.split())


@run_settings(max_examples=400)
@given(damage=st.lists(edits, min_size=1, max_size=3))
@example(damage=[("truncate", 0.0, b"x")])
@example(damage=[("insert", 0.0, b"in front")])
def test_damage_is_noticed_or_does_no_harm(files, damage):
    data = files[NAME]
    for edit in damage:
        data = edited(data, edit)
    storage = MemoryStorage()
    storage.write("manifest.json", files["manifest.json"])
    storage.write(NAME, files[NAME])
    store = TargetStore.open(storage)
    intact, view = store.read(SCAN, 0, points_of(SCAN), voxel_features=True)
    storage.write(NAME, data)
    with suppress(StoreError):
        read, read_view = store.read(SCAN, 0, points_of(SCAN), voxel_features=True)
        assert numbers(read) == numbers(intact)
        assert read_view == view
    with suppress(StoreError):
        store.verify(SCAN, 0)


@run_settings(max_examples=150)
@given(damage=st.lists(edits, min_size=1, max_size=2))
def test_a_damaged_manifest_is_noticed_or_does_no_harm(damage):
    storage = MemoryStorage()
    intact = store_files()["manifest.json"]
    storage.write("manifest.json", intact)
    expected = TargetStore.open(storage).identity
    for edit in damage:
        intact = edited(intact, edit)
    storage.write("manifest.json", intact)
    with suppress(StoreError):
        assert TargetStore.open(storage).identity == expected


def test_merging_takes_the_copy_that_can_be_read():
    class Unreachable(MemoryStorage):
        def read(self, name: str) -> bytes:
            raise StoreError(f"{name}: the server does not answer")

    whole, unreachable = MemoryStorage(), Unreachable()
    for name, content in store_files().items():
        whole.write(name, content)
        unreachable.write(name, content)
    good = TargetStore.open(whole)
    item, broken = (SCAN, 0), TargetStore(unreachable, good.identity)
    assert whole_copy(item, [broken, good]) == whole.read(good.name(*item))
    with pytest.raises(StoreError, match=r"no whole copy: .*the server does not answer"):
        whole_copy(item, [broken])
