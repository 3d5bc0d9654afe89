"""Stores at URLs, against a real S3 server process: the conformance suite, requests and listings, and stage two."""

import io
import subprocess
import sys
import time
import uuid
import zipfile

import numpy as np
import pytest
import zarr
from zarr.storage import ZipStore

from common.base.errors import StoreError
from common.scans.dataset import Dataset, voxelise_view
from common.scans.polar_grid import PolarGrid
from common.scans.view import IDENTITY
from common.targets.store import TargetStore, remote
from common.targets.store.local_copy import CopySettings, LocalCopy, copied_locally
from common.targets.store.open_storage import open_storage
from common.targets.store.remote import RemoteStorage, open_remote
from stage2_train_student.training.data import StudentData
from tests.shared.dataset_writer import write_dataset
from tests.shared.reduced import reduced_experiment
from tests.targets.store.conformance import WritableConformance
from tests.targets.store.hasty import HASTY, read_whole
from tests.targets.store.made_up_targets import (
    REPOSITORY,
    SCANS,
    all_files,
    fill,
    identity,
    label_map,
    numbers,
    targets_at,
    targets_of,
    write_archive,
    write_one,
)
from tests.targets.store.s3_server import BUCKET, environment, server_error, slow
from tests.targets.store.store_conformance import WritableTargetStoreConformance

SCAN = SCANS[0]


class OnS3:
    @pytest.fixture
    def make_storage(self, s3_url):
        def make(files):
            storage = open_storage(f"{s3_url}-{uuid.uuid4().hex}")
            for name, data in files.items():
                storage.write(name, data)
            return storage

        return make


class TestS3(OnS3, WritableConformance):
    pass


class TestStoreOnS3(OnS3, WritableTargetStoreConformance):
    pass


class OnObstoreMemory:
    @pytest.fixture
    def make_storage(self):
        def make(files):
            storage = open_remote("memory://")
            for name, data in files.items():
                storage.write(name, data)
            return storage

        return make


class TestObstoreMemory(OnObstoreMemory, WritableConformance):
    pass


def test_a_url_is_written_read_verified_and_resumed(s3_url):
    store = TargetStore.create_or_resume(s3_url, identity(), {})
    write_one(store, SCAN, 0)
    again = TargetStore.create_or_resume(s3_url, identity(), {})
    assert again.finished() == {(SCAN, 0)}
    assert again.location == s3_url
    assert again.verify(SCAN, 0)["logits"] > 0
    assert read_whole(TargetStore.open(f"{s3_url}/")) == numbers(targets_of(SCAN, 0))
    with pytest.raises(StoreError, match="teacher_hash"):
        TargetStore.create_or_resume(s3_url, identity(teacher_hash="b" * 64), {})


def test_one_request_for_each_scan(proxy, through, s3_url):
    proxy.requests.clear()
    read_whole(through)
    write_one(through, SCAN, 1)
    assert [method for method, _ in proxy.requests] == ["GET", "PUT"]
    proxy.requests.clear()
    through.finished()
    assert [method for method, _ in proxy.requests] == ["GET"]


def test_folders_of_a_long_listing_are_asked_for_side_by_side(proxy, s3_url, monkeypatch):
    monkeypatch.setattr(remote, "PAGE", 5)
    storage = open_remote(s3_url)
    files = {f"sequences/{row % 6:02d}/{row // 6}.v0": b"x" * row for row in range(30)} | {"sequences/loose": b""}
    for name, data in files.items():
        storage.write(name, data)
    proxy.requests.clear()
    proxy.always = slow
    start = time.perf_counter()
    listed = list(storage.sizes("sequences/"))
    seconds = time.perf_counter() - start
    assert sorted(listed) == sorted((name, len(data)) for name, data in files.items())
    assert len(proxy.requests) == 2 + 6
    assert seconds < 8 * 0.3


def test_a_long_listing_that_fails_half_way_is_reported(proxy, s3_url, monkeypatch):
    monkeypatch.setattr(remote, "PAGE", 2)
    storage = open_remote(s3_url, HASTY)
    for row in range(6):
        storage.write(f"sequences/{row % 2:02d}/{row}.v0", b"")
    proxy.planned.extend([None, None])
    proxy.always = server_error
    with pytest.raises(StoreError, match=r"sequences/0\d: cannot be listed"):
        list(storage.names("sequences/"))


def test_two_places_in_one_bucket_are_apart(s3_url):
    one, other = open_remote(f"{s3_url}/one"), open_remote(f"{s3_url}/one-more")
    one.write("a", b"1")
    other.write("b", b"2")
    assert (all_files(one), all_files(other)) == ({"a": b"1"}, {"b": b"2"})
    assert all_files(open_remote(s3_url)) == {"one/a": b"1", "one-more/b": b"2"}


