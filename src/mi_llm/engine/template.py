"""How a dialog becomes the tokens a model was taught with: two Jinja files for each of the paper's chat formats, in `templates/`.

These formats are those of LLaMA-Factory, the tool the paper used, token for token: a dialog is tokenized round by round, and cut
round by round. `own_format.py` has one more, `checkpoint`, which is the chat template that a model brings. An instruction is put
where LLaMA-Factory's alpaca conversion puts it (`query`: in front of the last client turn, joined by a line break) or in a system
turn (`system`).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from itertools import pairwise
from typing import Literal

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from mi_llm.dialog import Turn
from mi_llm.study import Finetune

Placement = Literal["query", "system"]
Message = dict[str, str]
TEMPLATES = resources.files(__package__) / "templates"
MARK = re.compile(  # behind its bracket: what this study's and other families of models take for one token
    r"(?<=[<\[])(?=[|｜][^\s<>]{1,60}[|｜]>|/?(?:s|unk|pad|bos|eos|mask|sop|eop|im_start|im_end)>|(?:start|end)_of_turn>"
    r"|(?:reserved|unused|extra_id)_?\d+>|/?SYS>|/?INST\]|[gs]?MASK\])"
)
IGNORED = -100  # the label that PyTorch's cross entropy leaves out


@dataclass(frozen=True)
class ChatFormat:
    """A chat format.

    `eos` is the token a trained reply ends with. `eos_replaces_next` says that the reply carries no end mark of its own
    (LLaMA-Factory's `efficient_eos`): the token after it, which opens the next client turn, is labeled `eos` instead,
    and the last reply of a record gets a real `eos`. `stops` are all tokens that end generation.
    """

    name: str
    eos: str
    stops: tuple[str, ...]
    eos_replaces_next: bool

    @cached_property
    def template(self) -> str:
        """The Jinja source of the training form, with generation marks around what the counselor says."""
        return self._file(f"{self.name}.jinja")

    @cached_property
    def original(self) -> str:
        """The Jinja source of the form that the model was published with, for serving; its file names the differences.

        Without such a file the two forms are one.
        """
        published = f"{self.name}.original.jinja"
        return self._file(published) if (TEMPLATES / published).is_file() else self.template

    def records(self, options: Finetune) -> Finetune:
        """The training settings with which each reply that is taught follows the prompt that asks for it."""
        return options

    def stop_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids that end a reply."""
        return [tokenizer.convert_tokens_to_ids(token) for token in self.stops]

    def exchanges(
        self, tokenizer: PreTrainedTokenizerBase, chats: Sequence[list[Message]], *, last_only: bool
    ) -> "Iterator[tuple[list[Exchange], list[int]]]":
        """Tokenize each dialog round by round; yields its rounds and the tokens of a last client turn without reply.

        Each side of a round is tokenized on its own, as LLaMA-Factory does: a reply that begins with white space must not grow
        together with the line breaks in front of it.
        """
        texts, replies = render_jinja_template(list(chats), chat_template=self.template, return_assistant_tokens_mask=True)
        pieces: list[list[str]] = []
        for text, spans in zip(texts, replies, strict=True):
            edges = [0, *(edge for span in spans for edge in span), len(text)]
            pieces.append([text[begin:end] for begin, end in pairwise(edges)])
        flat = [piece for parts in pieces for piece in parts]
        ids = iter(tokenizer(flat, add_special_tokens=False)["input_ids"] if flat else [])
        for parts in pieces:
            sides = [next(ids) for _ in parts]
            yield [Exchange(put, reply, reply) for put, reply in zip(sides[:-1:2], sides[1::2], strict=True)], sides[-1]

    def prompt(self, tokenizer: PreTrainedTokenizerBase, chat: list[Message]) -> list[int]:
        """Token ids after which the model is to speak as the counselor; `chat` ends with a client turn."""
        ((exchanges, unanswered),) = self.exchanges(tokenizer, [chat], last_only=False)
        return [token for exchange in exchanges for token in exchange.put + exchange.reply] + unanswered

    def _file(self, name: str) -> str:
        return (TEMPLATES / name).read_text(encoding="utf-8")


# A further format is an entry of FORMATS, and its template.
BAICHUAN2 = ChatFormat("baichuan2", "</s>", ("</s>", "<reserved_106>"), True)
GLM4 = ChatFormat("glm4", "<|endoftext|>", ("<|endoftext|>", "<|user|>", "<|observation|>"), True)
LLAMA3 = ChatFormat("llama3", "<|eot_id|>", ("<|eot_id|>", "<|end_of_text|>"), False)
FORMATS = {chat_format.name: chat_format for chat_format in (BAICHUAN2, GLM4, LLAMA3)}


def messages(turns: Sequence[Turn], instruction: str, placement: Placement) -> list[Message]:
    """Turn volleys into chat messages, with the instruction where `placement` says."""
    chat = [{"role": "user" if turn.role == "client" else "assistant", "content": turn.text} for turn in turns]
    if instruction and placement == "system":
        return [{"role": "system", "content": instruction}, *chat]
    if instruction:
        last = max(index for index, message in enumerate(chat) if message["role"] == "user")
        chat[last] = {"role": "user", "content": "\n".join(part for part in (instruction, chat[last]["content"]) if part)}
    return chat


def unmarked(chat: Sequence[Message]) -> list[Message]:
    """The messages for a model server, in which no text ends a turn or opens one: a space breaks up what reads as a mark."""
    return [message | {"content": MARK.sub(" ", message["content"])} for message in chat]


@dataclass(frozen=True)
class Encoded:
    """Token ids of one record and, at equal length, the labels the loss sees (`IGNORED` where it looks away)."""

    ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class Exchange:
    """Token ids of one round as the model sees it: what is put to it (with any system turn and role marks), and its reply.

    `labels` are what the loss sees of the reply, at equal length.
    """

    put: list[int]
    reply: list[int]
    labels: list[int]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    chat_format: ChatFormat,
    chats: Sequence[list[Message]],
    cutoff: int,
    *,
    only_replies: bool = True,
    last_only: bool = False,
) -> list[Encoded]:
    """Encode finished dialogs for training, as LLaMA-Factory's supervised processor does.

    The loss is on all counselor turns, on the last (`last_only`; LLaMA-Factory's `mask_history`), or, for pretraining, on
    everything. A record has at most `cutoff` tokens: rounds are taken from the beginning (with `last_only` from the end) as long
    as there is room, and the last one taken is cut to fit; see `kept`. A last client turn that nobody answers is left out,
    unless the loss is on everything.
    """
    eos = tokenizer.convert_tokens_to_ids(chat_format.eos)
    records = []
    for exchanges, unanswered in chat_format.exchanges(tokenizer, chats, last_only=last_only):
        taught = exchanges if only_replies else [*exchanges, Exchange(unanswered, [], [])]
        records.append(_record(taught, chat_format, eos, cutoff=cutoff, only_replies=only_replies, last_only=last_only))
    return records


