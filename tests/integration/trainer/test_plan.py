"""Whole plans on real ranks: journal, control word, failing saves, early stop, numerics guard, export."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format

from luthier.trainer_node.lineage import scan_checkpoints, scan_journals
from luthier.v1 import job_pb2, node_service_pb2

pytestmark = pytest.mark.zygote

LORA = {"name": "lora", "params": {"rank": 4}}
HELD_OUT = {"sources": [{"uri": "upload://rows/rows.jsonl"}], "validation_fraction": 0.2}
SAVE, SAVE_AND_LEAVE, STOP = 1, 2, 3


def facts(run: Any, name: str) -> list[dict[str, Any]]:
    return [body for kind, body in run.results[0]["facts"] if kind == name]


def series(run: Any, name: str) -> list[tuple[int, float]]:
    return [(row["step"], row["values"][name]) for row in run.results[0]["rows"] if name in row["values"]]


@pytest.mark.parametrize(("world_size", "stage"), [(1, 0), (2, 3)])
@pytest.mark.parametrize(
    ("adapter", "form", "kind"), [({"name": "full"}, "auto", "model"), (LORA, "auto", "adapter"), (LORA, "merged", "model")]
)
def test_export_opens_with_plain_libraries(
    jobs: Any, ranks: Any, world_size: int, stage: int, adapter: dict[str, Any], form: str, kind: str
) -> None:
    """What a job leaves behind opens with transformers or peft alone and answers like the trained model did in the job."""
    spec = jobs.spec(
        zero_stage=stage, adapter=adapter, output={"form": form}, data=HELD_OUT, steps=12,
        evaluation={"generate_rows": 6, "max_new_tokens": 8},
    )  # fmt: skip
    run = jobs.run("job", world_size, spec).checked()

    result = run.results[0]["result"]
    directory = jobs.prefix("job") / "output" / "a1g1"
    prompts = [sample["prompt"] for sample in result["samples"]]
    opened = ranks("open_export", 1, directory=str(directory), kind=kind, prompts=prompts, max_new_tokens=8).checked()
    assert kind == result["kind"]
    assert [sample["after"] for sample in result["samples"]] == opened.results[0]["answers"]
    assert [sample["before"] for sample in result["samples"]] != opened.results[0]["answers"]
    assert result["metrics"]["eval_loss_after"] < result["metrics"]["eval_loss_before"]
    assert result["digest"] == facts(run, "artifact")[-1]["digest"]
    assert "result" == facts(run, "artifact")[-1]["name"]


@pytest.mark.parametrize("adapter", [{"name": "full"}, LORA], ids=["full", "lora"])
def test_a_model_sharded_while_it_is_read_trains_alike(jobs: Any, adapter: dict[str, Any]) -> None:
    """At ZeRO-3 large models never lie whole on a rank; losses and result are those of the ordinary way."""
    spec = jobs.spec(zero_stage=3, adapter=adapter, steps=3)

    whole = jobs.run("whole", 2, spec).checked()
    sharded = jobs.run("sharded", 2, spec, environment={"LUTHIER_ZERO3_SHARDED_LOAD_BYTES": "0"}).checked()

    assert [loss for _, loss in series(whole, "loss")] == pytest.approx([loss for _, loss in series(sharded, "loss")], abs=2e-6)
    assert whole.results[0]["result"]["kind"] == sharded.results[0]["result"]["kind"]


@pytest.mark.parametrize(("world_size", "stage", "adapter"), [(1, 0, LORA), (2, 0, LORA), (2, 2, LORA), (2, 3, {"name": "full"})])
def test_bf16_runs_to_a_checked_result(jobs: Any, world_size: int, stage: int, adapter: dict[str, Any]) -> None:
    """Training in bf16 evaluates, exports and compares within the stated tolerance."""
    spec = jobs.spec(zero_stage=stage, adapter=adapter, precision="bf16", steps=4, data=HELD_OUT, evaluation={"generate_rows": 2})

    run = jobs.run("job", world_size, spec).checked()

    metrics = run.results[0]["result"]["metrics"]
    assert metrics["eval_loss_after"] < metrics["eval_loss_before"]


def test_recomputed_activations_change_nothing(jobs: Any) -> None:
    """Gradient checkpointing gives the same losses, with adapter dropout on."""
    adapter = {"name": "lora", "params": {"rank": 4, "dropout": 0.2}}

    kept = jobs.run("kept", 2, jobs.spec(zero_stage=3, adapter=adapter, steps=3)).checked()
    recomputed = jobs.run("recomputed", 2, jobs.spec(zero_stage=3, adapter=adapter, steps=3, gradient_checkpointing=True)).checked()

    assert [loss for _, loss in series(kept, "loss")] == pytest.approx([loss for _, loss in series(recomputed, "loss")], abs=1e-6)


def test_packed_rows_train_like_padded_ones(jobs: Any) -> None:
    """The same global batches packed into shared sequences give the same losses."""
    padded = jobs.run("padded", 1, jobs.spec(packing="off", steps=3)).checked()
    packed = jobs.run("packed", 1, jobs.spec(packing="packed", steps=3)).checked()

    assert [loss for _, loss in series(padded, "loss")] == pytest.approx([loss for _, loss in series(packed, "loss")], abs=1e-5)


def test_pretrain_runs_on_two_ranks(jobs: Any) -> None:
    """Build phases run on rank 0 while the other waits; both train what was built."""
    spec = jobs.spec(data=HELD_OUT, steps=6, zero_stage=3)
    params = {"num_layers": 1, "width": 32, "num_heads": 2, "vocabulary_size": 300}
    spec |= {"method": {"name": "pretrain", "params": params}}
    del spec["model"]

    run = jobs.run("job", 2, spec).checked()

    result = run.results[0]["result"]
    assert ["build", "build", "evaluate", "train", "evaluate"] == [fact["kind"] for fact in facts(run, "phase_done")]
    assert result["metrics"]["eval_loss_after"] < result["metrics"]["eval_loss_before"]


def test_a_death_in_the_last_evaluation_repeats_only_that(jobs: Any) -> None:
    """Training is in the journal: the next generation rebuilds the trained model and measures the same numbers."""
    spec = jobs.spec(data=HELD_OUT, steps=4, adapter=LORA, zero_stage=2, evaluation={"generate_rows": 4, "max_new_tokens": 4})
    straight = jobs.run("straight", 2, spec).checked()
    broken = jobs.run("broken", 2, spec, die_at={"rank": 1, "step": 4, "section": "evaluate"})

    resumed = jobs.resume("broken", 2, spec).checked()

    assert -9 == broken.codes[1]
    assert ["evaluate"] == [fact["kind"] for fact in facts(resumed, "phase_started")]
    before, after = straight.results[0]["result"], resumed.results[0]["result"]
    assert before["samples"] == after["samples"]
    assert before["metrics"] == pytest.approx(after["metrics"], abs=1e-6)


def test_messages_are_the_protocols(jobs: Any) -> None:
    """Every fact, row and the result parse as the messages they are sent as."""
    spec = jobs.spec(
        data=HELD_OUT, steps=4, faults={"checkpoint": {"every_steps": 2}}, evaluation={"every_steps": 2, "generate_rows": 2}
    )  # fmt: skip
    run = jobs.run("job", 2, spec).checked()
    again = jobs.resume("job", 2, spec, journal_head=None).checked()

    for name, body in [*run.results[0]["facts"], *again.results[0]["facts"]]:
        json_format.ParseDict({name: body}, node_service_pb2.Fact())
    for row in run.results[0]["rows"]:
        json_format.ParseDict(row, node_service_pb2.Samples.Row())
    json_format.ParseDict(run.results[0]["result"], job_pb2.Result())
    assert [] == run.results[1]["facts"], "rank 0 speaks for the job"


def test_journal_replays_to_the_end(jobs: Any) -> None:
    """A generation that finds every phase in the journal runs none of them, and returns the same result."""
    spec = jobs.spec(data=HELD_OUT, steps=3, adapter=LORA)
    first = jobs.run("job", 2, spec).checked()

    again = jobs.resume("job", 2, spec).checked()

    assert ["evaluate", "train", "evaluate"] == [fact["kind"] for fact in facts(first, "phase_done")]
    assert [0, 1, 2] == [fact["journal"]["index"] for fact in facts(first, "phase_done")]
    assert [] == facts(again, "phase_started")
    one, two = first.results[0]["result"], again.results[0]["result"]
    assert one["metrics"] == two["metrics"]
    assert (jobs.prefix("job") / "output/a1g1/adapter_model.safetensors").read_bytes() == (
        jobs.prefix("job") / "output/a1g2/adapter_model.safetensors"
    ).read_bytes()


def test_a_changed_plan_is_refused(jobs: Any) -> None:
    """A plan that yields another phase than the journal holds ends with exit 70 and says which."""
    jobs.run("job", 1, jobs.spec(steps=2, adapter=LORA)).checked()

    changed = jobs.resume("job", 1, jobs.spec(steps=2, adapter={"name": "lora", "params": {"rank": 8}}))

    assert [70] == changed.codes
    assert "the journal says train 'train'" in changed.log(0)


def test_a_damaged_journal_is_refused(jobs: Any) -> None:
    """An entry that is not the recorded one ends with exit 74."""
    spec = jobs.spec(steps=2)
    jobs.run("job", 1, spec).checked()
    [head] = scan_journals(jobs.prefix("job"))
    path = jobs.prefix("job") / head.path
    path.write_text(path.read_text().replace('"plan_steps": 2', '"plan_steps": 3'))

    run = jobs.run("job", 1, spec, generation=2, journal_head=vars(head))

    assert [74] == run.codes
    assert "its content is not the recorded one" in run.log(0)


def test_save_word_makes_a_checkpoint_and_training_goes_on(jobs: Any) -> None:
    """A save that only rank 1 is asked for happens on all ranks at one step."""
    run = jobs.run("job", 2, jobs.spec(zero_stage=2), say={"rank": 1, "step": 3, "word": SAVE}).checked()

    assert [3] == [fact["checkpoint"]["step"] for fact in facts(run, "checkpoint_committed")]
    assert 8 == series(run, "loss")[-1][0]


@pytest.mark.parametrize("stage", [0, 3])
def test_save_and_leave_then_resume_loses_nothing(jobs: Any, stage: int) -> None:
    """All ranks leave after the commit at one step; the next generation takes over from that very step."""
    spec = jobs.spec(zero_stage=stage)
    straight = jobs.run("straight", 2, spec).checked()
    paused = jobs.run("paused", 2, spec, say={"rank": 1, "step": 3, "word": SAVE_AND_LEAVE}).checked()
    resumed = jobs.resume("paused", 2, spec).checked()

    assert [{"saved": True}] * 2 == [result["left"] for result in paused.results]
    assert [3] == [ref.step for ref in scan_checkpoints(jobs.prefix("paused"))]
    assert series(straight, "loss") == series(paused, "loss") + series(resumed, "loss")


def test_stop_word_leaves_at_once(jobs: Any) -> None:
    """STOP leaves without a checkpoint."""
    run = jobs.run("job", 2, jobs.spec(), say={"rank": 0, "step": 3, "word": STOP}).checked()

    assert [{"saved": False}] * 2 == [result["left"] for result in run.results]
    assert [] == scan_checkpoints(jobs.prefix("job"))


@pytest.mark.parametrize(("grace", "leaves"), [(None, False), (30.0, True)])
def test_a_pause_whose_save_fails(jobs: Any, grace: float | None, leaves: bool) -> None:
    """Nobody has to leave: all train on and say so. A node must leave: all leave with what there is."""
    prefix = jobs.prefix("job")
    prefix.mkdir(parents=True)
    (prefix / "checkpoints").write_text("a file where the directory should be")

    run = jobs.run("job", 2, jobs.spec(zero_stage=2), say={"rank": 0, "step": 3, "word": SAVE_AND_LEAVE, "grace": grace}).checked()

    [failed] = facts(run, "save_failed")
    assert (not leaves) == failed["training_on"]
    assert 3 == failed["step"]
    if leaves:
        assert [{"saved": False}] * 2 == [result["left"] for result in run.results]
    else:
        assert 8 == series(run, "loss")[-1][0]


def test_periodic_save_that_fails_does_not_end_the_job(jobs: Any) -> None:
    """The failure is reported and training goes on to the end."""
    jobs.prefix("job").mkdir(parents=True)
    (jobs.prefix("job") / "checkpoints").write_text("")

    run = jobs.run("job", 1, jobs.spec(faults={"checkpoint": {"every_steps": 4}})).checked()

    assert [False] == [fact["training_on"] for fact in facts(run, "save_failed")]
    assert "model" == run.results[0]["result"]["kind"]


def test_time_cadence_follows_rank_zeros_clock(jobs: Any) -> None:
    """With a period shorter than a step a checkpoint is due at every step but the first, equally on both ranks."""
    run = jobs.run("job", 2, jobs.spec(zero_stage=2, steps=4, faults={"checkpoint": {"every": 1e-6}})).checked()

    assert [1, 2, 3] == [fact["checkpoint"]["step"] for fact in facts(run, "checkpoint_committed")]


@pytest.mark.parametrize("stage", [2, 3])
def test_evaluation_during_training_and_early_stop(jobs: Any, stage: int) -> None:
    """A learning rate that ruins the model stops the run after `patience` evaluations without gain."""
    spec = jobs.spec(
        steps=40, zero_stage=stage, data=HELD_OUT, evaluation={"every_steps": 2, "early_stop": {"patience": 2}},
        optimizer={"learning_rate": 5.0}, schedule={"name": "constant", "warmup_steps": 0},
    )  # fmt: skip
    run = jobs.run("job", 2, spec).checked()

    steps = [step for step, _ in series(run, "eval_loss") if step]
    assert steps == list(range(2, steps[-1] + 1, 2))
    assert steps[-1] < 40
    assert steps[-1] == series(run, "loss")[-1][0]


@pytest.mark.parametrize(("policy", "codes"), [("skip", [0, 0]), ("stop", [73, 73])])
def test_numerics_guard(jobs: Any, policy: str, codes: list[int]) -> None:
    """A loss that is infinite at step 3 is skipped and the run ends well, or ends the job with exit 73, on all ranks."""
    run = jobs.run("job", 2, jobs.spec(zero_stage=2, faults={"non_finite": policy}), poison_step=3)

    assert codes == run.codes
    if policy == "skip":
        assert [8] == [fact["metrics"]["steps"] for fact in facts(run, "phase_done")]


def test_rewind_goes_back_and_leaves_the_batch_out(jobs: Any) -> None:
    """After a rewind the steps since the checkpoint are repeated exactly and the broken batch is skipped."""
    spec = jobs.spec(zero_stage=2, faults={"non_finite": "rewind", "checkpoint": {"every_steps": 2}})
    run = jobs.run("job", 2, spec, poison_step=5).checked()

    first, again = [loss for step, loss in series(run, "loss") if step == 5]
    assert first == again
    assert [1, 2, 3, 4, 5, 5, 7, 8] == [step for step, _ in series(run, "loss")]


def test_tokens_budget_ends_when_the_tokens_are_learned(jobs: Any) -> None:
    """The phase ends with the first step that reaches the budget."""
    spec = jobs.spec(steps=None, tokens=150)
    run = jobs.run("job", 1, spec).checked()

    [done] = facts(run, "phase_done")
    per_step = done["metrics"]["learned_tokens"] / done["metrics"]["steps"]
    assert 150 <= done["metrics"]["learned_tokens"] < 150 + 2 * per_step


def test_result_is_published_where_the_job_says(jobs: Any) -> None:
    """`output.uri` gets a whole copy of the result, in place of an older one."""
    target = jobs.root / "published" / "model"
    target.mkdir(parents=True)
    (target / "old").write_text("")
    jobs.inputs["root:published/model"] = str(target)

    jobs.run("job", 2, jobs.spec(steps=2, adapter=LORA, output={"uri": "root:published/model"})).checked()

    made = jobs.prefix("job") / "output" / "a1g1"
    assert {p.name: p.read_bytes() for p in made.iterdir()} == {p.name: p.read_bytes() for p in target.iterdir()}
    assert [target] == list(target.parent.iterdir())


@pytest.mark.parametrize(
    ("changes", "code", "text"),
    [
        ({"output": {"form": "adapter"}}, 64, "leaves no adapter"),
        ({"engine": "plain", "zero_stage": 3}, 64, "training.engine"),
        ({"adapter": {"name": "lora", "params": {"rank": 0}}}, 64, "not valid"),
        ({"model": {"uri": "upload://rows/rows.jsonl"}}, 65, "there is no config.json"),
        ({"max_length": 8}, 65, "longer than the prompts"),
    ],
)
def test_what_cannot_run_says_why(jobs: Any, changes: dict[str, Any], code: int, text: str) -> None:
    """User errors end with their exit code and the reason."""
    run = jobs.run("job", 1, jobs.spec(**changes))

    assert [code] == run.codes
    assert text in run.log(0)


def test_merged_result_and_manifest(jobs: Any) -> None:
    """The manifest names every file of the result with size and digest."""
    run = jobs.run("job", 1, jobs.spec(steps=2)).checked()

    directory = jobs.prefix("job") / "output" / "a1g1"
    manifest = json.loads((directory / "manifest.json").read_text())
    names = {file["path"] for file in manifest["files"]}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert names == {p.name for p in directory.iterdir() if p.name != "manifest.json"}
    assert facts(run, "artifact")[-1]["size_bytes"] == sum(file["size"] for file in manifest["files"])
