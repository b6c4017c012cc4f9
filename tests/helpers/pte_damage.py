"""Ways to damage a `.pte`."""

from hypothesis import strategies as st


def program_bytes(pte):
    """Length of the flatbuffer in front of the segments, from the extended header."""
    return int.from_bytes(pte[16:24], "little")


def mutations(size):
    """Changes to the first ``size`` bytes: (position, replacement)."""
    return st.lists(
        st.tuples(
            st.integers(0, size - 1),
            st.one_of(
                st.binary(min_size=1, max_size=8),
                st.sampled_from([b"\xff" * 4, b"\x00" * 4, b"\x01\x00\x00\x00", b"\xff\xff\xff\x7f"]),
            ),
        ),
        min_size=1,
        max_size=4,
    )


def changed(pte, changes):
    data = bytearray(pte)
    for position, replacement in changes:
        data[position : position + len(replacement)] = replacement
    return bytes(data)
