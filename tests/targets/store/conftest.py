"""The S3 server that tests of remote stores share."""

import uuid
from collections.abc import Iterator

import pytest

from common.targets.store import TargetStore
from common.targets.store.remote import open_remote
from tests.targets.store.hasty import HASTY
from tests.targets.store.made_up_targets import fill
from tests.targets.store.s3_server import BUCKET, Proxy, environment, running_server


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A running S3 server with one bucket."""
    with running_server() as endpoint:
        yield endpoint


@pytest.fixture
def s3_url(s3_endpoint, monkeypatch) -> str:
    """A fresh place in the bucket, with the environment that leads to it."""
    for name, value in environment(s3_endpoint).items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{uuid.uuid4().hex}/cache"


@pytest.fixture
def proxy(s3_endpoint, s3_url, monkeypatch) -> Iterator[Proxy]:
    """A proxy before the server, which the environment leads to."""
    with Proxy(s3_endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        yield proxy


@pytest.fixture
def through(proxy, s3_url):
    """A complete store on the server, opened through the proxy by a client with little patience."""
    fill(open_remote(s3_url, HASTY))
    proxy.requests.clear()
    return TargetStore.open(open_remote(s3_url, HASTY))
