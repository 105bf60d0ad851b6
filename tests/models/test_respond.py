"""Answering rounds: the tokens of plain generation, each dialog read once, nothing answered twice, whatever stops the run."""

import json
import random
import resource
import runpy
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path

import psutil
import pytest
import torch
from forked import ended, start, together
from peft import PeftModel
from repository import ROOT
from tiny import MODELS, give_adapter, model_server, study_with
from transformers import GenerationConfig, PreTrainedModel

from mi_llm.dialog import Dialog, Round, read_rounds, write_rounds
from mi_llm.engine.branching import Branching, Plan, Talk, branching_attention, greedy, plan
from mi_llm.engine.counselor import answer_of, chats, plans, sampler
from mi_llm.engine.estimate import Answering, keys_and_values, shape_of
from mi_llm.engine.load import checkpoint, load
from mi_llm.engine.template import FORMATS, Placement, prompt
from mi_llm.models.base import base
from mi_llm.models.finetune import finetune
from mi_llm.models.respond import respond
from mi_llm.problem import Problem
from mi_llm.study import Study

MOST = 12


def test_a_served_reply_is_what_is_said_and_its_tokens_are_counts() -> None:
    message = {"content": "<think>她累了。</think>\n你累了。"}
    response = {"choices": [{"message": message, "finish_reason": "end_turn"}]}
    sample = Round(id="a#1", dialog="a", number=1, history=(), client="我很累。", counselor="")
    answer = answer_of(sample, {"response": response, "usage": {"prompt_tokens": -3, "completion_tokens": 7}})
    assert answer == {"round": "a#1", "dialog": "a", "text": "你累了。", "prompt_tokens": 0, "tokens": 7, "finish": "stop"}


@pytest.fixture
def ready(workspace: Path, sample_dialogs: list[Dialog]) -> Study:
    """A study with the bundle's tiny models, adapters that change what they say, and the rounds of five dialogs to answer."""
    (workspace / "pretrain").symlink_to(ROOT / "pretrain")
    study = study_with(threads="1", max_new_tokens=str(MOST))
    for model in MODELS:
        give_adapter(study, model)
    rounds = [sample for dialog in sample_dialogs[:5] for sample in dialog.rounds()]
    write_rounds(study.folder / "split" / "test_rounds.jsonl", rounds)
    return study


def rounds_of(study: Study) -> list[Round]:
    return read_rounds(study.folder / "split" / "test_rounds.jsonl")


def prompts_of(study: Study, model: str, placement: Placement) -> list[list[int]]:
    options = study.finetune.model_copy(update={"instruction_placement": placement})
    _, tokenizer = load(checkpoint(study, model), "float32")
    asked = chats(rounds_of(study), study.model_copy(update={"finetune": options}))
    return [prompt(tokenizer, FORMATS[study.models[model].chat_format], chat) for chat in asked]


def one_by_one(model: torch.nn.Module, asked: Sequence[list[int]], stops: list[int]) -> list[list[int]]:
    """What transformers' own generation says to each prompt alone."""
    settings = GenerationConfig(do_sample=False, max_new_tokens=MOST, eos_token_id=stops, pad_token_id=0)
    replies = []
    for ids in asked:
        out = model.generate(input_ids=torch.tensor([ids]), generation_config=settings)[0, len(ids) :].tolist()
        replies.append([token for token in out if token not in stops])
    return replies


