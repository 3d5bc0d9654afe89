"""A store on an object store (Amazon S3 and compatible servers, Google Cloud Storage, Azure), through obstore.

One request writes a file and one reads it: such servers make an object visible whole or not at all. Credentials, region
and endpoint come from the environment variables that obstore reads, for S3 `AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, and for other servers `AWS_ENDPOINT_URL` (with
`AWS_ALLOW_HTTP=true` for one without TLS); `AWS_SKIP_SIGNATURE=true` reads public buckets.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import click

from common.base.errors import StoreError
from common.base.overlap import started_ahead
from common.targets.store.patience import Patience
from common.targets.store.storage import MissingFileError, Storage

VARIABLES = {"s3": "AWS_", "s3a": "AWS_", "gs": "GOOGLE_", "az": "AZURE_", "abfs": "AZURE_", "abfss": "AZURE_"}
"""Schemes of URLs, and the prefix of the environment variables that go with each."""

CREDENTIALS = {
    "AWS_": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (files such as ~/.aws/credentials are not read), or "
    "AWS_SKIP_SIGNATURE=true for a public bucket",
    "GOOGLE_": "GOOGLE_APPLICATION_CREDENTIALS, the path of a key file, or GOOGLE_SKIP_SIGNATURE=true for a public "
    "bucket",
    "AZURE_": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_SKIP_SIGNATURE=true for a public "
    "container",
}
"""What to set in the environment, by prefix of its variables."""

METADATA_SERVICES = (
    "169.254.169.254",
    "/latest/api/token",
    "/latest/meta-data",
    "computeMetadata",
    "metadata/identity",
)
"""Parts of the addresses that machines of a cloud get credentials from, tried where none are given."""

LONGEST_CAUSE = 300
PAGE = 1000
"""Names in one answer of a server that lists a folder: no server gives more."""

LISTERS = 16
"""Folders that are listed at the same time."""

Answer = TypeVar("Answer")


class RemoteStorage(Storage):
    """Files below a URL. Make one with `open_remote`. Any number of threads may share it."""

    def __init__(self, url: str, store: Any, at_first: Any = None, patience: Patience = Patience()) -> None:
        """Take the clients.

        Args:
            url: of the storage.
            store: obstore's client.
            at_first: the client to use until the server has answered once; None for the same.
            patience: that `store` has.
        """
        self.location = url
        self._store = store
        self._at_first = at_first
        self._patience = patience
        self._noted = -patience.stall

    def read(self, name: str) -> bytes:
        """A whole file by one request. Raises MissingFileError; StoreError where the server fails for good."""
        try:
            return self._ask(name, "read", lambda store: bytes(store.get(name).bytes()))
        except FileNotFoundError as error:
            raise MissingFileError(name) from error

    def write(self, name: str, data: bytes) -> None:
        """Write by one request, which the server carries out whole or not at all."""
        self._ask(name, "written", lambda store: store.put(name, data, use_multipart=False))

    def create(self, name: str, data: bytes) -> bool:
        """As `write`, with the condition that there is no such object yet, which the server checks."""
        from obstore.exceptions import AlreadyExistsError

        def put(store: Any) -> bool:
            try:
                store.put(name, data, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
            return True

        return self._ask(name, "written", put)

    def delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._ask(name, "deleted", lambda store: store.delete(name))

    def drop_local_copy(self, name: str) -> bool:
        """There is none, but the bytes may have been damaged on their way."""
        return True

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Name and size of every file: one request for each thousand, folders side by side where there are more."""
        # Object stores list whole folders; the rest of the prefix is compared here.
        folder = prefix.rpartition("/")[0] or None
        first = next(self._pages(folder), [])
        for page in [first] if len(first) < PAGE else self._side_by_side(folder):
            for file in page:
                if file["path"].startswith(prefix):
                    yield file["path"], file["size"]

    def _pages(self, folder: str | None) -> Iterator[list[Any]]:
        pages = self._client.list(folder, chunk_size=PAGE)
        while (page := self._ask(folder or "", "listed", lambda _: next(pages, None))) is not None:
            yield page

    def _side_by_side(self, folder: str | None) -> Iterator[list[Any]]:
        # A server gives the next page of a folder only after the one before: several folders hide its delay.
        top = self._ask(folder or "", "listed", lambda store: store.list_with_delimiter(folder))
        yield top["objects"]
        below = started_ahead(lambda one: list(self._pages(one)), top["common_prefixes"], LISTERS, LISTERS)
        for _, pages in below:
            yield from pages.result()

    @property
    def _client(self) -> Any:
        return self._store if self._at_first is None else self._at_first

    def _ask(self, name: str, what: str, request: Callable[[Any], Answer]) -> Answer:
        """What the server answers. Raises FileNotFoundError, or StoreError where it fails for good."""
        start = time.monotonic()
        try:
            with self._waiting(name, what):
                answer = request(self._client)
        except Exception as error:
            # A missing bucket answers 404 as a missing object does.
            if isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error):
                self._at_first = None
                raise
            raise self._refused(name, what, error, time.monotonic() - start) from error
        self._at_first = None
        return answer

    @contextmanager
    def _waiting(self, name: str, what: str) -> Iterator[None]:
        """Says that an answer is waited for, once in a while however many threads wait."""
        stall, outage = self._patience.stall, self._patience.outage

        def note() -> None:
            if time.monotonic() - self._noted >= stall:
                self._noted = time.monotonic()
                click.echo(
                    f"note: {self.location}/{name} is not {what} after {stall:.0f} s; if the server stays silent this "
                    f"ends after {stall + outage:.0f} s",
                    err=True,
                )

        timer = threading.Timer(stall, note)
        timer.daemon = True
        # One that has not answered yet is given up by then.
        if self._at_first is None:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _refused(self, name: str, what: str, error: Exception, seconds: float) -> StoreError:
        cause, text = first_line(error), str(error)
        credentials = CREDENTIALS.get(VARIABLES.get(self.location.partition("://")[0], ""), "")
        if "NoSuchBucket" in text:
            hint = "There is no such bucket; make it, or check the URL."
        elif "BadScheme" in text:
            hint = "For an endpoint without TLS set AWS_ALLOW_HTTP=true."
        elif any(address in text for address in METADATA_SERVICES):
            cause = "there are no credentials in the environment"
            hint = f"Set {credentials}."
        elif type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError") or "credential" in cause:
            hint = f"Check the credentials in the environment: {credentials}."
        else:
            if "TimedOut" in text:
                cause = f"the server did not answer for {seconds:.0f} s"
            hint = "Check the network and the endpoint (for S3: AWS_ENDPOINT_URL), then run the command again."
        return StoreError(f"{self.location}/{name}: cannot be {what} ({cause}). {hint}")


