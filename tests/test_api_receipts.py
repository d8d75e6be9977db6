"""A receipt on request: one for each choice, once all of it is said; and none where none is."""

from __future__ import annotations

import base64

from api_fakes import ASKED, CHAT, COMPLETIONS, TALK, PretendedSwarm, ask, fits

from potluck.node.api.app import Api


async def test_each_choice_has_its_receipt() -> None:
    asked = {**ASKED, "n": 2, "receipt": True, "ignore_eos": True}
    told = fits(await ask(Api(PretendedSwarm()), COMPLETIONS, asked), "Completion")
    receipts = [base64.b64decode(one) for one in told["potluck"]["receipts"]]
    assert receipts == [b"signed 12", b"signed 12"]
    plain = await ask(Api(PretendedSwarm()), COMPLETIONS, ASKED)
    assert "receipts" not in plain.json["potluck"]


async def test_a_stream_tells_it_at_its_end_with_usage_or_without() -> None:
    for usage in (False, True):
        asked = {**TALK, "receipt": True, "stream": True}
        if usage:
            asked["stream_options"] = {"include_usage": True}
        *_, last = (await ask(Api(PretendedSwarm()), CHAT, asked)).events
        assert last["choices"] == [] and len(last["potluck"]["receipts"]) == 1
        assert ("usage" in last) is usage