@pytest.mark.parametrize(("model", "placement"), [*product(MODELS, ["query"]), ("tiny-glm4", "system")])
def test_the_tokens_are_those_of_plain_generation(ready: Study, model: str, placement: Placement) -> None:
    asked, stops = prompts_of(ready, model, placement), [5, 9]
    loaded, _ = load(checkpoint(ready, model), "float32")
    adapted = PeftModel.from_pretrained(loaded, ready.folder / "finetune" / model / "adapter").eval()
    plain = one_by_one(adapted, asked, stops)
    branching_attention(loaded)
    dialog_plans = plans(rounds_of(ready), asked, {})
    for most in (1, 7, 1000):
        branching = Branching(adapted, stops, most, MOST, greedy)
        replies = {index: ids for index, ids, _ in branching.answers(dialog_plans)}
        assert [replies[index] for index in range(len(asked))] == plain
        assert branching.prefilled == sum(dialog_plan.prefilled for dialog_plan in dialog_plans)
    assert branching.prefilled < sum(map(len, asked)) / 2


def test_a_dialog_of_one_round_is_answered_like_any(ready: Study) -> None:
    first = rounds_of(ready)[:1]
    asked = prompts_of(ready, "tiny-glm4", "query")[:1]
    loaded, _ = load(checkpoint(ready, "tiny-glm4"), "float32")
    plain = one_by_one(loaded, asked, [5, 9])
    branching_attention(loaded)
    assert [ids for _, ids, _ in Branching(loaded, [5, 9], 10, MOST, greedy).answers(plans(first, asked, {}))] == plain


def test_a_model_that_is_not_tuned_is_answered_without_an_adapter(ready: Study) -> None:
    respond(ready, "tiny-glm4")
    out = ready.folder / "respond" / "tiny-glm4"
    base_alone = (out / "base.jsonl").read_bytes()
    shutil.rmtree(ready.folder / "finetune" / "tiny-glm4")
    untuned = study_with(finetune_untuned="[tiny-glm4]")
    finetune(untuned, "tiny-glm4")
    respond(untuned, "tiny-glm4")
    assert (out / "base.jsonl").read_bytes() == base_alone
    assert not (out / "tuned.jsonl").exists()
    assert sorted(path.name for path in (untuned.folder / "finetune/tiny-glm4").iterdir()) == ["metrics.json", "provenance.json"]


def test_a_dialog_is_read_once_and_each_round_from_its_fork() -> None:
    dialog_plan = plan([3, 4, 5], [[1, 2, 9], [1, 2, 3, 4, 9, 8], [1, 2, 3, 4, 5, 6, 9]])
    assert dialog_plan == Plan((3, 4, 5), [1, 2, 3, 4], [2, 4, 4], [[9], [9, 8], [5, 6, 9]])
    assert dialog_plan.prefilled == 4 + 1 + 2 + 3


@pytest.mark.parametrize(
    ("prompts", "trunk"),
    [([[1, 2, 3]], []), ([[1, 2], [1, 2]], [1]), ([[1], [2]], []), ([[1, 2], [1, 2, 3]], [1])],
)
def test_every_prompt_keeps_a_token_of_its_own(prompts: list[list[int]], trunk: list[int]) -> None:
    dialog_plan = plan(range(len(prompts)), prompts)
    assert dialog_plan.trunk == trunk
    assert [dialog_plan.trunk[:fork] + own for fork, own in zip(dialog_plan.forks, dialog_plan.suffixes, strict=True)] == prompts
    assert all(dialog_plan.suffixes)


def test_a_round_that_ends_leaves_and_the_others_go_on(ready: Study) -> None:
    asked = prompts_of(ready, "tiny-llama3", "system")
    loaded, _ = load(checkpoint(ready, "tiny-llama3"), "float32")
    counts = Counter(token for reply in one_by_one(loaded, asked, []) for token in set(reply))
    stops = [min(token for token, count in counts.items() if 0 < count < len(asked))]
    plain = one_by_one(loaded, asked, stops)
    branching_attention(loaded)
    branching = Branching(loaded, stops, 1000, MOST, greedy)
    replies = {index: (ids, finish) for index, ids, finish in branching.answers(plans(rounds_of(ready), asked, {}))}
    assert [replies[index][0] for index in range(len(asked))] == plain
    assert {finish for _, finish in replies.values()} == {"stop", "length"}
    assert branching.decoded == sum(len(ids) - (finish == "length") for ids, finish in replies.values())


