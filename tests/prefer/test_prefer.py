"""Preference tuning: which replies become pairs, that TRL is given the tokens of the study's own encoding, that DPO starts from
the tuned model and ends in one plain adapter, and that the stage writes the same bytes twice."""

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import made_once
from peft import PeftModel
from repository import ROOT
from tiny import MODELS, give_adapter, study_with
from torch.nn.functional import logsigmoid

from mi_llm import storage
from mi_llm.codebook import lexical
from mi_llm.codebook.coding import Behavior, volley
from mi_llm.dialog import Dialog, Round, Turn, read_rounds, write_dialogs, write_rounds
from mi_llm.engine.counselor import chats
from mi_llm.engine.load import chat_format, checkpoint, load
from mi_llm.engine.template import prompt
from mi_llm.models.base import base
from mi_llm.models.finetune import records
from mi_llm.models.respond import respond
from mi_llm.prefer.prefer import Pair, drawn_rounds, join, judge, pairs_of, prefer, tokens_of, trainer_of
from mi_llm.problem import Problem
from mi_llm.prompts import instruction
from mi_llm.score.text import all_scores
from mi_llm.statistics import FEWEST, DialogBootstrap
from mi_llm.study import Study
from mi_llm.study import load as load_study

MODEL = "tiny-llama3"
CLIENT = "我想戒烟，可是朋友都抽烟。"
COMPLEX = "你心里很矛盾：一边想戒烟，一边又舍不得和朋友在一起的轻松。"
SIMPLE = "你想戒烟，可是朋友们都抽烟。"
AUTONOMY = "要不要戒，由你自己决定。"
PERSUADING = "你必须马上戒烟，不然身体会垮的。"


@pytest.fixture
def tiny_models(workspace: Path) -> Path:
    """The scratch workspace, with the bundle's pretrained tiny models in it."""
    (workspace / "pretrain").symlink_to(ROOT / "pretrain")
    return workspace


