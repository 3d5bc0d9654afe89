"""Networks and servers that fail while a remote store is read or written, for a moment or for good."""

import pytest

from common.base.errors import StoreError
from common.targets.store import TargetStore
from common.targets.store.remote import open_remote
from common.targets.store.storage import MissingFileError
from tests.targets.store.hasty import HASTY, read_whole
from tests.targets.store.made_up_targets import SCANS, all_files, numbers, targets_of, write_one
from tests.targets.store.s3_server import cut_off, dropped, garbled, server_error, shortened, silent, slow, stalled

SCAN = SCANS[0]


@pytest.mark.parametrize("fault", [server_error, dropped, cut_off, stalled, silent, shortened, garbled, slow])
def test_reading_succeeds_when_a_failure_passes(proxy, through, fault):
    proxy.planned.extend([fault] if fault in (shortened, garbled, slow) else [fault, fault])
    assert read_whole(through) == numbers(targets_of(SCAN, 0))
    assert not proxy.planned


@pytest.mark.parametrize("fault", [server_error, dropped, cut_off, stalled, shortened, garbled])
def test_a_failure_that_stays_is_reported_and_never_silent(proxy, through, fault):
    proxy.always = fault
    with pytest.raises(StoreError) as caught:
        read_whole(through)
    assert through.name(SCAN, 0) in caught.value.message
    assert through.location in caught.value.message
    assert "\n" not in caught.value.message
    proxy.always = None
    assert read_whole(through) == numbers(targets_of(SCAN, 0))


@pytest.mark.parametrize("fault", [server_error, dropped])
def test_writing_succeeds_when_a_failure_passes(proxy, through, fault):
    proxy.planned.extend([fault, fault])
    write_one(through, SCAN, 0, version=1)
    assert read_whole(through) == numbers(targets_of(SCAN, 0, 1))


@pytest.mark.parametrize("fault", [server_error, dropped])
def test_a_write_that_fails_leaves_the_old_file(proxy, through, fault):
    proxy.always = fault
    with pytest.raises(StoreError, match=r"cannot be written \(.+\)\. Check the network"):
        write_one(through, SCAN, 0, version=1)
    with pytest.raises(StoreError, match="cannot be listed"):
        through.finished()
    with pytest.raises(StoreError, match="cannot be written"):
        through.storage.create("new", b"")
    proxy.always = None
    assert read_whole(through) == numbers(targets_of(SCAN, 0))
    assert dict(through.storage.sizes()) == {name: len(data) for name, data in all_files(through.storage).items()}


def test_creating_succeeds_when_a_failure_passes(proxy, s3_url):
    storage = open_remote(s3_url, HASTY)
    proxy.planned.extend([server_error, server_error])
    assert storage.create("manifest", b"1")
    proxy.planned.extend([server_error])
    assert not storage.create("manifest", b"2")
    assert storage.read("manifest") == b"1"


def test_a_missing_object_is_told_from_a_missing_bucket(s3_url):
    with pytest.raises(MissingFileError):
        open_remote(s3_url).read("missing")
    absent = open_remote("s3://no-such-bucket/cache", HASTY)
    for use in (lambda: absent.read("a"), lambda: absent.write("a", b""), lambda: list(absent.sizes())):
        with pytest.raises(StoreError, match="There is no such bucket"):
            use()
    with pytest.raises(StoreError, match="no target store here"):
        TargetStore.open(s3_url)


def test_a_server_that_is_not_there(s3_url, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match=r"s3://targets.*manifest\.json: cannot be read .*AWS_ENDPOINT_URL"):
        TargetStore.open(open_remote(s3_url, HASTY))


def test_an_endpoint_without_tls_has_to_be_allowed(s3_url, monkeypatch):
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(StoreError, match="set AWS_ALLOW_HTTP=true"):
        open_remote(s3_url).read("a")