class Weighed(Branching):
    """Branching that notes how many bytes of keys and values it holds at the fullest moment."""

    held = 0

    def step(self, talks: list[Talk]) -> None:
        super().step(talks)
        kept = [part for talk in talks for memory in talk.layers.values() for part in (*memory.trunk, *memory.own)]
        self.held = max(self.held, sum({part.data_ptr(): part.untyped_storage().nbytes() for part in kept}.values()))


@pytest.mark.parametrize("model", MODELS[:2])  # one with as many keys as queries, one with fewer
@pytest.mark.parametrize(
    "asked", [Answering(2, 3, 100, 20, 150), Answering(4, 1, 0, 120, 66), Answering(1, 8, 40, 7, 65)], ids=str
)
def test_keys_and_values_take_what_is_estimated(ready: Study, model: str, asked: Answering) -> None:
    loaded, _ = load(checkpoint(ready, model), "float32")
    branching_attention(loaded)
    shape, dialog_plans = shape_of(loaded.config), []
    for dialog in range(asked.dialogs):
        trunk, places = [20 + dialog] * asked.trunk, range(dialog * asked.rounds, (dialog + 1) * asked.rounds)
        dialog_plans.append(plan(places, [[*trunk, 50 + number, *[9] * (asked.own - 1)] for number in range(asked.rounds)]))
    branching = Weighed(loaded, [], asked.dialogs * asked.rounds, asked.reply, greedy)
    assert len(list(branching.answers(dialog_plans))) == asked.dialogs * asked.rounds
    assert branching.held == pytest.approx(keys_and_values(shape, "float32", asked), rel=0.01)


def sampled(model: PreTrainedModel, study: Study, asked: Sequence[list[int]], most: int, only: int) -> dict[int, list[int]]:
    choose = sampler(study.respond.sampling, rounds_of(study), study, "base", MOST)
    branching = Branching(model, [], most, MOST, choose)
    return {index: ids for index, ids, _ in branching.answers(plans(rounds_of(study), asked, {})[only:])}


def test_a_sampled_answer_does_not_depend_on_its_company(ready: Study) -> None:
    asked = prompts_of(ready, "tiny-glm4", "system")
    loaded, _ = load(checkpoint(ready, "tiny-glm4"), "float32")
    branching_attention(loaded)
    together = sampled(loaded, ready, asked, 1000, 0)
    alone = sampled(loaded, ready, asked, 1, 2)
    assert alone == {index: together[index] for index in alone}
    assert len({tuple(ids) for ids in together.values()}) > 1


def test_sampling_keeps_to_the_likeliest_tokens(ready: Study) -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(1000, 1)
    study = ready.model_copy(deep=True)
    rounds = [rounds_of(ready)[0].model_copy(update={"id": str(number)}) for number in range(1000)]
    chosen = sampler(study.respond.sampling.model_copy(update={"temperature": 1.0}), rounds, study, "base", 1)
    drawn = torch.bincount(chosen(logits, range(1000), [0] * 1000), minlength=4).tolist()
    assert drawn[2:] == [0, 0]  # 0.5 + 0.3 already hold top_p = 0.7
    assert abs(drawn[0] / 1000 - 0.5 / 0.8) < 0.05


def outputs(study: Study, model: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((study.folder / "respond" / model).iterdir())}


def lines_of(journals: Sequence[Path]) -> list[list[bytes]]:
    """The whole lines of the journals that are there."""
    lines = []
    for path in journals:
        with suppress(FileNotFoundError):  # a run that ends removes its journals
            lines.append(path.read_bytes().split(b"\n")[:-1])
    return lines


