"""Equal to LLaMA-Factory: encodings token for token, loss curves step for step, and the forms for training and for serving.

What LLaMA-Factory does was recorded by its own code (benchmarks/llamafactory/) in tests/references/llamafactory/.
"""

import hashlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from repository import ROOT
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mi_llm.dialog import Turn
from mi_llm.engine.template import FORMATS, GLM4, IGNORED, LLAMA3, ChatFormat, Placement, encode, messages, prompt

REFERENCES = ROOT / "tests" / "references" / "llamafactory"
GIVEN = json.loads((REFERENCES / "dialogs.json").read_text(encoding="utf-8"))
ENCODINGS = json.loads((REFERENCES / "encodings.json").read_text(encoding="utf-8"))
CURVES = json.loads((REFERENCES / "curves.json").read_text(encoding="utf-8"))
PLACEMENTS: tuple[Placement, ...] = ("query", "system")
TALK = [
    Turn(role="client", text="你好"),
    Turn(role="counselor", text="请说"),
    Turn(role="client", text="我想戒烟"),
    Turn(role="counselor", text="你想戒烟"),
]

formats = pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
dialogs = pytest.mark.parametrize("dialog", GIVEN["dialogs"])


@pytest.fixture(scope="module")
def shipped() -> PreTrainedTokenizerFast:
    """The tokenizer of the bundle's tiny models."""
    return AutoTokenizer.from_pretrained(ROOT / "pretrain" / "models" / ENCODINGS["tokenizer"]["model"])


def turns(dialog: str) -> list[Turn]:
    volleys = []
    for client, counselor in GIVEN["dialogs"][dialog]:
        volleys += [Turn(role="client", text=client), Turn(role="counselor", text=counselor)]
    return volleys


def cases(form: ChatFormat, dialog: str) -> list[dict[str, Any]]:
    matching = [case for case in ENCODINGS["cases"] if (case["template"], case["dialog"]) == (form.name, dialog)]
    assert len(matching) >= 4
    return matching


def test_the_reference_was_made_with_the_shipped_tokenizer() -> None:
    file = ROOT / "pretrain" / "models" / ENCODINGS["tokenizer"]["model"] / "tokenizer.json"
    assert hashlib.sha256(file.read_bytes()).hexdigest() == ENCODINGS["tokenizer"]["sha256"]


@formats
@dialogs
def test_tokens_and_labels_are_those_of_llamafactory(form: ChatFormat, dialog: str, shipped: PreTrainedTokenizerFast) -> None:
    eos = shipped.convert_tokens_to_ids(form.eos)
    for case in cases(form, dialog):
        chat = messages(turns(dialog), GIVEN["instruction"], case["placement"])
        (record,) = encode(shipped, form, [chat], case["cutoff"], last_only=case["last_only"])
        labels = [{".": IGNORED, "x": token, "e": eos}[mark] for token, mark in zip(case["ids"], case["labels"], strict=True)]
        where = f"{case['placement']}, cut-off {case['cutoff']}, last reply only: {case['last_only']}"
        assert record.ids == case["ids"], where
        assert record.labels == labels, where


@formats
@dialogs
def test_a_prompt_is_that_of_llamafactory(form: ChatFormat, dialog: str, shipped: PreTrainedTokenizerFast) -> None:
    expected = {case["placement"]: case["prompt"] for case in cases(form, dialog) if "prompt" in case}
    asked = turns(dialog)[:-1]
    assert {
        placement: prompt(shipped, form, messages(asked, GIVEN["instruction"], placement)) for placement in PLACEMENTS
    } == expected


@formats
def test_cut_offs_go_through_every_token_of_a_dialog(form: ChatFormat) -> None:
    cut = [case for case in cases(form, GIVEN["cut"]) if case["placement"] == "system" and case["cutoff"] < 1000]
    whole = max(len(case["ids"]) for case in cut)
    for last_only in (False, True):
        lengths = {case["cutoff"]: len(case["ids"]) for case in cut if case["last_only"] == last_only}
        assert lengths == {cutoff: min(cutoff, whole) for cutoff in range(1, whole + 2)}


@formats
def test_a_client_turn_that_nobody_answers_is_left_out_of_training(form: ChatFormat, tokenizer: PreTrainedTokenizerFast) -> None:
    unanswered = [*TALK, Turn(role="client", text="谢谢")]
    records = encode(tokenizer, form, [messages(talk, "指示", "system") for talk in (TALK, unanswered, TALK[:1])], 1000)
    assert records[0] == records[1]
    assert records[2].ids == []


def read(source: str, chat: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast, asked: bool = False) -> str:
    text = tokenizer.apply_chat_template(chat, chat_template=source, tokenize=False, add_generation_prompt=asked)
    assert isinstance(text, str)
    return text


@formats
def test_a_dialog_reads_the_same_in_the_form_for_training_and_the_one_for_serving(
    form: ChatFormat, tokenizer: PreTrainedTokenizerFast
) -> None:
    chat = messages(TALK, "指示", "system")
    assert read(form.original, chat, tokenizer) == read(form.template, chat, tokenizer)
    assert read(form.original, chat[:-1], tokenizer, asked=True) == read(form.template, chat[:-1], tokenizer)


def test_where_the_two_forms_differ(tokenizer: PreTrainedTokenizerFast) -> None:
    bare = messages([Turn(role="client", text=" 你好 ")], "", "query")
    header = "<|start_header_id|>{}<|end_header_id|>\n\n{}<|eot_id|>"
    told = header.format("system", "You are a helpful assistant.")
    assert read(LLAMA3.original, bare, tokenizer) == "<|begin_of_text|>" + told + header.format("user", "你好")
    opened = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert read(LLAMA3.template, bare, tokenizer) == "<|begin_of_text|>" + header.format("user", " 你好 ") + opened
    assert read(GLM4.original, bare, tokenizer) == "[gMASK]<sop><|user|>\n 你好 "
    assert read(GLM4.template, bare, tokenizer) == "[gMASK]<sop><|user|>\n 你好 <|assistant|>"


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """Our side of the committed loss curves, trained anew."""
    file = tmp_path_factory.mktemp("curves") / "ours.json"
    command = [sys.executable, "benchmarks/curves.py", "ours", str(file)]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text(encoding="utf-8"))
    renew = "other dialogs or models than those of the reference; renew it: python benchmarks/curves.py"
    assert result["inputs_sha256"] == CURVES["inputs_sha256"], renew
    losses: dict[str, list[float]] = result["curves"]
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("model", CURVES["curves"])
def test_training_follows_its_committed_curve_and_that_of_llamafactory(model: str, curves: dict[str, list[float]]) -> None:
    reference = CURVES["curves"][model]
    assert len(curves[model]) == 10
    assert curves[model] == pytest.approx(reference["ours"], abs=1e-4)
    assert curves[model] == pytest.approx(reference["llamafactory"], abs=1e-3)
