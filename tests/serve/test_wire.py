"""What goes between the processes: JSON and bytes, nothing that runs."""

import io
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.serve.wire import Frame, packed, read_frame

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
HEADS = st.dictionaries(st.text(max_size=10).filter(lambda key: key != "bytes"), JSON, max_size=5)


@given(st.lists(st.tuples(HEADS, st.lists(st.binary(max_size=50), max_size=3)), max_size=5))
def test_messages_arrive_as_they_were_sent(messages: list[tuple[dict[str, Any], list[bytes]]]):  # Any: JSON
    stream = io.BytesIO(b"".join(packed(head, *parts) for head, parts in messages))
    for head, parts in messages:
        assert read_frame(stream) == Frame(head, tuple(parts))
    assert read_frame(stream) is None


@pytest.mark.parametrize(
    "sent",
    [b"[1]\n", b"1\n", b"{\n", b"\x80\x04.\n", b'{"bytes":[-1]}\n', b'{"bytes":[99999999999]}\n', b'{"bytes":3}\n'],
)
def test_anything_else_is_refused(sent: bytes):
    with pytest.raises((ValueError, TypeError)):
        read_frame(io.BytesIO(sent))


def test_a_pickle_stays_bytes():
    data = pickle.dumps(print)
    assert read_frame(io.BytesIO(packed({"is": "picture"}, data))) == Frame({"is": "picture"}, (data,))


@given(st.binary(max_size=60), st.integers(0, 80))
def test_a_message_that_was_cut_off_is_no_message(part: bytes, cut: int):
    whole = packed({"a": 1}, part)
    if cut < len(whole):
        assert read_frame(io.BytesIO(whole[:cut])) is None
