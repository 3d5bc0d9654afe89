"""Tests of target stores on every kind of storage."""

import pytest

pytest.register_assert_rewrite("tests.targets.store.conformance", "tests.targets.store.store_conformance")