@pytest.mark.slow
def test_killed_at_any_moment_the_same_file_and_no_round_twice(ready: Study) -> None:
    folder = ready.folder / "respond"
    assert ended([start(partial(respond, ready, "tiny-llama3"))]) == [0]
    whole = outputs(ready, "tiny-llama3")
    for name in whole:
        (folder / "tiny-llama3" / name).unlink()
    chance, kills, known = random.Random(2), 0, 0
    journals = [folder / f".tiny-llama3.{arm}.0.jsonl" for arm in ("base", "tuned")]
    for _ in range(3):
        process = start(partial(respond, ready, "tiny-llama3"))
        while process.exitcode is None and sum(map(len, lines_of(journals))) <= known:
            time.sleep(0.001)
        time.sleep(chance.random() * 0.01)
        process.kill()
        kills += ended([process]) == [-signal.SIGKILL]
        for lines in lines_of(journals):
            answered = [json.loads(line)["round"] for line in lines[1:]]
            assert len(answered) == len(set(answered))
        known = sum(map(len, lines_of(journals)))
    assert ended([start(partial(respond, ready, "tiny-llama3"))]) == [0]
    assert kills >= 1
    assert outputs(ready, "tiny-llama3") == whole
    assert lines_of(journals) == []


@pytest.mark.slow
def test_two_processes_give_the_same_file_as_one(ready: Study) -> None:
    assert ended([start(partial(respond, ready, "tiny-glm4"))]) == [0]
    whole = outputs(ready, "tiny-glm4")
    for name in whole:
        (ready.folder / "respond" / "tiny-glm4" / name).unlink()
    assert ended(together(partial(respond, ready, "tiny-glm4"), 2)) == [0, 0]
    assert "respond tiny-glm4.base (2 of 2)" in Path("said.1").read_text(encoding="utf-8")
    assert outputs(ready, "tiny-glm4") == whole


@pytest.mark.slow
def test_more_processes_than_dialogs_are_refused(ready: Study) -> None:
    write_rounds(
        ready.folder / "split" / "test_rounds.jsonl", [sample for sample in rounds_of(ready) if sample.dialog == "case_1"]
    )
    assert ended(together(partial(respond, ready, "tiny-glm4"), 2)) == [2, 2]
    refusal = "mi-llm: respond tiny-glm4: 2 processes\n  expected: at most 1: they share 1 dialogs"
    assert refusal in Path("said.0").read_text(encoding="utf-8")


LATE = """
import os, sys, time
from pathlib import Path
from mi_llm.engine import counselor
from mi_llm.models.respond import respond
from mi_llm.study import load

def late(*arguments, load_base=counselor.load_base):
    loaded = load_base(*arguments)
    time.sleep(4 * int(os.environ["RANK"]))
    return loaded

counselor.load_base = late
respond(load(Path("mini/params.yaml")), "tiny-glm4")
"""


@pytest.mark.slow
def test_a_process_that_comes_late_finds_its_share(ready: Study) -> None:
    assert ended([start(partial(respond, ready, "tiny-glm4"))]) == [0]
    whole = outputs(ready, "tiny-glm4")
    for name in whole:
        (ready.folder / "respond" / "tiny-glm4" / name).unlink()
    Path("late.py").write_text(LATE, encoding="utf-8")
    assert ended(together(partial(runpy.run_path, "late.py"), 2)) == [0, 0]
    messages = [Path(f"said.{rank}").read_text(encoding="utf-8") for rank in (0, 1)]
    assert "".join(messages).count("respond@tiny-glm4: done in") == 1
    assert outputs(ready, "tiny-glm4") == whole


def test_a_shipped_checkpoint_that_lacks_files_is_named(ready: Study, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "pretrain/models/tiny-glm4", tmp_path / "tiny-glm4")
    (tmp_path / "tiny-glm4/tokenizer.json").unlink()
    own = {"tiny-glm4": ready.models["tiny-glm4"].model_copy(update={"path": str(tmp_path / "tiny-glm4")})}
    with pytest.raises(Problem, match=r"tiny-glm4: no tokenizer.json\n  expected: a checkpoint: config.json"):
        base(ready.model_copy(update={"models": own}), "tiny-glm4")
    assert checkpoint(ready, "tiny-glm4").is_dir(), "the one before is gone"


