"""/v1/files: kept whole, within bounds, and nothing else of the disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from api_fakes import ask, complaint, fits
from api_office import Desk, form, lines, open_desk

from potluck.node.api.http import ClientGone
from potluck.node.jobs import files as files_module
from potluck.node.jobs.files import Files

TEXT = lines({"text": "a"}, {"text": "ä"})


def left_in(home: Path) -> list[str]:
    return sorted(one.name for one in (home / "files").iterdir())


async def test_a_file_is_brought_listed_read_and_deleted(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        made = await desk.bring(TEXT, "fine-tune", "C:\\folder\\tales.jsonl")
        assert made["filename"] == "tales.jsonl" and made["bytes"] == len(TEXT)
        place = f"/v1/files/{made['id']}"
        assert fits(await ask(desk.api, place), "File") == made
        content = await ask(desk.api, f"{place}/content")
        assert content.body == TEXT
        assert content.headers["content-type"] == "application/octet-stream"
        assert fits(await ask(desk.api, "/v1/files"), "Files")["data"] == [made]
        assert (await ask(desk.api, "/v1/files?purpose=batch")).json["data"] == []
        gone = fits(await ask(desk.api, place, method="DELETE"), "FileDeleted")
        assert gone == {"id": made["id"], "object": "file", "deleted": True}
        for path in (place, f"{place}/content"):
            complaint(await ask(desk.api, path), 404)
        complaint(await ask(desk.api, place, method="DELETE"), 404)
        assert left_in(tmp_path) == []


async def test_a_large_file_comes_and_goes_in_pieces(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    async with open_desk(tmp_path) as desk:
        made = await desk.bring(content, "user_data")
        found = await ask(desk.api, f"/v1/files/{made['id']}/content")
        assert found.body == content and found.headers["content-length"] == "3000000"


async def test_lists_go_page_by_page(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        made = [(await desk.bring(TEXT))["id"] for _ in range(5)]
        every = (await ask(desk.api, "/v1/files?order=asc")).json["data"]
        assert sorted(one["id"] for one in every) == sorted(made)
        found, after = list[str](), ""
        while True:
            told = (await ask(desk.api, f"/v1/files?order=asc&limit=2{after}")).json
            found += [one["id"] for one in told["data"]]
            if not told["has_more"]:
                break
            after = f"&after={told['last_id']}"
        assert found == [one["id"] for one in every]
        many = ("limit=0", "limit=x", "limit=000000001" + "9" * 5000, "&".join(["a=1"] * 99))
        for query in (*many, "order=up", "after=file-none"):
            complaint(await ask(desk.api, f"/v1/files?{query}"), 400)


@pytest.mark.parametrize(
    ("sent", "status", "param"),
    [
        (form(("file", "a", b"x")), 400, "purpose"),
        (form(("purpose", None, b"batch")), 400, "file"),
        (form(("purpose", None, b"vision"), ("file", "a", b"x")), 400, "purpose"),
        (form(("purpose", None, b"batch"), ("file", None, b"x")), 400, "file"),
        (form(("color", None, b"red")), 400, "color"),
        (form(("file", "a", b"x"), ("file", "b", b"y")), 400, "file"),
        (form(("purpose", None, b"b" * 9999)), 400, None),
        (form(("purpose", None, b"batch"), ("file", "a", b"x"))[:-6], 400, None),
    ],
)
async def test_a_form_that_is_none_leaves_nothing(
    tmp_path: Path, sent: bytes, status: int, param: str | None
) -> None:
    async with open_desk(tmp_path) as desk:
        assert complaint(await desk.send(sent), status)["param"] == param
        complaint(await desk.send(b"{}", "application/json"), 415)
        assert left_in(tmp_path) == []


async def test_who_leaves_while_bringing_leaves_nothing(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        whole = form(("purpose", None, b"batch"), ("file", "a", b"x" * 100))
        half = [{"type": "http.request", "body": whole[:90], "more_body": True},
                {"type": "http.disconnect"}]  # fmt: skip

        async def receive() -> dict[str, object]:
            return half.pop(0)

        async def send(message: object) -> None:
            raise AssertionError(message)

        headers = [
            (b"content-type", b"multipart/form-data; boundary=here"),
            (b"host", b"localhost"),
        ]
        scope = {"type": "http", "method": "POST", "path": "/v1/files", "headers": headers}
        with pytest.raises(ClientGone):
            await desk.api(scope, receive, send)
        assert left_in(tmp_path) == []


async def test_what_is_too_large_is_refused_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files_module, "FILE_BYTES_MAX", 1000)
    monkeypatch.setattr(files_module, "TOTAL_BYTES_MAX", 1500)
    async with open_desk(tmp_path) as desk:
        await desk.bring(b"x" * 1000)
        assert await _refused(desk, 1001) and await _refused(desk, 501)
        await desk.bring(b"x" * 500)
        assert await _refused(desk, 1)
        assert len(left_in(tmp_path)) == 2


async def _refused(desk: Desk, size: int) -> bool:
    told = await desk.send(form(("purpose", None, b"batch"), ("file", "a", b"x" * size)))
    return complaint(told, 413)["code"] == "file_too_large"


async def test_no_name_leads_out_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    async with open_desk(tmp_path) as desk:
        for name in ("..%2Fsecret", "..", ".", "file-" + "0" * 24, "file-batch-1-output", "%00"):
            for method in ("GET", "DELETE"):
                complaint(await ask(desk.api, f"/v1/files/{name}", method=method), 404)
            complaint(await ask(desk.api, f"/v1/files/{name}/content"), 404)


def test_what_a_killed_process_left_is_swept_and_a_damaged_file_is_none(tmp_path: Path) -> None:
    files = Files(tmp_path)
    kept = files.put("a", "batch", b"abc", 1.0)
    half = tmp_path / "files" / ".file-half.1"
    half.mkdir()
    files.sweep()
    assert half.exists()  # an upload of now
    os.utime(half, (0, 0))
    files.sweep()
    assert not half.exists() and files.all() == [kept]
    about = tmp_path / "files" / kept.id / "about"
    about.write_text(json.dumps({"name": 3}))
    assert files.all() == [] and files.get(kept.id) is None
