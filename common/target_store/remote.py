"""A store on an object store (Amazon S3 and compatible servers, Google Cloud Storage, Azure), through obstore.

One request writes a file and one reads it: such servers make an object visible whole or not at all. Credentials, region
and endpoint come from the environment variables that obstore reads, for S3 `AWS_ACCESS_KEY_ID`,
`AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`, `AWS_REGION`, and for other servers `AWS_ENDPOINT_URL` (with
`AWS_ALLOW_HTTP=true` for one without TLS); `AWS_SKIP_SIGNATURE=true` reads public buckets.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from common.errors import StoreError
from common.target_store.storage import MissingFileError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

VARIABLES = {"s3": "AWS_", "s3a": "AWS_", "gs": "GOOGLE_", "az": "AZURE_", "abfs": "AZURE_", "abfss": "AZURE_"}
"""Schemes of URLs, and the prefix of the environment variables that go with each."""

YES = ("1", "true", "yes", "on")
LONGEST_CAUSE = 300


@dataclass(frozen=True)
class Patience:
    """How long to try.

    Attributes:
        connect: seconds to reach the server.
        stall: seconds without a byte of an answer after which a request counts as failed.
        request: seconds for one request with its data.
        retries: of a request that failed: on server errors, lost connections and stalls.
        first_pause: seconds before the first retry; each later pause is twice as long, with some chance in it.
        longest_pause: seconds.
    """

    connect: float = 10.0
    stall: float = 30.0
    request: float = 300.0
    retries: int = 6
    first_pause: float = 0.2
    longest_pause: float = 20.0

    def client_options(self, variables: str) -> "ClientConfig":
        """As obstore takes it, with those options of the environment that it would pass over for ours."""
        options: ClientConfig = {
            "connect_timeout": timedelta(seconds=self.connect),
            "read_timeout": timedelta(seconds=self.stall),
            "timeout": timedelta(seconds=self.request),
            "allow_http": os.environ.get(f"{variables}ALLOW_HTTP", "").lower() in YES,
            "allow_invalid_certificates": os.environ.get(f"{variables}ALLOW_INVALID_CERTIFICATES", "").lower() in YES,
        }
        proxy = os.environ.get(f"{variables}PROXY_URL")
        if proxy:
            options["proxy_url"] = proxy
        return options

    def retry_config(self) -> "RetryConfig":
        """As obstore takes it."""
        return {
            "max_retries": self.retries,
            # Not a limit of its own: obstore would sign late retries with credentials from the first attempt.
            "retry_timeout": timedelta(seconds=min(240.0, self.request)),
            "backoff": {
                "init_backoff": timedelta(seconds=self.first_pause),
                "max_backoff": timedelta(seconds=self.longest_pause),
                "base": 2,
            },
        }


class RemoteStorage:
    """Files below a URL. Make one with `open_remote`. Any number of threads may share it."""

    def __init__(self, url: str, store: Any) -> None:
        self.url = url
        self._store = store

    @property
    def location(self) -> str:
        """The URL."""
        return self.url

    def read(self, name: str) -> bytes:
        """A whole file by one request. Raises MissingFileError; StoreError where the server fails for good."""
        try:
            return bytes(self._store.get(name).bytes())
        except FileNotFoundError as error:
            raise self._missing(name, error) from error
        except Exception as error:
            raise self._refused(name, "read", error) from error

    def write(self, name: str, data: bytes) -> None:
        """Write by one request, which the server carries out whole or not at all."""
        try:
            self._store.put(name, data, use_multipart=False)
        except Exception as error:
            raise self._refused(name, "written", error) from error

    def create(self, name: str, data: bytes) -> bool:
        """As `write`, with the condition that there is no such object yet, which the server checks."""
        from obstore.exceptions import AlreadyExistsError

        try:
            self._store.put(name, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            return False
        except Exception as error:
            raise self._refused(name, "written", error) from error
        return True

    def delete(self, name: str) -> None:
        """Remove a file."""
        try:
            with suppress(FileNotFoundError):
                self._store.delete(name)
        except Exception as error:
            raise self._refused(name, "deleted", error) from error

    def forget(self, name: str) -> bool:
        """Nothing is kept here, but what came may have been damaged on its way."""
        return True

    def sizes(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """Name and size of every file, listed in pages."""
        # Object stores list whole folders; the rest of the prefix is compared here.
        folder = prefix.rpartition("/")[0]
        try:
            for page in self._store.list(folder or None):
                for file in page:
                    if file["path"].startswith(prefix):
                        yield file["path"], file["size"]
        except Exception as error:
            raise self._refused(prefix, "listed", error) from error

    def free_bytes(self) -> int | None:
        """Unknown."""
        return None

    def _missing(self, name: str, error: Exception) -> Exception:
        # A missing bucket answers 404 as a missing object does.
        if "NoSuchBucket" in str(error):
            return self._refused(name, "read", error)
        return MissingFileError(name)

    def _refused(self, name: str, what: str, error: Exception) -> StoreError:
        cause = first_line(error)
        if "NoSuchBucket" in str(error):
            hint = "There is no such bucket; make it, or check the URL."
        elif "BadScheme" in str(error):
            hint = "For an endpoint without TLS set AWS_ALLOW_HTTP=true."
        elif type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError") or "credential" in cause:
            hint = "Check the credentials in the environment (for S3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)."
        else:
            hint = "Check the network and the endpoint (for S3: AWS_ENDPOINT_URL), then run the command again."
        return StoreError(f"{self.url}/{name}: cannot be {what} ({cause}). {hint}")


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
        options = patience.client_options(VARIABLES[scheme])
        store = from_url(url, client_options=options, retry_config=patience.retry_config())
    except Exception as error:
        raise StoreError(
            f"{url}: cannot be opened ({first_line(error)}). Check the URL and the variables of the environment."
        ) from error
    return RemoteStorage(url, store)


def first_line(error: Exception) -> str:
    """An error's cause without the lines that are for obstore's developers."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__).partition(": <?xml")[0]
    return line if len(line) <= LONGEST_CAUSE else f"{line[:LONGEST_CAUSE]}..."
