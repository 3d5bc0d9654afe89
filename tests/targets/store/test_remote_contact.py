"""The first request to a server: it may never answer, and there may be no credentials for it."""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from common.base.errors import StoreError
from common.targets.store import TargetStore
from common.targets.store.patience import Patience
from common.targets.store.remote import open_remote
from tests.targets.store.s3_server import silent

PATIENCE = Patience(
    connect=2.0, stall=0.5, request=10.0, outage=10.0, first_answer=0.5, retries=3, first_pause=0.01, longest_pause=0.05
)
NOWHERE = "http://127.0.0.1:9"


def test_a_server_that_never_answers_is_given_half_a_minute_in_all():
    first = Patience().at_first()
    assert (first.stall, first.outage) == (30.0, 30.0)
    assert dataclasses.replace(first, stall=Patience().stall, outage=Patience().outage) == Patience()


def test_a_server_that_never_answers_is_asked_once_and_named(proxy, s3_url):
    proxy.always = silent
    with pytest.raises(StoreError, match=r"cannot be read \(the server did not answer for \d+ s\)\. Check the network"):
        TargetStore.open(open_remote(s3_url, PATIENCE))
    assert len(proxy.requests) == 1
    with pytest.raises(StoreError, match=r"cannot be listed \(the server did not answer"):
        list(open_remote(s3_url, PATIENCE).sizes())
    assert len(proxy.requests) == 2


def test_a_server_that_has_answered_before_is_waited_for(proxy, s3_url):
    storage = open_remote(s3_url, PATIENCE)
    storage.write("a", b"1")
    proxy.requests.clear()
    proxy.planned.extend([silent, silent, silent])
    assert storage.read("a") == b"1"
    assert len(proxy.requests) == 4


def test_a_server_that_falls_silent_is_waited_for_a_while_and_that_is_said(proxy, s3_url, capfd):
    assert Patience().outage + Patience().stall <= 90.0
    storage = open_remote(s3_url, dataclasses.replace(PATIENCE, outage=1.0, retries=100))
    storage.write("a", b"1")
    assert capfd.readouterr().err == ""
    proxy.always = silent
    with ThreadPoolExecutor(4) as threads:
        readings = [threads.submit(storage.read, "a") for _ in range(4)]
        start = time.monotonic()
        for reading in readings:
            with pytest.raises(StoreError, match=r"cannot be read \(the server did not answer for [12] s\)"):
                reading.result()
        assert time.monotonic() - start < 10 * (1.0 + PATIENCE.stall)
    said = capfd.readouterr().err.splitlines()
    assert 1 <= len(said) <= 4
    assert said[0] == f"note: {s3_url}/a is not read after 0 s; if the server stays silent this ends after 2 s"


@pytest.mark.parametrize(
    ("url", "environment", "named"),
    [
        ("s3://bucket/cache", {"AWS_METADATA_ENDPOINT": NOWHERE}, ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]),
        ("az://account/container/cache", {}, ["AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY"]),
    ],
)
def test_missing_credentials_are_named_and_not_the_server_that_was_asked_for_some(monkeypatch, url, environment, named):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AZURE_STORAGE_ACCOUNT_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(StoreError) as caught:
        TargetStore.open(open_remote(url, PATIENCE))
    assert all(name in caught.value.message for name in named)
    assert not any(server in caught.value.message for server in ("127.0.0.1", "169.254", "/latest/"))
