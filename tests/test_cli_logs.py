"""What a log line is: for people, and for whatever collects lines."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
import structlog

from potluck.cli.logs import show_logs
from potluck.errors import UserError
from potluck.node.log import get_logger

pytestmark = pytest.mark.usefixtures("logs_as_before")


def say_some() -> None:
    log = get_logger()
    log.debug("nobody hears this")
    with structlog.contextvars.bound_contextvars(session="ab12"):
        log.warning("lost\na hop", peer="12D3", size=3, raw=b"\xff", of={"a", })  # fmt: skip
    try:
        raise ZeroDivisionError("broken")
    except ZeroDivisionError:
        log.exception("our own fault")


def test_as_json_each_line_is_one_object_whatever_it_is_about(
    capfd: pytest.CaptureFixture[str],
) -> None:
    show_logs("info", as_json=True)
    say_some()
    told = capfd.readouterr()
    assert told.out == ""
    lost, fault = (json.loads(line) for line in told.err.splitlines())
    assert lost["event"] == "lost\na hop" and lost["level"] == "warning"
    assert (lost["peer"], lost["size"], lost["session"]) == ("12D3", 3, "ab12")
    at = datetime.fromisoformat(lost["time"])
    assert abs(datetime.now(UTC) - at) < timedelta(minutes=1)
    assert fault["level"] == "error" and "ZeroDivisionError: broken" in fault["exception"]


def test_for_people_a_line_has_its_hour_and_no_object(capfd: pytest.CaptureFixture[str]) -> None:
    show_logs("warning")
    say_some()
    told = capfd.readouterr().err
    assert "lost" in told and "peer=12D3" in told and not told.startswith("{")


def test_a_level_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="is not one of debug, info"):
        show_logs("loud", as_json=True)
