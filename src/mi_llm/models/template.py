"""How a dialog becomes the tokens a model was taught with: one Jinja file a chat format, in `templates/`.

The formats are those of LLaMA-Factory, the tool the paper used. An instruction is put where that tool's alpaca
conversion puts it (`query`: in front of the last client turn, joined by a line break) or in a system turn (`system`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import Literal

from transformers import PreTrainedTokenizerBase

from mi_llm.dialog import Turn

Placement = Literal["query", "system"]
Message = dict[str, str]
IGNORED = -100  # the label that PyTorch's cross entropy leaves out


@dataclass(frozen=True)
class ChatFormat:
    """A chat format.

    `eos` is the token a trained reply ends with. `eos_replaces_next` says that the reply carries no end mark of its own
    (LLaMA-Factory's `efficient_eos`): the token after it, which opens the next client turn, is labelled `eos` instead,
    and the last reply of a record gets a real `eos`. `stops` are all tokens that end generation.
    """

    name: str
    eos: str
    stops: tuple[str, ...]
    eos_replaces_next: bool

    @cached_property
    def template(self) -> str:
        """The Jinja source, with generation marks around what the counselor says."""
        return (resources.files(__package__) / "templates" / f"{self.name}.jinja").read_text(encoding="utf-8")

    def stop_ids(self, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids that end a reply."""
        return [tokenizer.convert_tokens_to_ids(token) for token in self.stops]


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
        last = max(place for place, message in enumerate(chat) if message["role"] == "user")
        chat[last] = {"role": "user", "content": f"{instruction}\n{chat[last]['content']}"}
    return chat


@dataclass(frozen=True)
class Encoded:
    """Token ids of one record and, at equal length, the labels the loss sees (`IGNORED` where it looks away)."""

    ids: list[int]
    labels: list[int]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    chat_format: ChatFormat,
    chats: Sequence[list[Message]],
    cutoff: int,
    only_replies: bool = True,
) -> list[Encoded]:
    """Encode finished dialogs for training; the loss is on all counselor turns (or, for pretraining, on everything).

    Records longer than `cutoff` tokens are cut at the end.
    """
    batch = tokenizer.apply_chat_template(
        list(chats),
        chat_template=chat_format.template,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    eos = tokenizer.convert_tokens_to_ids(chat_format.eos)
    records = []
    for ids, spoken in zip(batch["input_ids"], batch["assistant_masks"], strict=True):
        labels = [token if said or not only_replies else IGNORED for token, said in zip(ids, spoken, strict=True)]
        if chat_format.eos_replaces_next:
            for place in range(1, len(ids)):
                if spoken[place - 1] and not spoken[place]:
                    labels[place] = eos
            records.append(Encoded([*ids, eos][:cutoff], [*labels, eos][:cutoff]))
        else:
            records.append(Encoded(ids[:cutoff], labels[:cutoff]))
    return records


def prompt(tokenizer: PreTrainedTokenizerBase, chat_format: ChatFormat, chat: list[Message]) -> list[int]:
    """Token ids after which the model is to speak as the counselor; `chat` ends with a client turn."""
    text = tokenizer.apply_chat_template(chat, chat_template=chat_format.template, tokenize=False)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids
