"""/v1/batches: what is asked is judged at once, and answered by the durable jobs of the home."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from api_fakes import ask, complaint, fits
from api_office import Desk, lines, open_desk
from test_job_batch import Swarm, again

from potluck.node.jobs.states import Event
from potluck.node.process import process_id

CHATS = "/v1/chat/completions"
TALK = [{"role": "user", "content": "What does len do?"}]


def line(name: str, **body: Any) -> dict[str, Any]:
    told = {"model": "demo", "messages": TALK, "max_tokens": 3, **body}
    return {"custom_id": name, "method": "POST", "url": CHATS, "body": told}


async def begin(desk: Desk, *told: object, **more: Any) -> Any:
    made = await desk.bring(lines(*told))
    asked = {"input_file_id": made["id"], "endpoint": CHATS, "completion_window": "24h", **more}
    return await ask(desk.api, "/v1/batches", asked)


async def work(desk: Desk, batch: Any) -> None:
    """As its worker does."""
    begun = again(desk.office.jobs, batch["potluck"]["job"], process_id())
    await begun.run(Swarm())
    await begun.desk.beat()
    desk.office.jobs.leave(begun.lease, Event.FINISH, time.time())


async def test_a_batch_is_answered_line_by_line_and_told_in_two_files(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        asked = [line("a"), line("b", temperature=9), line("c", seed=3)]
        made = fits(await begin(desk, *asked, metadata={"k": "v"}), "Batch")
        assert made["status"] == "in_progress" and made["metadata"] == {"k": "v"}
        assert desk.started == [made["potluck"]["job"]]
        assert made["output_file_id"] is None
        place = f"/v1/batches/{made['id']}"
        await work(desk, made)
        done = fits(await ask(desk.api, place), "Batch")
        assert done["status"] == "completed" and done["completed_at"] >= done["created_at"]
        assert done["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
        output = await told_in(desk, done["output_file_id"])
        assert [one["custom_id"] for one in output] == ["a", "c"]
        assert output[0]["response"]["body"]["choices"][0]["message"]["content"]
        (error,) = await told_in(desk, done["error_file_id"])
        assert (error["custom_id"], error["response"]["status_code"]) == ("b", 400)
        listed = fits(await ask(desk.api, "/v1/files"), "Files")["data"]
        assert {one["purpose"] for one in listed} == {"batch", "batch_output"}
        told = complaint(
            await ask(desk.api, f"/v1/files/{done['output_file_id']}", method="DELETE"), 400
        )
        assert "potluck job delete" in told["message"]
        complaint(await ask(desk.api, f"{place}/cancel", method="POST"), 409)
        assert fits(await ask(desk.api, "/v1/batches"), "Batches")["data"] == [done]


async def told_in(desk: Desk, file: str) -> list[Any]:
    told = fits(await ask(desk.api, f"/v1/files/{file}"), "File")
    content = (await ask(desk.api, f"/v1/files/{file}/content")).body
    assert len(content) == told["bytes"]
    return [json.loads(one) for one in content.splitlines()]


async def test_a_cancelled_batch_keeps_what_it_has(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        made = (await begin(desk, line("a"), line("b"))).json
        jobs, job = desk.office.jobs, made["potluck"]["job"]
        lease = jobs.claim(job, process_id(), 1.0)
        assert lease is not None
        jobs.answer(lease, 1, '{"custom_id": "a"}')
        gone = await ask(desk.api, f"/v1/batches/{made['id']}/cancel", method="POST")
        assert fits(gone, "Batch")["status"] == "cancelled"
        assert await told_in(desk, gone.json["output_file_id"]) == [{"custom_id": "a"}]
        assert gone.json["error_file_id"] is None


async def test_what_only_a_person_can_mend_has_failed_and_why(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        made = (await begin(desk, line("a"))).json
        jobs, place = desk.office.jobs, f"/v1/batches/{made['id']}"
        job = made["potluck"]["job"]
        jobs.ask(job, Event.PAUSE, 1.0)
        assert fits(await ask(desk.api, place), "Batch")["status"] == "in_progress"
        jobs.ask(job, Event.RESUME, 1.0)
        lease = jobs.claim(job, process_id(), 1.0)
        assert lease is not None
        jobs.leave(lease, Event.PAUSE, 1.0, "no files here")
        told = fits(await ask(desk.api, place), "Batch")
        assert told["status"] == "failed" and told["failed_at"]
        assert told["errors"]["data"][0]["message"] == "no files here"


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ([line("a"), line("a")], "another line's"),
        ([{"prompt": "plain", "model": "demo"}], "no request of"),
        ([{**line("a"), "url": "/v1/completions"}], "no request of"),
        ([{**line("a"), "url": "/v1/models"}], "url is none"),
        ([line("")], "custom_id"),
        ([], "empty"),
    ],
)
async def test_a_file_that_cannot_be_asked_is_refused_at_once(
    tmp_path: Path, told: list[Any], why: str
) -> None:
    async with open_desk(tmp_path) as desk:
        found = complaint(await begin(desk, *told), 400)
        assert why in found["message"] and found["param"] == "input_file_id"
        assert desk.office.jobs.all() == [] and desk.started == []


async def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        complaint(await begin(desk, line("a", model="nobody")), 404)
        complaint(await begin(desk, line("a"), input_file_id="file-none"), 404)
        complaint(await begin(desk, line("a"), completion_window="1h"), 400)
        complaint(await begin(desk, line("a"), endpoint="/v1/embeddings"), 400)
        other = (await desk.bring(b"x", "fine-tune"))["id"]
        complaint(await begin(desk, line("a"), input_file_id=other), 400)
        mine = desk.office.jobs.add("batch", "by hand", {}, ["{}"], 1.0)
        for name in ("batch_99", f"batch_{mine}", "7", "batch_x", "batch_" + "9" * 40):
            complaint(await ask(desk.api, f"/v1/batches/{name}"), 404)
        assert (await ask(desk.api, "/v1/batches")).json["data"] == []
