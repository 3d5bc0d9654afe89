"""The weights of one network in a checkpoint, wherever the program that made it has put them and whatever it put before
their names. Only a place that holds every name of the network and no other is taken; nothing is ever loaded in part.
"""

import sys
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from common.base.errors import CheckpointError
from common.base.text import printable
from common.training.checkpoint import check_plain, listed, load_checkpoint

WRAPPERS = ("model_state_dict", "state_dict", "model")
"""Entries that hold the weights in common use; of several complete ones the first is taken."""

EXAMPLES = 3
FOREIGN = {"mmdetection3d": {"backbone", "decode_head"}}
"""First parts of names by the program that gives them, and whose layers are not those of the original code."""


class Place(NamedTuple):
    """A part of a checkpoint that may be the weights of a network.

    Attributes:
        entry: of the file, empty for the whole.
        tensors: in it, by name.
        others: names of what else is in it.
        prefix: before the names of the network.
        known: number of names of the network below the prefix.
        complete: whether they are all there, and no other tensor.
    """

    entry: str
    tensors: dict[str, torch.Tensor]
    others: list[str]
    prefix: str
    known: int
    complete: bool

    def weights(self) -> dict[str, torch.Tensor]:
        """Tensors by name without the prefix; with it where two names would become one."""
        short = {name.removeprefix(self.prefix): tensor for name, tensor in self.tensors.items()}
        return short if len(short) == len(self.tensors) else self.tensors

    def __str__(self) -> str:
        return f"{len(self.tensors)} tensors{self.where}, such as {listed(list(self.tensors)[:EXAMPLES])}"

    @property
    def where(self) -> str:
        """The entry, for messages."""
        return f" in the entry '{printable(self.entry)}'" if self.entry else ""


def load_weights(path: Path, names: Collection[str], what: str) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint file under the names of a network.

    They may lie in one entry of the file, and below one prefix; both are said. Where no place holds just the names of
    the network, the one that holds most of them is returned, for `check_fits` to refuse. `what` names the network in
    messages.

    Raises:
        CheckpointError: see `load_checkpoint`; or there is none of the names, several places hold all of them, or
            something else than plain tensors is among them.
    """
    content = load_checkpoint(path)
    parts = [("", content), *content.items()]
    found = [place for entry, part in parts if (place := place_of(str(entry), part, names)).tensors]
    complete = [place for place in found if place.complete]
    best = chosen(path, complete) if complete else max(found, key=lambda place: place.known, default=None)
    if best is None or not best.known:
        raise CheckpointError(nothing_known(path, found, names, what))
    if best.others:
        raise CheckpointError(
            f"{path}: entries beside the weights are no tensors: {listed(best.others)}. Save model.state_dict() alone."
        )
    weights = best.weights()
    check_plain(str(path), weights)
    if best.complete and (best.entry or best.prefix):
        before = f" below the prefix '{printable(best.prefix)}'" if best.prefix else ""
        tqdm.write(f"note: {path}: all {len(weights)} weights of {what} found{best.where}{before}", file=sys.stderr)
    return weights


def place_of(entry: str, part: Any, names: Collection[str]) -> Place:
    """A part of a checkpoint as a place, with the prefix under which it holds most of the names."""
    values, wanted = part if isinstance(part, Mapping) else {}, set(names)
    tensors = {name: one for name, one in values.items() if isinstance(name, str) and isinstance(one, torch.Tensor)}
    others = [str(name) for name, one in values.items() if not isinstance(one, torch.Tensor)]
    prefixes: Counter[str] = Counter()
    for name in tensors:
        words = name.split(".")
        for start in range(len(words)):
            rest = ".".join(words[start:])
            if rest in wanted:
                prefixes[name.removesuffix(rest)] += 1
    prefix, known = max(prefixes.items(), key=lambda item: (item[1], -len(item[0])), default=("", 0))
    return Place(entry, tensors, others, prefix, known, known == len(wanted) == len(tensors))


def chosen(path: Path, complete: list[Place]) -> Place:
    """The place to take of those that hold all weights; a CheckpointError where nothing says which."""
    if len(complete) == 1:
        return complete[0]
    entries = [place.entry for place in complete]
    for wrapper in WRAPPERS:
        if wrapper in entries:
            others = [entry for entry in entries if entry != wrapper]
            note = f"note: {path}: of several complete sets of weights '{wrapper}' is taken, not {listed(others)}"
            tqdm.write(note, file=sys.stderr)
            return complete[entries.index(wrapper)]
    raise CheckpointError(f"{path}: several entries hold all weights: {listed(entries)}. Save only the one to load.")


def nothing_known(path: Path, found: list[Place], names: Collection[str], what: str) -> str:
    """Says what is in a file that holds no weight of a network, and what would load."""
    lines = [f"{path}: not {what}; nothing was loaded."]
    lines += [f"  found: {place}{origin(place)}" for place in found] or ["  found: no tensors"]
    lines.append(
        f"  would load: exactly {len(names)} tensors, such as {listed(sorted(names)[:EXAMPLES])}; they may be in one "
        "entry of the file, and below one prefix"
    )
    return "\n".join(lines)


def origin(place: Place) -> str:
    """The end of a line about a place: which other program gives such names; empty where that is not known."""
    first = {name.partition(".")[0] for name in place.tensors}
    for program, words in FOREIGN.items():
        if words <= first:
            return f"; {program} uses such names; its layers differ, so its checkpoints cannot be used here"
    return ""