def test_too_little_memory_says_what_to_do(ready: Study) -> None:
    limit = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + 2**22, limit[1]))
    try:
        with pytest.raises(Problem, match=r"(?s)checkpoint: out of memory: the weights in float32 do not fit.*doctor"):
            load(checkpoint(ready, "tiny-llama3"), "float32")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


def test_a_merged_adapter_says_the_same(ready: Study) -> None:
    respond(ready, "tiny-baichuan2")
    beside = outputs(ready, "tiny-baichuan2")
    respond(study_with(adapter="merged"), "tiny-baichuan2")
    assert outputs(ready, "tiny-baichuan2")["tuned.jsonl"] == beside["tuned.jsonl"]
    assert beside["base.jsonl"] != beside["tuned.jsonl"]


def answered_well(log: Path) -> list[str]:
    """What the server was asked each time that it sent a usable reply: any text is one, however late."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line["asked"] for line in lines if line["answered"] in ("good", "roles", "turns", "timeout")]


def interrupted(study: Study, at: str) -> None:
    """Answer, without the outputs of a run before, until one cannot be written."""
    output = study.folder / "respond/tiny-llama3" / at
    shutil.rmtree(output.parent, ignore_errors=True)
    output.mkdir(parents=True)
    with pytest.raises(Problem, match="could not be written"):
        respond(study, "tiny-llama3")
    output.rmdir()


def test_a_server_can_answer_and_is_asked_for_each_round_once(ready: Study, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with model_server(log, faults=0.2) as address:
        study = study_with(engine="server", server=address)
        rounds = [sample.id for sample in rounds_of(study)]
        interrupted(study, "base.cassette.jsonl")
        assert len(answered_well(log)) == len(rounds)
        interrupted(study, "metrics.json")
        assert len(answered_well(log)) == 2 * len(rounds)
        respond(study, "tiny-llama3")
    well = answered_well(log)
    assert len(well) == len(set(well)) == 2 * len(rounds)
    answers = [json.loads(line) for line in outputs(study, "tiny-llama3")["tuned.jsonl"].splitlines()]
    assert [answer["round"] for answer in answers] == rounds
    recorded = json.loads(outputs(study, "tiny-llama3")["tuned.cassette.jsonl"].splitlines()[0])
    assert recorded["request"]["model"] == "tiny-llama3+mi"
    assert recorded["request"]["temperature"] == 0


@pytest.mark.slow
def test_a_server_is_asked_again_when_the_model_may_be_another(ready: Study, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with model_server(log, faults=0.2) as address:
        study = study_with(engine="server", server=address)
        every = 2 * len(rounds_of(study))
        respond(study, "tiny-llama3")
        respond(study, "tiny-llama3")  # the one before was finished
        assert len(answered_well(log)) == 2 * every
        interrupted(study, "metrics.json")
        (study.folder / "finetune/tiny-llama3/adapter/README.md").write_text("tuned again", encoding="utf-8")
        respond(study, "tiny-llama3")
    assert len(answered_well(log)) == 4 * every
    assert [path.name for path in (study.folder / "respond").iterdir()] == ["tiny-llama3"]


def test_rounds_of_the_repaired_set_are_answered_too(ready: Study) -> None:
    extra = rounds_of(ready)[0].model_copy(update={"id": "extra aligned", "client": "我想戒烟。"})
    write_rounds(ready.folder / "split" / "aligned_rounds.jsonl", [rounds_of(ready)[1], extra])
    respond(ready, "tiny-llama3")
    answers = [json.loads(line)["round"] for line in outputs(ready, "tiny-llama3")["base.jsonl"].splitlines()]
    assert answers == [*(sample.id for sample in rounds_of(ready)), "extra aligned"]