def prompt(tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat, chat: list[Message]) -> list[int]:
    """Token ids after which the model is to speak as the counselor; `chat` ends with a client turn."""
    return chat_format.prompt(tokenizer, chat)


def kept(put: int, reply: int, room: int) -> tuple[int, int]:
    """How many tokens of each side of a round stay when `room` tokens are left (LLaMA-Factory's `infer_seqlen`).

    If one side fills less than half of the room, the other is cut at its end; else both are, in proportion.
    """
    if reply * 2 < room:
        most = room
    elif put * 2 < room:
        most = room - put
    else:
        most = int(room * (reply / (put + reply)))
    reply = min(most, reply)
    return min(room - reply, put), reply


def _record(
    exchanges: Sequence[Exchange], chat_format: ChatFormat, eos: int, *, cutoff: int, only_replies: bool, last_only: bool
) -> Encoded:
    """Join a dialog's rounds into one record.

    Where replies have no end mark of their own, every round but the first taken has `eos` as the label of its first token.
    With `last_only` the first taken is the dialog's last, so that the end of the reply before it is not taught, though the ends
    of earlier replies are: LLaMA-Factory's rule, kept for equality.
    """
    ids: list[int] = []
    labels: list[int] = []
    room = cutoff - chat_format.eos_replaces_next
    for number, exchange in enumerate(reversed(exchanges) if last_only else exchanges):
        if room <= 0:
            break
        length, reply_length = kept(len(exchange.put), len(exchange.reply), room)
        room -= length + reply_length
        put, reply = exchange.put[:length], exchange.reply[:reply_length]
        put_labels = [IGNORED] * length if only_replies else list(put)
        if chat_format.eos_replaces_next and number and put:
            put_labels[0] = eos
        reply_labels = [IGNORED] * reply_length if last_only and number else exchange.labels[:reply_length]
        if last_only:
            ids, labels = put + reply + ids, put_labels + reply_labels + labels
        else:
            ids, labels = ids + put + reply, labels + put_labels + reply_labels
    if chat_format.eos_replaces_next and exchanges:
        ids, labels = [*ids, eos], [*labels, eos]
    return Encoded(ids, labels)
