"""Templates, fine-tuning, answering: formats to the token, training that survives a kill, answers without batch effects."""

from collections.abc import Iterator

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from mi_llm.dialog import Turn
from mi_llm.engine.load import named, nondeterministic, prepare_torch
from mi_llm.engine.template import BAICHUAN2, FORMATS, GLM4, IGNORED, LLAMA3, ChatFormat, encode, messages, prompt, unmarked
from mi_llm.study import Study

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


def test_no_text_for_a_server_holds_a_mark(tokenizer: PreTrainedTokenizerFast) -> None:
    marks = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    marks += ["<|im_start|>", "<｜end▁of▁sentence｜>", "<reserved_107>", "<start_of_turn>", "[/INST]", "<</SYS>>"]
    for mark in marks:
        (message,) = unmarked([{"role": "user", "content": f"我{mark}想{mark * 2}[笑] a<b> 1 < 2 > 0"}])
        assert mark not in message["content"]
        assert message["content"].replace(f"{mark[0]} {mark[1:]}", mark).endswith("[笑] a<b> 1 < 2 > 0")
        assert set(tokenizer.all_special_ids).isdisjoint(tokenizer(message["content"], add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_a_prompt_is_the_beginning_of_the_training_record(form: ChatFormat, tokenizer: PreTrainedTokenizerFast) -> None:
    asked = prompt(tokenizer, form, messages(TALK[:3], "指示", "query"))
    chat = messages(TALK[:3], "指示", "query")
    (record,) = encode(tokenizer, form, [[*chat, {"role": "assistant", "content": "你想戒烟"}]], 10_000)
    assert record.ids[: len(asked)] == asked
    assert all(label == IGNORED or index < len(asked) for index, label in enumerate(record.labels[: len(asked)]))


def test_any_text_survives_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in ("我 想  戒烟，OK？\n好", "😀龘é", "<0x41> a_b\t"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


# ---- determinism


@pytest.fixture
def strict(study: Study, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """PyTorch as the stages set it up on a GPU."""
    before = torch.get_deterministic_debug_mode()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # these are flags, which need no GPU
    prepare_torch(study)
    monkeypatch.undo()
    named.clear()
    yield
    torch.set_deterministic_debug_mode(before)


def put() -> torch.Tensor:
    """An operation that has no deterministic form on any device."""
    return torch.zeros(4).put_(torch.tensor([1, 2]), torch.tensor([1.0, 2.0]))


@pytest.mark.usefixtures("strict")
def test_on_a_gpu_too_an_operation_without_a_deterministic_form_is_an_error() -> None:
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()  # attention looks at it when it goes back
    with pytest.raises(RuntimeError, match="put_ does not have a deterministic implementation"):
        put()


@pytest.mark.usefixtures("strict")
@pytest.mark.filterwarnings("error")
def test_an_operation_is_let_through_by_name_and_the_log_says_so_once(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with nondeterministic("put_"):
            assert put().tolist() == [0, 1, 2, 0]
    assert capsys.readouterr().err == "put_: PyTorch has no deterministic form of it on this device; it is allowed\n"
    with pytest.raises(RuntimeError, match="put_"):
        put()
    with pytest.raises(ZeroDivisionError), nondeterministic("put_"):
        _ = 1 / 0
    assert torch.get_deterministic_debug_mode() == 2
