"""Tests of target stores on every kind of storage."""

import pytest

pytest.register_assert_rewrite("tests.store.conformance", "tests.store.store_conformance")
