"""Splitting work over processes that do not talk to each other."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from common.base.errors import SettingsError

Item = TypeVar("Item")


@dataclass(frozen=True)
class Shard:
    """Part `index` (from 0) of `count` parts; prints as `0/4`."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """The inverse of `str`; a SettingsError if the text is not `index/count` with 0 <= index < count."""
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None or not int(match[1]) < int(match[2]):
            raise SettingsError(f"shard '{text}': write index/count with index from 0, for example 0/4 to 3/4")
        return cls(int(match[1]), int(match[2]))

    @classmethod
    def of_process(cls, given: str | None) -> "Shard":
        """The shard that the user gave, else this process's rank under torchrun, else everything; both are refused."""
        ranks = int(os.environ.get("WORLD_SIZE", "1"))
        if given is None:
            return cls(int(os.environ.get("RANK", "0")), ranks)
        if ranks > 1:
            raise SettingsError("--shard and torchrun both split the scans; use one of them")
        return cls.parse(given)

    def of(self, items: Sequence[Item]) -> list[Item]:
        """This shard's share of the items: every count-th, so that long sequences are shared evenly."""
        return list(items[self.index :: self.count])
