"""The chat format `checkpoint`: a model's own chat template, and the tokens by which a reply ends for this model.

Reads a checkpoint's tokenizer and `generation_config.json`. What is taught is what is asked: each reply of a training record
follows exactly the tokens of the prompt that asks for it, and a record for which that does not hold is refused. Thinking is
switched off in the template itself (`settled`), so that no program that fills it in can switch it on.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from mi_llm import storage
from mi_llm.engine.template import IGNORED, ChatFormat, Exchange, Message
from mi_llm.problem import Problem
from mi_llm.registry import CHECKPOINT
from mi_llm.study import Finetune

DAY = datetime(2024, 7, 26, tzinfo=UTC)  # the day that Llama 3.1's template takes where no clock is at hand
TODAY = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")
GENERATION_MARK = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")  # where what the counselor says begins or ends
THINKING = ("enable_thinking", "thinking")  # what templates call the switch: Qwen3, GLM-4.5, SmolLM3; DeepSeek-V3.1, Granite
OPENED, CLOSED = "<think>", "</think>"
ANSWER = "零一二三"  # says where a probe's reply stands in the text: no template has these words
PROBE: list[Message] = [
    {"role": "user", "content": "甲"},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": "乙"},
    {"role": "assistant", "content": "丙"},
]
GENERATION = "generation_config.json"
OTHERWISE = "name one of the paper's formats as this model's chat_format, or use another model"


def settled(template: str) -> str:
    """The template with thinking off, and with a fixed day where it asks for today's: equal for everybody, on every day.

    A value that a template sets itself goes before one that a program hands to it. The lines that are added leave no trace in
    the text: transformers drops the line break behind a block.
    """
    fixed = TODAY.sub(lambda call: repr(DAY.strftime(call[2])), template)
    off = "".join(f"{{% set {name} = false %}}\n" for name in THINKING if re.search(rf"\b{name}\b", template))
    return fixed if fixed.startswith(off) else off + fixed


def rendered(
    source: str, chat: list[Message], special: dict[str, Any], where: str, *, asked: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """The text that a template makes of a chat, and the spans (begin, end) that it marks as generated.

    `asked`: with what opens the next reply. `special` are the tokens that templates name, such as `bos_token`. Raises Problem
    where the template refuses the chat.
    """
    marked = bool(GENERATION_MARK.search(source))
    try:
        texts, spans = render_jinja_template(
            [chat], chat_template=source, add_generation_prompt=asked, return_assistant_tokens_mask=marked, **special
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise Problem(
            where,
            f"it refuses a chat of {', '.join(message['role'] for message in chat)}: {' '.join(str(error).split())[:200]}",
            "a template that takes the study's chats",
            "set finetune.instruction_placement: query if it knows no system turns; " + OTHERWISE,
        ) from error
    return texts[0], spans[0] if marked else []


@dataclass(frozen=True)
class OwnFormat(ChatFormat):
    """The chat format that a checkpoint brings: `source` is its template, settled; `where` names it in messages."""

    source: str
    special: dict[str, Any]
    where: str

    @cached_property
    def template(self) -> str:
        """The Jinja source, the same for training and for serving."""
        return self.source

    @cached_property
    def original(self) -> str:
        """The same source: there is one form."""
        return self.source

    def records(self, options: Finetune) -> Finetune:
        """The training settings with which each reply that is taught follows the prompt that asks for it.

        Where one record cannot teach all replies of a dialog, each round is a record, and the loss is on its reply. Qwen3's
        template, for one, writes an empty thought in front of the last reply alone, so that an earlier one does not stand in
        the dialog where it would be asked for.
        """
        if self._text(PROBE).startswith(self._text(PROBE[:1], asked=True)):
            return options
        return options.model_copy(update={"records": "round", "loss": "last"})

    def exchanges(
        self, tokenizer: PreTrainedTokenizerBase, chats: Sequence[list[Message]], *, last_only: bool
    ) -> Iterator[tuple[list[Exchange], list[int]]]:
        """Tokenize each dialog as a whole, and divide its tokens where replies begin and end; a turn without reply is left out.

        A reply begins where the prompt that asks for it ends, and ends with the first end mark after that; the loss sees what
        the template marks as generated, or all of it where it marks nothing, and always the end mark. Raises Problem if a reply
        that is taught (with `last_only` the last, else each) does not follow its prompt, token for token.
        """
        end_mark = tokenizer.convert_tokens_to_ids(self.eos)
        for chat in chats:
            replies = [number for number, message in enumerate(chat) if number and message["role"] == "assistant"]
            ids, seen = self._tokens(tokenizer, chat[: replies[-1] + 1]) if replies else ([], [])
            exchanges, begin = list[Exchange](), 0
            for number in replies:
                asked = self.prompt(tokenizer, chat[:number])
                first = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(asked, ids, strict=False)))
                exact = first == len(asked)
                if not exact and (number == replies[-1] or not last_only):
                    raise self._apart(tokenizer, asked[first:], ids[first:])
                if end_mark not in ids[first:]:  # it is the next client turn that would end this reply
                    ids, seen = [*ids, end_mark], [*seen, True]
                end = ids.index(end_mark, first)
                labels = [token if mark else IGNORED for token, mark in zip(ids[first:end], seen[first:end], strict=True)]
                labels = [*labels, end_mark] if exact else [IGNORED] * (end + 1 - first)
                exchanges.append(Exchange(ids[begin:first], ids[first : end + 1], labels))
                begin = end + 1
            yield exchanges, []

    def prompt(self, tokenizer: PreTrainedTokenizerBase, chat: list[Message]) -> list[int]:
        """Token ids after which the model is to speak as the counselor: the text as a whole, as a model server reads it."""
        ids: list[int] = tokenizer(self._text(chat, asked=True), add_special_tokens=False)["input_ids"]
        return ids

    def _tokens(self, tokenizer: PreTrainedTokenizerBase, chat: list[Message]) -> tuple[list[int], list[bool]]:
        """Token ids of a finished chat, and which of them the template marks as generated: all, if it has no marks."""
        text, spans = rendered(self.source, chat, self.special, self.where)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=bool(spans))
        ids: list[int] = encoded["input_ids"]
        if not spans:
            return ids, [True] * len(ids)
        return ids, [any(begin <= start < end for begin, end in spans) for start, _ in encoded["offset_mapping"]]

    def _text(self, chat: list[Message], *, asked: bool = False) -> str:
        return rendered(self.source, chat, self.special, self.where, asked=asked)[0]

    def _apart(self, tokenizer: PreTrainedTokenizerBase, asked: list[int], trained: list[int]) -> Problem:
        return Problem(
            self.where,
            f"the prompt goes on with {tokenizer.decode(asked)[:80]!r} where the finished dialog has "
            f"{tokenizer.decode(trained)[:80]!r}",
            "each reply behind exactly the prompt that asks for it",
            "set finetune.instruction_placement: query if the template moves system turns; " + OTHERWISE,
        )


def own_format(folder: Path, tokenizer: PreTrainedTokenizerBase) -> OwnFormat:
    """The chat format of a checkpoint, as its files tell it.

    Replies end with the template's end mark, the token that follows a reply in a dialog that goes on, which training teaches, and
    with the tokens that `generation_config.json` names. Raises Problem for a checkpoint without a chat template, and for a
    template whose replies end with text, or that makes the model think.
    """
    where = f"{folder}: chat template"
    try:
        source = settled(tokenizer.get_chat_template())
    except ValueError:
        raise Problem(where, "none", "a chat model's template", "use the chat model of this family; or " + OTHERWISE) from None
    special = dict(tokenizer.special_tokens_map)
    asked, _ = rendered(source, PROBE[:1], special, where, asked=True)
    if asked.rfind(OPENED) > asked.rfind(CLOSED):
        found = f"every reply begins with a thought ({asked[-30:]!r})"
        raise Problem(where, found, "a model that can answer without thinking", OTHERWISE)
    text, _ = rendered(source, PROBE[:3], special, where)
    after = text[text.rfind(ANSWER) + len(ANSWER) :].lstrip()
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    end_mark = max((token for token in added if after.startswith(token)), key=len, default=None)
    if not end_mark or ANSWER not in text:
        raise Problem(where, f"replies end with {after[:30]!r}", "a token of its own that ends a reply", OTHERWISE)
    named = tokenizer.convert_ids_to_tokens(stops_named(folder))
    return OwnFormat(CHECKPOINT, end_mark, tuple(dict.fromkeys([end_mark, *named])), False, source, special, where)


def stops_named(folder: Path) -> list[int]:
    """The ids of the tokens that end a reply by a checkpoint's `generation_config.json`; none where it does not say."""
    path = folder / GENERATION
    named = storage.read_json(path).get("eos_token_id") if path.exists() else None
    return named if isinstance(named, list) else [] if named is None else [named]
