"""The attack runs, counts every attack once, and its cheap kinds find nothing."""

import json

from tests.benchmarks.faults.verdicts import COLUMNS
from tests.shared.reduced import finish, start

CHEAP = ("kill merge", "scan file: read", "manifest: info", "forged archive: merge", "forged manifest: verify")


def test_cheap_attacks_are_all_named_or_survived():
    only = [word for kind in CHEAP for word in ("--only", kind)]
    output = finish(start("-m", "tests.benchmarks.bench_faults", "--json", "--share", "0.1", *only))
    numbers = json.loads(output.splitlines()[-1])
    assert tuple(numbers) == COLUMNS
    assert numbers["injected"] == numbers["named"] + numbers["survived"] > 20
    assert numbers["silent"] == numbers["tracebacks"] == 0
    assert 0 < numbers["identical"] <= numbers["survived"]
