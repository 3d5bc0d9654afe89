"""repair of a store at a URL whose answers cannot always be trusted."""

import random

import pytest

from common.targets.store.open_storage import open_storage
from tests.shared.reduced import fail, succeed
from tests.shared.small_stores import FIRST, TRAIN, dump_words, flip_byte_of, scan_files, stage_one
from tests.targets.store.made_up_targets import all_files
from tests.targets.store.s3_server import garbled


@pytest.fixture
def on_server(s3_url, train_store):
    """A copy of `train_store` on the server, at this URL."""
    storage = open_storage(s3_url)
    storage.write("manifest.json", (train_store / "manifest.json").read_bytes())
    for name, data in scan_files(train_store).items():
        storage.write(name, data)
    return s3_url


@pytest.fixture
def words(on_server, store_scans, reduced_teacher):
    return ["repair", *dump_words(store_scans, reduced_teacher, on_server, *TRAIN)[1:], "--threads", "1"]


@pytest.mark.parametrize("seed", range(3))
def test_nothing_whole_is_deleted_while_readings_are_garbled(proxy, on_server, words, seed):
    before = all_files(open_storage(on_server))
    chance = random.Random(seed)

    def often_garbled(relay, content, headers):
        # The manifest and listings come as they are: only scan files are garbled.
        return relay.path.endswith(".zarr.zip") and chance.random() < 0.4 and garbled(relay, content, headers)

    proxy.requests.clear()
    proxy.always = often_garbled
    message = fail(stage_one(*words))
    assert "differed when read again" in message
    assert "Nothing was deleted" in message
    proxy.always = None
    assert {method for method, _ in proxy.requests} == {"GET", "PUT"}
    assert all_files(open_storage(on_server)) == before


def test_what_is_damaged_at_every_reading_is_dumped_again(tmp_path, on_server, words, train_store):
    storage, path = open_storage(on_server), tmp_path / "damaged.zarr.zip"
    path.write_bytes(storage.read(FIRST))
    flip_byte_of(path, "logits")
    storage.write(FIRST, path.read_bytes())
    output = succeed(stage_one(*words))
    assert "1 wrong file" in output
    assert "1 scan-view written" in output
    assert all_files(storage) == scan_files(train_store) | {
        "manifest.json": (train_store / "manifest.json").read_bytes()
    }
