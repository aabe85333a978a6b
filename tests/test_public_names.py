"""The public surface: what is promised exists, and nothing else is public by accident."""

import pytest

import mezzotint

PROMISED = {
    *(
        "load",
        "generate",
        "stream",
        "replay",
        "evaluate",
        "EvaluationSpec",
        "Evaluation",
        "Request",
        "Progress",
        "Result",
        "System",
    ),
    *("explain", "Story"),
    *("MezzotintError", "ConfigError", "CheckpointError", "RequestError"),
}


def test_promised_names_resolve_and_are_documented() -> None:
    assert set(mezzotint.__all__) == PROMISED
    for name in mezzotint.__all__:
        assert getattr(mezzotint, name).__doc__, f"{name} has no docstring"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'generat'"):
        _ = mezzotint.generat  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType, reportUnknownMemberType]