def test_zarr_alone_reads_a_remote_file(s3_url, tmp_path):
    storage = open_remote(s3_url)
    fill(storage)
    name = TargetStore.open(storage).name(SCAN, 0)
    import obstore
    from obstore.store import from_url

    in_place = obstore.open_reader(from_url(s3_url), name)
    (tmp_path / "downloaded.zarr.zip").write_bytes(storage.read(name))
    downloaded = zarr.open_group(ZipStore(tmp_path / "downloaded.zarr.zip", mode="r"), mode="r")
    expected = targets_of(SCAN, 0).logits.numpy()
    np.testing.assert_array_equal(downloaded["logits"][:], expected)
    # Without downloading it: the same standard zip file through a reader that fetches what is asked for.
    with zipfile.ZipFile(io.BufferedReader(Seekable(in_place))) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    buffers = {k: zarr.core.buffer.default_buffer_prototype().buffer.from_bytes(v) for k, v in members.items()}
    np.testing.assert_array_equal(zarr.open_group(zarr.storage.MemoryStore(buffers), mode="r")["logits"][:], expected)


class Seekable(io.RawIOBase):
    """obstore's reader as a Python file."""

    def __init__(self, reader):
        self.reader = reader

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=0):
        return self.reader.seek(offset, whence)

    def tell(self):
        return self.reader.tell()

    def readinto(self, buffer):
        data = bytes(self.reader.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)


def test_unknown_schemes_and_malformed_urls_are_refused():
    for url in ("ftp://host/path", "file:///folder", "https://host/path"):
        with pytest.raises(StoreError, match="URLs of stores begin with s3://"):
            open_storage(url)
    with pytest.raises(StoreError, match="cannot be opened"):
        open_storage("s3://")


def test_without_obstore_the_error_says_what_to_install():
    program = (
        "import sys; sys.modules['obstore'] = None; sys.modules['obstore.store'] = None\n"
        "from common.targets.store import TargetStore\n"
        "from common.base.errors import StoreError\n"
        "try:\n    TargetStore.open('s3://bucket/prefix')\n"
        "except StoreError as error:\n    print(error.message)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "pip install 'polar-distill[remote]'" in done.stdout


def test_another_process_sees_the_store(s3_url, s3_endpoint):
    fill(open_remote(s3_url))
    program = (
        "import sys; from common.targets.store import TargetStore; print(len(TargetStore.open(sys.argv[1]).finished()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, s3_url],
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin", **environment(s3_endpoint)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == len(SCANS) * 2


def test_a_remote_store_becomes_an_archive(s3_url, tmp_path):
    storage = open_remote(s3_url)
    fill(storage)
    write_archive(storage, tmp_path / "store.zip")
    assert all_files(open_storage(tmp_path / "store.zip")) == all_files(storage)


def test_stage_two_loads_through_a_local_copy(proxy, s3_url, tmp_path):
    grid = PolarGrid.named("polarnet", (48, 40, 16))
    scans = write_dataset(tmp_path / "dataset", {"00": 2}, points=800)
    remote = TargetStore.create_or_resume(open_remote(s3_url, HASTY), identity(grid=grid), {})
    for row, scan in enumerate(scans):
        source = Dataset.open(tmp_path / "dataset", label_map()).read(scan)
        voxels = voxelise_view(source, IDENTITY, grid, label_map()).voxels
        linear = np.ravel_multi_index(tuple(voxels.T), grid.shape)
        for view in range(2):
            remote.write(scan, view, IDENTITY, targets_at(linear, grid, np.random.default_rng(row)), source.points)
    assert isinstance(remote.storage, RemoteStorage)
    store = copied_locally(remote, CopySettings(tmp_path / "copies", gigabytes=0.1))
    assert isinstance(store.storage, LocalCopy)
    settings = reduced_experiment(grid.shape, "distillation.pairs=[{teacher: down1c, student: x2}]")
    data = StudentData(settings, Dataset.open(tmp_path / "dataset", label_map()), store)
    assert data.layers == ("down1c", "up0e")

    first = [data.load(scan, epoch=0) for scan in scans]
    proxy.requests.clear()
    proxy.always = server_error
    again = [data.load(scan, epoch=0) for scan in scans]
    assert proxy.requests == []
    for row, ((voxelised, targets), (_, repeated)) in enumerate(zip(first, again, strict=True)):
        expected = targets_at(targets.voxels.numpy().astype(np.int64), grid, np.random.default_rng(row))
        assert len(voxelised.voxels) == len(targets.voxels)
        assert numbers(targets.decode()) == numbers(repeated.decode())
        assert numbers(targets.decode())["logits"] == numbers(expected)["logits"]
    # A copy that is damaged while the server is away is an error, not other numbers.
    for path in (tmp_path / "copies").rglob("*.zarr.zip"):
        path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(StoreError, match="cannot be read"):
        data.load(scans[0], epoch=0)
    proxy.always = None
    assert numbers(data.load(scans[0], epoch=0)[1].decode()) == numbers(first[0][1].decode())
    assert BUCKET in store.location
