"""How an attack ended: judged from what a command said and from what can be read afterwards, and counted."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from tests.benchmarks.faults.children import Ended

if TYPE_CHECKING:
    from tests.benchmarks.faults.workshop import Case

Outcome = Literal["named", "survived", "silent", "traceback"]
COLUMNS = ("injected", "named", "survived", "identical", "silent", "tracebacks")
LONGEST_OUTPUT = 1_000_000
"""Characters that a command may print; more is a flood."""


@dataclass(frozen=True)
class Verdict:
    """How one attack ended.

    Attributes:
        outcome: `named`, refused with an error that names the file or the field; `survived`, the command ended well
            and what it left is usable; `silent`, wrong numbers accepted without a word, a crash, a hang, a file
            outside touched, or a refusal that names nothing; `traceback`, a Python traceback was shown.
        identical: of a survivor: what is read is bit for bit what was written.
        detail: what was done and, where it went wrong, what was seen.
    """

    outcome: Outcome
    identical: bool = False
    detail: str = ""


@dataclass(frozen=True)
class Kind:
    """One kind of attack.

    Attributes:
        name: such as "scan file: verify"; what stands before the colon is its row of the table.
        count: attacks of a whole run; their seeds are 0, 1, ...
        attack: does one and says how it ended.
    """

    name: str
    count: int
    attack: "Callable[[Case], Verdict]"

    @property
    def row(self) -> str:
        """Its row of the table."""
        return self.name.partition(":")[0]


def each(name: str, choices: Sequence[str], attack: "Callable[[Case, str], Verdict]") -> Kind:
    """A kind that goes through a list of named forgeries: seed 0 is the first."""
    return Kind(name, len(choices), lambda case: attack(case, choices[case.seed % len(choices)]))


def generator_of(kind: str, seed: int) -> np.random.Generator:
    """Random numbers of one attack: the same for the same kind and seed."""
    return np.random.default_rng([seed, *kind.encode()])


def failure(ended: Ended, what: str) -> Verdict | None:
    """The verdict on a child that ended as no command may, None if it did not."""
    last = " ".join(ended.output.split())[-400:]
    if ended.hung:
        return Verdict("silent", detail=f"{what}: no answer in time: {last}")
    if ended.signal:
        return Verdict("silent", detail=f"{what}: ended by signal {ended.signal}: {last}")
    if "Traceback (most recent call last)" in ended.output:
        return Verdict("traceback", detail=f"{what}: {last}")
    if "\x1b" in ended.output or "\x07" in ended.output:
        return Verdict("silent", detail=f"{what}: printed codes that steer a terminal")
    if "weights_only" in ended.output:
        return Verdict("silent", detail=f"{what}: advises to load code: {last}")
    if len(ended.output) > LONGEST_OUTPUT:
        return Verdict("silent", detail=f"{what}: printed {len(ended.output)} characters")
    return None


def judge(
    ended: Ended, what: str, names: Iterable[str], intact: Callable[[], bool | None], changed: Callable[[], str]
) -> Verdict:
    """The verdict on a command.

    Args:
        ended: how it ended.
        what: was done.
        names: of which an error has to contain one: files, scans, fields.
        intact: after a good end: True, what is read is what was written; None, other but usable results; False, wrong.
        changed: something that must never change and did, in words; empty if nothing did.
    """
    failed = failure(ended, what)
    if failed:
        return failed
    touched = changed()
    if touched:
        return Verdict("silent", detail=f"{what}: {touched}")
    said = " ".join(ended.output.split())
    if ended.status:
        if any(name in said for name in names):
            return Verdict("named", detail=what)
        return Verdict("silent", detail=f"{what}: refused without naming the file or field: {said[-400:]}")
    whole = intact()
    if whole is False:
        return Verdict("silent", detail=f"{what}: ended well with other numbers: {said[-400:]}")
    return Verdict("survived", identical=whole is True, detail=what)


def nothing_changed() -> str:
    """For attacks that have nothing outside to touch."""
    return ""


def counts(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """Numbers of one row."""
    found = list(verdicts)
    return {
        "injected": len(found),
        "named": sum(verdict.outcome == "named" for verdict in found),
        "survived": sum(verdict.outcome == "survived" for verdict in found),
        "identical": sum(verdict.identical for verdict in found),
        "silent": sum(verdict.outcome == "silent" for verdict in found),
        "tracebacks": sum(verdict.outcome == "traceback" for verdict in found),
    }


def table(rows: dict[str, list[Verdict]]) -> str:
    """The verdicts by what was attacked, and all together."""
    width = max(map(len, [*rows, "all"]))
    lines = [f"{'':{width}} " + " ".join(f"{column:>10}" for column in COLUMNS)]
    everything = [verdict for verdicts in rows.values() for verdict in verdicts]
    for name, verdicts in [*rows.items(), ("all", everything)]:
        lines.append(f"{name:{width}} " + " ".join(f"{number:>10}" for number in counts(verdicts).values()))
    return "\n".join(lines)


def summary(rows: dict[str, list[Verdict]]) -> str:
    """All numbers as one JSON object."""
    return json.dumps(counts(verdict for verdicts in rows.values() for verdict in verdicts))
