"""/v1/fine_tuning/jobs: a training file becomes a run's own, and its adapter a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from api_fakes import ask, complaint, demo, fits
from api_office import Desk, lines, open_desk

from potluck.errors import UserError
from potluck.node.jobs.states import Event
from potluck.node.jobs.tuning_file import STEPS_MOST, TOKENS_LEAST, Hyper, course_of, read_texts
from potluck.node.process import process_id
from potluck.node.runs.finetune import load_plan
from potluck.swarm.run.shards import Split

JOBS = "/v1/fine_tuning/jobs"
TALES = [{"text": f"Tale {number}. " + "Once there was a function. " * 9} for number in range(12)]


async def begin(desk: Desk, told: Any = TALES, **more: Any) -> Any:
    made = await desk.bring(lines(*told), "fine-tune", "tales.jsonl")
    return await ask(desk.api, JOBS, {"model": "demo", "training_file": made["id"], **more})


async def test_a_run_is_made_followed_and_its_adapter_is_a_model(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        hyper = {"n_epochs": 2, "batch_size": 2, "learning_rate_multiplier": 0.5}
        method = {"type": "supervised", "supervised": {"hyperparameters": hyper}}
        made = fits(await begin(desk, suffix="poet", seed=5, method=method), "Tuning")
        assert made["status"] == "queued" and made["fine_tuned_model"] is None
        assert made["hyperparameters"] == hyper and made["seed"] == 5
        job = desk.office.jobs.get(made["potluck"]["job"])
        assert desk.started == [job.id] and job.kind == "finetune"
        plan = load_plan(Path(job.spec["file"]))
        assert (plan.model, plan.seed, plan.training.batch) == ("demo", 5, 2)
        assert plan.training.learning_rate == pytest.approx(5e-4)
        jobs, place = desk.office.jobs, f"{JOBS}/{made['id']}"
        lease = jobs.claim(job.id, process_id(), 1.0)
        assert lease is not None
        jobs.point(lease, 1, 3.5)
        jobs.point(lease, 2, 2.5)
        jobs.beat(lease, jobs.get(job.id).progress)
        events = fits(await ask(desk.api, f"{place}/events"), "TuningEvents")["data"]
        assert [one["data"].get("train_loss") for one in events] == [2.5, 3.5, None]
        assert (await ask(desk.api, f"{place}/checkpoints")).json["data"] == []
        jobs.leave(lease, Event.FINISH, 2.0)
        done = fits(await ask(desk.api, place), "Tuning")
        assert done["status"] == "succeeded"
        assert done["fine_tuned_model"] == f"demo:poet-{job.id}"
        kept = fits(await ask(desk.api, f"{place}/checkpoints"), "TuningCheckpoints")["data"]
        assert kept[0]["metrics"]["train_loss"] == 2.5
        found = await desk.tunings.models()
        assert found == {f"demo:poet-{job.id}": ("demo", Path(job.spec["folder"]))}
        complaint(await ask(desk.api, f"{place}/cancel", method="POST"), 409)
        assert fits(await ask(desk.api, JOBS), "Tunings")["data"] == [done]


async def test_a_run_is_paused_resumed_and_cancelled(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        place = f"{JOBS}/{(await begin(desk)).json['id']}"
        for verb, status in (("pause", "paused"), ("resume", "queued"), ("cancel", "cancelled")):
            told = await ask(desk.api, f"{place}/{verb}", method="POST")
            assert fits(told, "Tuning")["status"] == status
        assert len(desk.started) == 2


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ([{"messages": [{"role": "user"}]}], "line 1: each message"),
        ([{"text": "a"}, {"words": "b"}], "line 2: neither"),
        (["text"], "line 1: no JSON object"),
        ([{"text": "one"}], "sequence"),
        ([], "empty"),
    ],
)
async def test_a_training_file_that_is_none_is_refused_with_its_line(
    tmp_path: Path, told: Any, why: str
) -> None:
    async with open_desk(tmp_path) as desk:
        found = complaint(await begin(desk, told), 400)
        assert why in found["message"] and found["param"] == "training_file"
        assert desk.office.jobs.all() == []


@pytest.mark.parametrize(
    ("more", "status", "param"),
    [
        ({"model": "nobody"}, 404, "model"),
        ({"training_file": "file-none"}, 404, "training_file"),
        ({"validation_file": "file-none"}, 400, "validation_file"),
        ({"suffix": "a b"}, 400, "suffix"),
        ({"hyperparameters": {"n_epochs": 0}}, 400, "hyperparameters.n_epochs"),
        ({"method": {"type": "dpo"}}, 400, "method.type"),
        ({"integrations": [{"type": "wandb"}]}, 400, "integrations"),
    ],
)
async def test_what_a_run_cannot_be_is_named(
    tmp_path: Path, more: dict[str, Any], status: int, param: str
) -> None:
    async with open_desk(tmp_path) as desk:
        assert complaint(await begin(desk, **more), status)["param"] == param


def test_every_kind_of_line_is_text(tmp_path: Path) -> None:
    """A chat by the model's own template, without the words that ask it to go on."""
    talk = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    file = tmp_path / "some.jsonl"
    file.write_bytes(lines({"messages": talk}, {"prompt": "a", "completion": "b"}, {"text": "c"}))
    template = demo().template
    assert template is not None
    chat, both, plain = read_texts(file, template)
    assert "Why?" in chat and "So." in chat and (both, plain) == ("ab", "c")
    assert template.render(talk).startswith(chat)
    with pytest.raises(UserError, match="no chat template"):
        read_texts(file, None)


def test_an_epoch_is_all_of_the_file_and_a_runs_own_is_short() -> None:
    voice = demo().voice
    texts = ["Once there was a function. " * 40] * 200
    course = course_of(texts, voice.text, voice.context, Hyper(epochs=2, batch=1))
    trained = course.sequences - round(course.held_out * course.sequences)
    assert course.steps <= STEPS_MOST
    assert trained <= course.epochs / 2 * course.steps * course.batch < 1.1 * trained
    few = course_of(["Once there was a function that returned."] * 8, voice.text, 512, Hyper())
    assert few.tokens >= TOKENS_LEAST and few.sequences >= 2
    assert Split.of(few.sequences, few.held_out, 1).held >= 1  # by which weights are judged


async def test_the_file_of_a_run_says_what_it_was_asked(tmp_path: Path) -> None:
    async with open_desk(tmp_path) as desk:
        await begin(desk, [{"text": 'quotes " and \\ and ä'}, *TALES])
        (job,) = desk.office.jobs.all()
        file = Path(job.spec["file"])
        assert load_plan(file).data.files == ("train.jsonl",)
        assert read_texts(file.parent / "train.jsonl", None)[0] == 'quotes " and \\ and ä'
