"""How long an object store is waited for, and how often it is asked again."""

import os
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

YES = ("1", "true", "yes", "on")


@dataclass(frozen=True)
class Patience:
    """How long to try.

    Attributes:
        connect: seconds to reach the server.
        stall: seconds without a byte of an answer after which a request counts as failed.
        request: seconds for one request with its data.
        outage: seconds after which a request that failed is not tried again: a server that falls silent is waited for
            so long, and for one more stall.
        first_answer: the same for the first request of all: a server that never answers is not waited for.
        retries: of a request that failed: on server errors, lost connections and stalls.
        first_pause: seconds before the first retry; each later pause is twice as long, with some chance in it.
        longest_pause: seconds.
    """

    connect: float = 10.0
    stall: float = 30.0
    request: float = 300.0
    outage: float = 60.0
    first_answer: float = 30.0
    retries: int = 6
    first_pause: float = 0.2
    longest_pause: float = 20.0

    def at_first(self) -> "Patience":
        """With a server that has not answered yet."""
        limit = self.first_answer
        return replace(self, connect=min(self.connect, limit), stall=min(self.stall, limit), outage=limit)

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
            "retry_timeout": timedelta(seconds=min(self.outage, self.request)),
            "backoff": {
                "init_backoff": timedelta(seconds=self.first_pause),
                "max_backoff": timedelta(seconds=self.longest_pause),
                "base": 2,
            },
        }
