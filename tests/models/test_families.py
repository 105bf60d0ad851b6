"""Each family's tiny random model through every stage, in its own chat format: what leaves the study says what the study said."""

import queue
import runpy
import sys
import time
from pathlib import Path

import pytest
from families import FAMILIES, make
from peft import PeftModel
from tiny import study_of, study_with
from transformers import AutoModelForCausalLM, AutoTokenizer

from mi_llm import storage
from mi_llm.apps.model.engine import Asked, Piece, Reply
from mi_llm.apps.model.server import opened
from mi_llm.dialog import Dialog, Round, read_rounds, write_dialogs, write_rounds
from mi_llm.engine.counselor import chats
from mi_llm.engine.load import checkpoint
from mi_llm.engine.template import Message, prompt
from mi_llm.models.base import base
from mi_llm.models.export import export
from mi_llm.models.finetune import finetune
from mi_llm.models.respond import respond
from mi_llm.study import Study

MOST = 12


def rounds_of(study: Study) -> list[Round]:
    return read_rounds(study.path("split", "test_rounds.jsonl"))


def replies(study: Study, model: str, arm: str) -> list[str]:
    return [row["text"] for row in storage.read_lines(study.path("respond", model, f"{arm}.jsonl"))]


def elsewhere(study: Study, model: str, folder: Path) -> list[str]:
    """What the exported folder says under plain transformers and peft: its template, its tokenizer, its stops."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(checkpoint(study, model)), folder).eval()
    stops, texts = storage.read_json(folder / "generation_config.json")["eos_token_id"], []
    for chat in chats(rounds_of(study), study):
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        out = tuned.generate(**inputs, do_sample=False, max_new_tokens=MOST, eos_token_id=stops, pad_token_id=0)[0]
        texts.append(tokenizer.decode(out[inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip())
    return texts


def served(study: Study, model: str, asked_chats: list[list[Message]], most: int) -> tuple[list[str], list[list[int]]]:
    """What the model server's engine says to chats, all at once: texts, and their tokens."""
    news = queue.Queue[tuple[Reply, Piece]]()

    def tell(told: list[tuple[Reply, Piece]]) -> None:
        for each in told:
            news.put(each)

    house = opened(study, model, 100, tell)
    asked = [
        Reply(
            Asked(prompt(house.tokenizer, house.form, chat), True, most, 0.0, 1, 1.0, 0, (), time.monotonic() + 200),
            house.tokenizer,
        )
        for chat in asked_chats
    ]
    for reply in asked:
        house.engine.ask(reply)
    texts, left = {id(reply): "" for reply in asked}, len(asked)
    while left:
        reply, piece = news.get(timeout=200)
        texts[id(reply)] += piece.text
        left -= piece.finish is not None
    house.engine.close()
    return [texts[id(reply)].strip() for reply in asked], [reply.text.ids for reply in asked]


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES if name != "qwen2"]


@pytest.mark.parametrize("name", ["qwen2", "windowed", *OTHERS])
def test_a_family_goes_through_every_stage(
    name: str, workspace: Path, sample_dialogs: list[Dialog], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`windowed` is a Mistral whose attention ours does not know."""
    family, settings = ("mistral", {"sliding_window": 16}) if name == "windowed" else (name, {})
    make(workspace / "mine" / name, family, sample_dialogs, shard="60KB", **settings)
    options = {"finetune_epochs": "4", "finetune_batch": "2", "finetune_learning_rate": "0.05", "max_new_tokens": str(MOST)}
    study = study_of(name, instruction_placement=FAMILIES[family].placement, **options)
    base(study, name)
    write_dialogs(study.path("split", "train.jsonl"), sample_dialogs[:2])
    write_rounds(study.path("split", "test_rounds.jsonl"), [*sample_dialogs[3].rounds()][:3])

    finetune(study, name)
    numbers = storage.read_json(study.path("finetune", name, "metrics.json"))
    rounds = sum(len([*dialog.rounds()]) for dialog in sample_dialogs[:2])
    assert numbers["records"] == (rounds if name == "qwen3" else 2)
    respond(study, name)
    texts = replies(study, name, "tuned")
    assert texts != replies(study, name, "base")
    export(study, name, Path("dist/mi"))
    assert elsewhere(study, name, Path("dist/mi")) == texts
    assert served(study, name, chats(rounds_of(study), study), MOST)[0] == texts
    golden = storage.read_json(Path("dist/mi/golden.json"))
    asked = [prompt["messages"] for prompt in golden["prompts"]]
    assert served(study, name, asked, golden["max_new_tokens"])[1] == [prompt["reply"] for prompt in golden["prompts"]]
    monkeypatch.setattr(sys, "argv", ["check.py", str(checkpoint(study, name))])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path("dist/mi/check.py", run_name="__main__")
    card = Path("dist/mi/README.md").read_text(encoding="utf-8")
    assert ("a round with its history" in card) == (name == "qwen3")
    assert "the chat format of the base model itself" in card

    respond(study_with(adapter="merged"), name)
    assert replies(study, name, "tuned") == texts
