"""A skipped test needs a listed reason."""

from conftest import may_skip


def test_only_listed_reasons_may_skip() -> None:
    assert may_skip("Skipped: no C++ compiler here")
    assert not may_skip("Skipped: too slow today")