def open_remote(url: str, patience: Patience = Patience()) -> RemoteStorage:
    """The storage at a URL: `s3://bucket/prefix`, `gs://bucket/prefix`, `az://account/container/prefix`.

    No request is made. The files in it are what zarr's own machinery reads as well: with `bytes` of one in a file, as
    any scan file of a folder; or in place by `zarr.storage.ZipStore` over a file-like object, for example
    `obstore.open_reader(store, name)`. zarr's `ObjectStore` serves groups of separate objects, which these are not.

    Args:
        url: a server's bucket or container, and optionally where in it; `memory://` is a new one, for trials.
        patience: time limits and retries.

    Raises:
        StoreError: the scheme is unknown, obstore is not installed, or the URL or the environment is malformed.
    """
    url = url.rstrip("/") if not url.endswith("://") else url
    scheme = url.partition("://")[0]
    if scheme not in VARIABLES and scheme != "memory":
        known = ", ".join(f"{known}://" for known in (*VARIABLES, "memory"))
        raise StoreError(f"{url}: URLs of stores begin with {known}. A folder is given by its path alone.")
    try:
        from obstore.store import MemoryStore, from_url
    except ImportError as error:
        raise StoreError(
            f"{url}: stores at URLs need the package obstore. Run: pip install 'polar-distill[remote]'"
        ) from error
    if scheme == "memory":
        return RemoteStorage(url, MemoryStore())
    try:
        store, at_first = (
            from_url(url, client_options=how.client_options(VARIABLES[scheme]), retry_config=how.retry_config())
            for how in (patience, patience.at_first())
        )
    except Exception as error:
        raise StoreError(
            f"{url}: cannot be opened ({first_line(error)}). Check the URL and the variables of the environment: "
            f"{CREDENTIALS[VARIABLES[scheme]]}."
        ) from error
    return RemoteStorage(url, store, at_first, patience)


def first_line(error: Exception) -> str:
    """An error's cause without the lines that are for obstore's developers."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__).partition(": <?xml")[0]
    return line if len(line) <= LONGEST_CAUSE else f"{line[:LONGEST_CAUSE]}..."