@pytest.fixture
def ready(tiny_models: Path, sample_dialogs: list[Dialog], tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A study with one tuned model, the beginnings of dialogs to learn from, two dialogs answered by base and tuned model."""
    settled = study_with(threads="1", max_new_tokens="40", score_resamples="500")
    study = preferring(settled, rounds=10, candidates=4, margin=1, learning_rate=0.002, batch=4, epochs=2)

    def make(folder: Path) -> None:
        give_adapter(study, MODEL)
        split = study.folder / "split"
        short = [dialog.model_copy(update={"turns": dialog.turns[:4]}) for dialog in sample_dialogs[:8]]
        write_dialogs(split / "train.jsonl", short)
        write_rounds(split / "test_rounds.jsonl", [sample for dialog in sample_dialogs[4:6] for sample in dialog.rounds()])
        respond(study, MODEL)
        shutil.copytree("runs", folder, dirs_exist_ok=True)

    shutil.copytree(made_once(tmp_path_factory, "to_prefer", make), "runs", dirs_exist_ok=True)
    return study


def preferring(study: Study, **changes: Any) -> Study:
    """The study with other parameters of this stage, checked as those of a file are."""
    content = study.model_dump()
    return Study.model_validate(content | {"prefer": content["prefer"] | changes})


def asking(client: str = CLIENT, history: Sequence[Turn] = ()) -> Round:
    return Round(id="d#1", dialog="d", number=1, history=tuple(history), client=client, counselor="")


def answer(text: str, *, finish: str = "stop", tokens: int = 20) -> dict[str, Any]:
    return {"round": "d#1/1", "dialog": "d", "text": text, "prompt_tokens": 50, "tokens": tokens, "finish": finish}


def pair_of(sample: Round, chosen: str, rejected: str) -> Pair:
    best, worst = judge(sample, [answer(chosen), answer(rejected)], cutoff=1000)
    return Pair(sample, best, worst)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("text", "merit"),
    [(COMPLEX, 2), (SIMPLE, 1), (AUTONOMY, 1), (PERSUADING, -2), (SIMPLE + COMPLEX, 2), (COMPLEX + AUTONOMY, 3), ("嗯。", 0)],
)
def test_a_reply_is_worth_what_the_rule_says(text: str, merit: int) -> None:
    (judged,) = judge(asking(), [answer(text)], cutoff=1000)
    assert judged.merit == merit


def test_replies_that_are_no_replies_are_out() -> None:
    history = [Turn(role="client", text="你好。"), Turn(role="counselor", text=AUTONOMY)]
    answers = [
        answer(COMPLEX),
        answer(COMPLEX),  # once is enough
        answer(""),
        answer("。。。！"),
        answer(PERSUADING, finish="length"),
        answer("你很难过，你很难过，你很难过，你很难过。"),
        answer(AUTONOMY),  # the counselor said so before
        answer(CLIENT),
        answer(SIMPLE, tokens=950),  # with its prompt longer than the records of fine-tuning
    ]
    assert [reply.text for reply in judge(asking(history=history), answers, cutoff=1000)] == [COMPLEX]


def test_best_and_worst_are_a_pair_if_they_differ_enough() -> None:
    sample = asking()
    judged = judge(sample, [answer(text) for text in (SIMPLE, PERSUADING, COMPLEX, AUTONOMY)], cutoff=1000)
    (pair,) = pairs_of([sample], [judged], margin=4)
    assert (pair.chosen.text, pair.rejected.text) == (COMPLEX, PERSUADING)
    assert pairs_of([sample], [judged], margin=5) == []
    assert pairs_of([sample, sample], [[], judged[:1]], margin=1) == []
    assert pair.record() == {
        "round": "d#1",
        "dialog": "d",
        "chosen": COMPLEX,
        "chosen_codes": [{"code": "CR", "text": COMPLEX}],
        "chosen_merit": 2,
        "rejected": PERSUADING,
        "rejected_codes": [{"code": "PERS", "text": PERSUADING}],
        "rejected_merit": -2,
    }


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("placement", ["query", "system"])
def test_trl_is_given_the_tokens_of_fine_tuning(tiny_models: Path, model: str, placement: str) -> None:
    """What the tuned model was asked, then a reply as fine-tuning teaches it, end token and all."""
    study = study_with(instruction_placement=placement)
    form = chat_format(study, model)
    base(study, model)
    _, tokenizer = load(checkpoint(study, model), "float32")
    turns = (Turn(role="client", text="你好。"), Turn(role="counselor", text="你好，想聊些什么？"))
    sample = asking(history=turns)
    (tokens,) = tokens_of(study, tokenizer, form, [pair_of(sample, COMPLEX, PERSUADING)])
    assert tokens["prompt_ids"] == prompt(tokenizer, form, chats([sample], study)[0])
    end = tokenizer.convert_tokens_to_ids(form.eos)
    assert end in form.stop_ids(tokenizer)
    for name, text in (("chosen", COMPLEX), ("rejected", PERSUADING)):
        taught = Dialog(
            id="d", source="test", turns=(*turns, Turn(role="client", text=CLIENT), Turn(role="counselor", text=text))
        )
        record = records([taught], tokenizer, form, study.finetune, instruction(study)).encoded[0]
        reply = tokens[f"{name}_ids"]
        assert tokens["prompt_ids"] + reply == record.ids
        assert reply == record.labels[-len(reply) :]  # fine-tuning's loss sees just this reply, and its end
        assert reply.count(end) == 1
        assert reply[-1] == end
        assert tokenizer.decode(reply[:-1], skip_special_tokens=True).strip() == text


def test_trl_trains_on_these_tokens_and_starts_at_ln_2(ready: Study, tmp_path: Path) -> None:
    """What reaches the embeddings in each step; the loss of the first; at last the loss by the formula, without merging."""
    rounds = drawn_rounds(ready)[:4]
    pairs = [pair_of(sample, COMPLEX, PERSUADING) for sample in rounds]
    trainer = trainer_of(ready, MODEL, pairs, tmp_path / "scratch")
    loaded, tokenizer = load(checkpoint(ready, MODEL), "float32")
    wanted = tokens_of(ready, tokenizer, chat_format(ready, MODEL), pairs)
    seen: list[torch.Tensor] = []
    hook = trainer.model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].clone()))
    trainer.train()
    hook.remove()
    expected = sorted(tokens["prompt_ids"] + tokens[f"{side}_ids"] for tokens in wanted for side in ("chosen", "rejected"))
    for rows in seen:  # a step has all four pairs, each side once; the policy reads them, then the reference
        longest = rows.shape[1]
        padded = [ids + [tokenizer.pad_token_id] * (longest - len(ids)) for ids in expected]
        assert sorted(rows.tolist()) == sorted(padded)
    assert len(seen) == 2 * trainer.state.global_step == 2 * ready.prefer.epochs
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)

    batch = next(iter(trainer.get_train_dataloader()))
    loss = float(trainer.compute_loss(trainer.model, batch).detach())
    reference = PeftModel.from_pretrained(loaded, ready.folder / "finetune" / MODEL / "adapter").eval()
    margins = []
    for tokens in wanted:
        sides = [
            log_ratio(trainer.model, reference, tokens["prompt_ids"], tokens[f"{side}_ids"]) for side in ("chosen", "rejected")
        ]
        margins.append(sides[0] - sides[1])
    by_formula = -logsigmoid(ready.prefer.beta * torch.tensor(margins)).mean()
    assert loss == pytest.approx(float(by_formula), abs=1e-4)
    assert loss < losses[0] - 0.01


def log_ratio(policy: torch.nn.Module, reference: torch.nn.Module, put: list[int], reply: list[int]) -> float:
    """How much likelier the policy finds a reply than the reference does, in nats."""
    ids = torch.tensor([put + reply])
    sums = []
    for model in (policy, reference):
        with torch.no_grad():
            log_shares = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        sums.append(float(log_shares.gather(1, ids[0, 1:, None])[len(put) - 1 :].sum()))
    return sums[0] - sums[1]


def test_joined_adapters_are_one_plain_adapter(ready: Study, tmp_path: Path) -> None:
    """Loaded onto the base by peft alone, it gives the logits of the second adapter on the base with the first merged in."""
    tuned = ready.folder / "finetune" / MODEL / "adapter"
    pairs = [pair_of(sample, COMPLEX, PERSUADING) for sample in drawn_rounds(ready)[:4]]
    trainer = trainer_of(ready, MODEL, pairs, tmp_path / "scratch")
    trainer.train()
    join(trainer.model, tuned, tmp_path / "joined")
    ids = torch.arange(40)[None] + 100

    def logits(model: torch.nn.Module) -> torch.Tensor:
        with torch.no_grad():
            values: torch.Tensor = model.eval()(input_ids=ids).logits
        return values

    plain = load(checkpoint(ready, MODEL), "float32")[0]
    joined = logits(PeftModel.from_pretrained(plain, tmp_path / "joined"))
    torch.testing.assert_close(joined, logits(trainer.model), atol=1e-4, rtol=0)
    with trainer.model.disable_adapter():
        assert (joined - logits(trainer.model)).abs().max() > 1e-2


@pytest.mark.slow
def test_the_stage_from_pairs_to_tables(ready: Study) -> None:
    """Real models from end to end, twice: what is in the files, and that they are the same."""
    prefer(ready, MODEL)
    out = ready.folder / "prefer" / MODEL
    files = files_of(out)
    assert set(files) == {
        *(f"adapter/{name}" for name in ("README.md", "adapter_config.json", "adapter_model.safetensors")),
        *(f"vllm/{name}" for name in ("adapter_config.json", "adapter_model.safetensors")),
        *("pairs.jsonl", "preferred.jsonl", "scores.csv", "codes.csv", "metrics.json", "provenance.json"),
    }
    assert not list(out.parent.glob(".*"))
    numbers = json.loads(files["metrics.json"])
    pairs = [json.loads(line) for line in files["pairs.jsonl"].splitlines()]
    assert numbers["pairs"] == len(pairs) > 0
    assert numbers["candidates"] == 40
    for pair in pairs:
        assert pair["chosen_merit"] - pair["rejected_merit"] >= 1
        assert "".join(utterance["text"] for utterance in pair["chosen_codes"]) == pair["chosen"]
    assert numbers["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert numbers["last_loss"] < numbers["first_loss"]

    rounds = read_rounds(ready.folder / "split" / "test_rounds.jsonl")
    replies_by_arm = {
        arm: [entry["text"] for entry in storage.read_lines(path)]
        for arm, path in {
            **{arm: ready.folder / "respond" / MODEL / f"{arm}.jsonl" for arm in ("base", "tuned")},
            "preferred": out / "preferred.jsonl",
        }.items()
    }
    assert len({tuple(replies) for replies in replies_by_arm.values()}) == 3
    scores, codes = (pd.read_csv(out / f"{name}.csv").set_index(["arm", "measure"]) for name in ("scores", "codes"))
    bootstrap = DialogBootstrap([sample.dialog for sample in rounds], 500, 0.95, ready.seed_of("score"))
    likeness = {arm: all_scores(replies, [sample.counselor for sample in rounds]) for arm, replies in replies_by_arm.items()}
    for arm, rows in likeness.items():
        estimate = bootstrap.estimate([row["rouge_l"] for row in rows]).rounded()
        assert scores.loc[(arm, "rouge_l"), ["mean", "lo", "hi"]].to_dict() == pytest.approx(estimate, nan_ok=True)
        informs = [
            Behavior.INFORMATION in volley(utterance.behavior for utterance in lexical.code(sample.client, reply))
            for sample, reply in zip(rounds, replies_by_arm[arm], strict=True)
        ]
        assert codes.loc[(arm, "GI"), "mean"] == round(sum(informs) / len(informs), 4)
        assert codes.loc[(arm, "characters"), "mean"] == round(sum(map(len, replies_by_arm[arm])) / len(rounds), 4)
    difference = scores.loc[("preferred", "rouge_l"), "difference_mean"]
    assert difference == pytest.approx(scores["mean"]["preferred", "rouge_l"] - scores["mean"]["tuned", "rouge_l"], abs=2e-4)
    assert len({sample.dialog for sample in rounds}) < FEWEST
    assert scores["p"].isna().all(), "too few dialogs for a test"

    card = files["adapter/README.md"].decode()
    assert "that coder's numbers are no evidence about it" in card
    assert "| CR | +2 |" in card
    assert f"{len(pairs)} pairs of replies" in card

    prefer(ready, MODEL)
    assert files_of(out) == files


@pytest.mark.slow
def test_replies_outlive_a_study_without_a_pair(ready: Study, capsys: pytest.CaptureFixture[str]) -> None:
    """A margin that no replies reach is a sentence; with another margin, the replies that are there are used."""
    with pytest.raises(Problem, match=r"no pair: \d+ usable replies to 10 rounds.*\n.*prefer\.margin.*\n.*lower prefer\.margin"):
        prefer(preferring(ready, margin=100), MODEL)
    assert "candidates: 40 rounds" in capsys.readouterr().err
    prefer(ready, MODEL)
    told = capsys.readouterr().err
    assert "candidates: 40 rounds" not in told
    assert "preferred: " in told


def test_what_the_stage_cannot_do_is_a_sentence(ready: Study) -> None:
    behind = ready.model_copy(update={"respond": ready.respond.model_copy(update={"engine": "server"})})
    with pytest.raises(Problem, match=r"respond\.engine: server"):
        prefer(behind, MODEL)
    with pytest.raises(Problem, match=r"prefer\.rounds: 9999\n.*at most the \d+ available"):
        prefer(preferring(ready, rounds=9999), MODEL)
    with pytest.raises(ValueError, match=r"prefer\.models names tiny-x, which is not among models: tiny-baichuan2"):
        preferring(ready, models=["tiny-x"])


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_a_sentence(ready: Study) -> None:
    with pytest.raises(Problem, match=r"prefer@tiny-llama3, step \d+: a loss of .*\n.*\n.*lower prefer\.learning_rate"):
        prefer(preferring(ready, learning_rate=1e30, epochs=2), MODEL)


@pytest.mark.parametrize("path", ["params.yaml", "mini/params.yaml", "released/params.yaml"])
def test_shipped_studies_prefer_nothing(path: str) -> None:
    assert load_study(ROOT / path).prefer.models == ()
