"""The directory, small: as fast, as stubborn and as clean as the bars ask. `make bars` measures."""

from __future__ import annotations

from .dht_day import _day, _visits
from .dht_foes import among_real_hosts
from .dht_hostile import _eclipse, _mixed
from .dht_scale import measure
from .dht_world import World, run


def test_a_dozen_hosts_in_processes_read_fresh_records_and_survive_a_kill() -> None:
    """A record is fresh or the read does not count; the times are the bar's, with eight times the
    hosts."""
    found = measure(small=True)
    assert found["read_fresh_share"] == 1.0 and found["after_kill_share"] == 1.0
    assert found["read_ms_p50"] < 150 and found["after_kill_ms_p50"] < 500
    assert found["light_node_pss_mib"] < 110


def test_no_kind_of_liar_hides_a_record_or_makes_one_up() -> None:
    count = run(lambda world: _mixed(world, 24, 24), seed=3)
    assert (count.right, count.wrong) == (24, 0)


def test_a_besieged_key_is_found() -> None:
    """70 peers, 21 of them nearer to the key than anybody else: more than a record has keepers."""
    count = run(lambda world: _eclipse(world, 70, 8), seed=2)
    assert (count.right, count.wrong) == (8, 0)


async def test_real_hosts_find_the_truth_among_liars() -> None:
    found = await among_real_hosts(20)
    assert found["right_share"] == 1.0 and found["questions_to_the_hostile"] > 20


def test_ten_hours_of_coming_and_going_leave_nothing_behind() -> None:
    """At a hundred times the usual pace, 20 guests have come and gone by the end; the two that
    stay hold nothing of theirs but a few contacts to be forgotten."""

    async def story(world: World) -> dict[str, object]:
        return await _day(world, 0.1)

    found = run(story, seed=1)
    rest = found["afterwards"]
    assert found["found"] == found["reads"] > 0 and found["visits"] >= 15
    assert isinstance(rest, dict)
    assert rest["records"] == rest["marks"] == 0
    assert rest["streams"] <= 4 and rest["tasks"] < 20


async def test_real_guests_leave_no_stream_task_or_descriptor() -> None:
    found = await _visits(20)
    before, after = found["after_a_fifth"], found["at_the_end"]
    for name in ("tasks", "descriptors", "connections", "streams", "links", "answering"):
        assert before[name] == after[name], name
