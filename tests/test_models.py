"""Templates, fine-tuning, answering: formats to the token, training that survives a kill, answers without batch effects."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from mi_llm.dialog import Dialog, Turn, read_rounds, write_dialogs, write_rounds
from mi_llm.models.base import base, checkpoint, load
from mi_llm.models.finetune import finetune, order, records
from mi_llm.models.respond import answer_all, finished, prompt_of, respond
from mi_llm.models.template import BAICHUAN2, FORMATS, GLM4, IGNORED, LLAMA3, ChatFormat, encode, messages, prompt
from mi_llm.study import Study
from mi_llm.study import load as load_study

TALK = [
    Turn(role="client", text="你好"),
    Turn(role="counselor", text="请说"),
    Turn(role="client", text="我想戒烟"),
    Turn(role="counselor", text="你想戒烟"),
]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (BAICHUAN2, "指示<reserved_106>你好<reserved_107>请说<reserved_106>我想戒烟<reserved_107>你想戒烟</s>"),
        (
            GLM4,
            "[gMASK]<sop><|system|>\n指示<|user|>\n你好<|assistant|>\n请说<|user|>\n我想戒烟<|assistant|>\n你想戒烟<|endoftext|>",
        ),
        (
            LLAMA3,
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n指示<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n你好<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n请说<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n我想戒烟<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n你想戒烟<|eot_id|>",
        ),
    ],
    ids=lambda value: value.name if isinstance(value, ChatFormat) else "",
)
def test_a_dialog_in_each_format(form: ChatFormat, text: str, tokenizer: PreTrainedTokenizerFast) -> None:
    (record,) = encode(tokenizer, form, [messages(TALK, "指示", "system")], 10_000)
    assert tokenizer.decode(record.ids) == text


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_the_loss_is_on_every_counselor_turn_and_its_end_only(form: ChatFormat, tokenizer: PreTrainedTokenizerFast) -> None:
    (record,) = encode(tokenizer, form, [messages(TALK, "指示", "system")], 10_000)
    taught = tokenizer.decode([label for label in record.labels if label != IGNORED])
    start = "\n" if form is GLM4 else ""
    assert taught == f"{start}请说{form.eos}{start}你想戒烟{form.eos}"
    assert len(record.labels) == len(record.ids)


def test_the_instruction_stands_before_the_last_client_turn_or_in_a_system_turn() -> None:
    assert messages(TALK, "指示", "query")[2] == {"role": "user", "content": "指示\n我想戒烟"}
    assert messages(TALK, "指示", "query")[0] == {"role": "user", "content": "你好"}
    assert messages(TALK, "指示", "system")[0] == {"role": "system", "content": "指示"}


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_a_prompt_is_the_beginning_of_the_training_record(form: ChatFormat, tokenizer: PreTrainedTokenizerFast) -> None:
    asked = prompt(tokenizer, form, messages(TALK[:3], "指示", "query"))
    chat = messages(TALK[:3], "指示", "query")
    (record,) = encode(tokenizer, form, [[*chat, {"role": "assistant", "content": "你想戒烟"}]], 10_000)
    assert record.ids[: len(asked)] == asked
    assert all(label == IGNORED or place < len(asked) for place, label in enumerate(record.labels[: len(asked)]))


def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in ("我 想  戒烟，OK？\n好", "😀龘é", "<0x41> a_b\t"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_records_by_dialog_and_by_round(study: Study, tokenizer: PreTrainedTokenizerFast) -> None:
    dialog = Dialog(id="1", source="test", turns=tuple(TALK))
    whole = records([dialog], tokenizer, LLAMA3, study.finetune, "指示")
    rounds = records([dialog], tokenizer, LLAMA3, study.finetune.model_copy(update={"records": "round"}), "指示")
    assert (len(whole), len(rounds)) == (1, 2)
    assert rounds[1].ids == whole[0].ids


def test_each_epoch_sees_each_record_once_in_its_own_order() -> None:
    places = order(10, 2, seed=1)
    assert sorted(places[:10]) == sorted(places[10:]) == list(range(10))
    assert places[:10] != places[10:]


@pytest.fixture
def ready(workspace: Path, checkpoints: Path, sample_dialogs: list[Dialog]) -> Study:
    """A small study whose stages before fine-tuning are done: 8 dialogs to train on, 2 to test on."""
    text = Path("mini/params.yaml").read_text(encoding="utf-8")
    text = text.replace("epochs: 4", "epochs: 3").replace("save_every: 20", "save_every: 2").replace("threads: 2", "threads: 1")
    text = text.replace("max_new_tokens: 96", "max_new_tokens: 12").replace("batch: 16", "batch: 4")
    Path("mini/params.yaml").write_text(text, encoding="utf-8")
    study = load_study(Path("mini/params.yaml"))
    for model in study.models:
        base(study, model)
    write_dialogs(study.folder / "split" / "train.jsonl", sample_dialogs[:8])
    write_rounds(
        study.folder / "split" / "test_rounds.jsonl", [sample for dialog in sample_dialogs[8:10] for sample in dialog.rounds()]
    )
    return study


@pytest.mark.parametrize("model", ["tiny-baichuan2", "tiny-glm4", "tiny-llama3"])
def test_tuning_lowers_the_loss_and_plain_peft_loads_the_adapter(ready: Study, model: str) -> None:
    finetune(ready, model)
    folder = ready.folder / "finetune" / model
    numbers = json.loads((folder / "metrics.json").read_text())
    assert numbers["last_loss"] < numbers["first_loss"]
    curve = (folder / "dvclive/plots/metrics/loss.tsv").read_text().splitlines()
    assert curve[0] == "step\tloss"
    assert len(curve) == 3
    plain = AutoModelForCausalLM.from_pretrained(checkpoint(ready, model))
    adapted = PeftModel.from_pretrained(plain, folder / "adapter")
    tuned = {name.rsplit(".", 1)[-1] for name in adapted.peft_config["default"].target_modules}
    assert tuned == {"o_proj", "k_proj", "v_proj", "q_proj", "down_proj"} | (
        {"gate_up_proj"} if model == "tiny-glm4" else {"gate_proj", "up_proj"}
    )


def test_training_killed_at_any_moment_ends_in_the_same_bytes(ready: Study) -> None:
    command = [str(Path(sys.executable).parent / "mi-llm"), "finetune", "tiny-llama3", "--study", "mini/params.yaml"]
    subprocess.run(command, check=True, capture_output=True)
    folder = ready.folder / "finetune" / "tiny-llama3"
    whole = {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    state, chance, kills = folder.parent / ".tiny-llama3.resume" / "state.pt", random.Random(1), 0
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    for _ in range(3):
        before = state.stat().st_mtime_ns if state.exists() else 0
        run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while run.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
            time.sleep(0.002)
        time.sleep(chance.random() * 0.05)
        if run.poll() is None:
            os.kill(run.pid, signal.SIGKILL)
            kills += 1
        run.wait()
    subprocess.run(command, check=True, capture_output=True)
    assert kills >= 1
    assert {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()} == whole
    assert not state.exists()


def test_batched_answers_equal_plain_generation_one_by_one(ready: Study) -> None:
    finetune(ready, "tiny-glm4")
    respond(ready, "tiny-glm4")
    out = ready.folder / "respond" / "tiny-glm4"
    rounds = read_rounds(ready.folder / "split" / "test_rounds.jsonl")
    model, tokenizer = load(checkpoint(ready, "tiny-glm4"), "float32")
    arms = {"base": model, "tuned": None}
    for arm in arms:
        answers = [json.loads(line) for line in (out / f"{arm}.jsonl").read_text(encoding="utf-8").splitlines()]
        assert [answer["round"] for answer in answers] == [sample.id for sample in rounds]
        if arm == "tuned":
            model = PeftModel.from_pretrained(model, ready.folder / "finetune" / "tiny-glm4" / "adapter")
        for sample, answer in list(zip(rounds, answers, strict=True))[::5]:
            ids = torch.tensor([prompt_of(sample, tokenizer, GLM4, "system")])
            plain = model.generate(input_ids=ids, do_sample=False, max_new_tokens=12, eos_token_id=GLM4.stop_ids(tokenizer))
            said = tokenizer.decode(plain[0, ids.shape[1] :], skip_special_tokens=True).strip()
            assert answer["text"] == said


def test_answers_of_an_interrupted_run_are_kept_and_those_of_another_are_not(ready: Study, tmp_path: Path) -> None:
    model, tokenizer = load(checkpoint(ready, "tiny-llama3"), "float32")
    rounds = read_rounds(ready.folder / "split" / "test_rounds.jsonl")
    partial = tmp_path / "partial.jsonl"

    def answer(identity: str) -> list[dict[str, object]]:
        return answer_all(model, tokenizer, LLAMA3, rounds, study=ready, partial=partial, identity=identity, title="answer")

    whole = answer("this run")
    lines = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(b"".join(lines[:6]) + lines[6][:20])
    assert len(finished(partial, "this run")) == 5
    assert answer("this run") == whole
    assert finished(partial, "another run") == {}
