"""Forms: the same fields however the bytes come in pieces, and as the client's own library says."""

from __future__ import annotations

from itertools import pairwise

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from potluck.node.api.multipart import Data, Multipart, Part, boundary_of
from potluck.node.api.problem import Problem

Fields = list[tuple[Part, bytes]]


def read(body: bytes, boundary: bytes, cuts: list[int]) -> Fields:
    form, found = Multipart(boundary), Fields()
    edges = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    for start, stop in pairwise(edges):
        for one in form.feed(body[start:stop]):
            if isinstance(one, Part):
                found.append((one, b""))
            else:
                assert isinstance(one, Data) and one.content
                found[-1] = (found[-1][0], found[-1][1] + one.content)
    form.end()
    return found


# what is nearly a boundary, and what is none
pieces = st.sampled_from([b"\r\n", b"--", b"--xyz", b"\r\n--xy", b"\r\n--xyz", b"a", b"\0\xff"])


@given(
    st.lists(st.lists(pieces, max_size=8).map(b"".join), min_size=1, max_size=4),
    st.lists(st.integers(0, 600), max_size=12),
)
def test_what_a_form_holds_does_not_depend_on_its_pieces(
    contents: list[bytes], cuts: list[int]
) -> None:
    files = [(f"f{at}", (f"ä {at}.bin", content)) for at, content in enumerate(contents)]
    request = httpx.Request("POST", "http://x", files=files, data={"purpose": "batch"})
    boundary = boundary_of(request.headers["content-type"])
    found = read(request.read(), boundary, cuts)
    told = {part.name: (part.filename, content) for part, content in found}
    assert told.pop("purpose") == (None, b"batch")
    assert told == {name: file for name, file in files}


def test_each_byte_alone_is_enough() -> None:
    body = b'pre\r\n--b \r\nX: y\r\ncontent-disposition: form-data; name="a"\r\n\r\n\r\n--b--epi'
    assert read(body, b"b", list(range(len(body)))) == [(Part("a", None), b"")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b\r\n",
        b'--b\r\ncontent-disposition: form-data; name="a"\r\n\r\nx',
        b"--b\r\ncontent-disposition: form-data\r\n\r\nx\r\n--b--",
        b"--b\r\ncontent-disposition: attachment; name=a\r\n\r\nx\r\n--b--",
        b"--b\r\n\r\n\r\nx\r\n--b--",
        b"--bxx\r\n--b--",
        b"--b\r\n" + b"a: b\r\n" * 2000 + b"\r\n",
        b'--b\r\ncontent-disposition: form-data; name="a"\r\n\r\n\r\n' * 17 + b"--b--",
    ],
)
def test_what_is_no_form_is_told_so(body: bytes) -> None:
    with pytest.raises(Problem) as raised:
        read(body, b"b", [])
    assert raised.value.status == 400


@pytest.mark.parametrize(
    "kind",
    ["", "text/plain", "multipart/form-data", "multipart/form-data; boundary=",
     "multipart/form-data; boundary=" + "a" * 71, 'multipart/form-data; boundary="a\x01b"'],
)  # fmt: skip
def test_what_says_no_boundary_is_no_form(kind: str) -> None:
    with pytest.raises(Problem) as raised:
        boundary_of(kind)
    assert raised.value.status == 415
