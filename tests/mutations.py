"""Files that were cut or edited at random places, for fuzz tests."""

from hypothesis import strategies as st

PLACE = st.floats(0, 1)
EDITS = st.lists(st.tuples(PLACE, st.integers(0, 2), st.binary(min_size=1, max_size=8)), max_size=4)


def mutated(data: bytes, cut: float, edits: list[tuple[float, int, bytes]]) -> bytes:
    """Cut a file's end off, then overwrite, delete or insert bytes at relative places."""
    content = bytearray(data[: int(len(data) * cut)])
    for place, kind, value in edits:
        at = int(place * len(content))
        if kind == 0:
            content[at : at + len(value)] = value
        elif kind == 1:
            del content[at : at + len(value)]
        else:
            content[at:at] = value
    return bytes(content)
