"""A checkpoint's own chat format: what is taught is what is asked, token for token, and thinking is off wherever it is used."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from families import CHATML, FAMILIES, HEADERS, MISTRAL, THINKING, tokenizer_of
from transformers import PreTrainedTokenizerFast

from mi_llm.dialog import Dialog, Turn
from mi_llm.engine.own_format import OwnFormat, own_format, settled
from mi_llm.engine.template import IGNORED, LLAMA3, encode, messages, prompt
from mi_llm.models.pretrain import train_tokenizer
from mi_llm.problem import Problem
from mi_llm.study import Study

TALK = [
    Turn(role="client", text="你好"),
    Turn(role="counselor", text="请说"),
    Turn(role="client", text="我想戒烟"),
    Turn(role="counselor", text="你想戒烟"),
]
families = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def tokenizers(sample_dialogs: list[Dialog]) -> dict[str, PreTrainedTokenizerFast]:
    return {name: tokenizer_of(family, sample_dialogs) for name, family in FAMILIES.items()}


def with_template(tokenizer: PreTrainedTokenizerFast, template: str | None) -> tuple[PreTrainedTokenizerFast, OwnFormat]:
    """The tokenizer with another template, and the format that a checkpoint with both would have."""
    tokenizer.chat_template = template
    return tokenizer, own_format(Path("folder"), tokenizer)


def taught(tokenizer: PreTrainedTokenizerFast, labels: Sequence[int]) -> str:
    text: str = tokenizer.decode([label for label in labels if label != IGNORED])
    return text


@families
def test_each_reply_follows_the_prompt_that_asks_for_it_and_its_end_is_taught(
    name: str, tokenizers: dict[str, PreTrainedTokenizerFast], sample_dialogs: list[Dialog], study: Study
) -> None:
    tokenizer, form = with_template(tokenizers[name], FAMILIES[name].template)
    options = form.records(study.finetune)
    assert form.eos == {"glm4-0414": "<|user|>", "gemma": "<end_of_turn>"}.get(name, FAMILIES[name].stops[0])
    for dialog in sample_dialogs[:5]:
        chat = messages(dialog.turns[:6], "指示", FAMILIES[name].placement)
        (record,) = encode(tokenizer, form, [chat], 10_000, last_only=options.loss == "last")
        replies = [number for number, message in enumerate(chat) if message["role"] == "assistant"]
        for number in replies if options.loss == "replies" else replies[-1:]:
            asked = prompt(tokenizer, form, chat[:number])
            assert record.ids[: len(asked)] == asked
            served = tokenizer.apply_chat_template(chat[:number], chat_template=form.template, add_generation_prompt=True)
            assert served["input_ids"] == asked
            reply = tokenizer.decode(record.ids[len(asked) :])
            assert (
                reply.removeprefix("\n" if name == "glm4-0414" else "").lstrip(" ").startswith(chat[number]["content"] + form.eos)
            )
        assert record.labels[-1] == tokenizer.convert_tokens_to_ids(form.eos)


@families
def test_the_loss_sees_what_the_counselor_says_and_its_end_only(name: str, tokenizers: dict[str, Any], study: Study) -> None:
    tokenizer, form = with_template(tokenizers[name], FAMILIES[name].template)
    last_only = form.records(study.finetune).loss == "last"
    (record,) = encode(tokenizer, form, [messages(TALK, "指示", FAMILIES[name].placement)], 10_000, last_only=last_only)
    before = {"glm4-0414": "\n", "mistral": " "}.get(name, "")
    assert taught(tokenizer, record.labels) == "".join(
        f"{before}{text}{form.eos}" for text in (["你想戒烟"] if last_only else ["请说", "你想戒烟"])
    )
    assert len(record.labels) == len(record.ids)


def test_only_a_template_that_forgets_thoughts_needs_a_record_for_each_round(
    tokenizers: dict[str, PreTrainedTokenizerFast], study: Study
) -> None:
    for name, tokenizer in tokenizers.items():
        form = with_template(tokenizer, FAMILIES[name].template)[1]
        options = form.records(study.finetune)
        assert (options.records, options.loss) == (("round", "last") if name == "qwen3" else ("dialog", "replies"))
    tokenizer, form = with_template(tokenizers["qwen3"], THINKING)
    with pytest.raises(Problem, match=r"the prompt goes on with '<think>.*where the finished dialog has '请说"):
        encode(tokenizer, form, [messages(TALK, "", "query")], 10_000)


def test_thinking_stays_off_whoever_fills_the_template_in(tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    tokenizer, form = with_template(tokenizers["qwen3"], THINKING)
    chat = messages(TALK[:1], "", "query")
    texts = {
        tokenizer.apply_chat_template(
            chat, chat_template=form.source, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
        for thinking in (True, False)
    }
    (text,) = texts
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert tokenizer(text)["input_ids"] == prompt(tokenizer, form, chat)
    assert settled(form.source) == form.source


@pytest.mark.parametrize("begin", ["", " ", "\n", "\n\n  ", "  {% if true %}\n  {% endif %}\n"])
def test_nothing_else_of_the_text_changes(begin: str, tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    chat, tokenizer = messages(TALK[:1], "", "query"), tokenizers["qwen3"]
    plain, off = (
        tokenizer.apply_chat_template(
            chat, chat_template=template, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        for template in (begin + THINKING, settled(begin + THINKING))
    )
    assert off == plain


def test_a_date_is_the_same_on_every_day(tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    tokenizer, form = with_template(tokenizers["llama"], HEADERS)
    assert "Today Date: 26 Jul 2024<|eot_id|>" in tokenizer.decode(prompt(tokenizer, form, messages(TALK[:1], "", "query")))


def test_of_a_reply_the_loss_sees_what_the_template_marks(tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    marked = HEADERS.replace("{% generation %}{{ message.content | trim", "{{ '笑：' }}{% generation %}{{ message.content | trim")
    tokenizer, form = with_template(tokenizers["llama"], marked)
    (record,) = encode(tokenizer, form, [messages(TALK[:2], "", "query")], 10_000)
    assert tokenizer.decode(record.ids).endswith("assistant<|end_header_id|>\n\n笑：请说<|eot_id|>")
    assert taught(tokenizer, record.labels) == "请说<|eot_id|>"


def test_the_own_format_of_a_tiny_model_is_the_format_of_the_paper(sample_dialogs: list[Dialog], study: Study) -> None:
    tokenizer, form = with_template(train_tokenizer(sample_dialogs, 900), LLAMA3.template)
    chats = [messages(dialog.turns, "指示", "system") for dialog in sample_dialogs[:10]]
    for cutoff in (10_000, 90):
        assert encode(tokenizer, form, chats, cutoff) == encode(tokenizer, LLAMA3, chats, cutoff)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "chat template: none"),
        (CHATML.replace("assistant\\n' }}{%- endif", "assistant\\n<think>\\n' }}{%- endif"), "every reply begins with a thought"),
        (
            "{% for message in messages %}{{ message.role + ': ' + message.content + '\\n' }}{% endfor %}",
            "replies end with 'user",
        ),
        ("{{ nothing.at.all }}", "it refuses a chat of user: 'nothing' is undefined"),
    ],
)
def test_a_template_that_cannot_be_taught_is_refused(
    template: str | None, says: str, tokenizers: dict[str, PreTrainedTokenizerFast]
) -> None:
    with pytest.raises(Problem, match=says):
        with_template(tokenizers["qwen2"], template)


def test_a_chat_that_a_template_refuses_or_moves_is_a_problem_that_says_what_to_set(
    tokenizers: dict[str, PreTrainedTokenizerFast],
) -> None:
    chat = messages(TALK, "指示", "system")
    tokenizer, form = with_template(tokenizers["mistral"], MISTRAL)
    with pytest.raises(Problem, match=r"Only user and assistant roles(?s:.*)instruction_placement: query"):
        encode(tokenizer, form, [chat], 10_000)
    moving = MISTRAL.replace("'[INST] ' +", "'[INST] ' + (messages[0].content if loop.last else '') +")
    tokenizer, form = with_template(tokenizers["mistral"], moving.replace("raise_exception(", "('' and "))
    with pytest.raises(Problem, match=r"the prompt goes on with '指示(?s:.*)instruction_placement: query"):
        encode(tokenizer, form, [chat], 10_000)
