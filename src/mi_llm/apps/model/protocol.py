"""What the model server is asked and what it answers: the part of OpenAI's chat completions that the study's models can do.

`top_k` is vLLM's addition. A field that we do not know is refused, since it could change the reply: a misspelled one too. Ignored
is what changes nothing: what client libraries say of themselves, and a setting at the value that it has without effect.
"""

import json
import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mi_llm.engine.template import Message

MESSAGES, STOPS, STOP_CHARACTERS, LONGEST_NAME = 400, 4, 64, 40
IGNORED = frozenset({  # whom a request is for and how it is handled
    "user", "safety_identifier", "metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention", "prediction",
    "parallel_tool_calls", "request_id", "priority", "cache_salt",
})  # fmt: skip
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {  # fields that are not supported here, with the values at which they change nothing
    "n": (1,), "logprobs": (False,), "top_logprobs": (0,), "logit_bias": ({},), "frequency_penalty": (0,),
    "presence_penalty": (0,), "tools": ([],), "functions": ([],), "response_format": ({"type": "text"},),
    "modalities": (["text"],), "min_p": (0,), "repetition_penalty": (1,), "min_tokens": (0,), "ignore_eos": (False,),
    "stop_token_ids": ([],), "bad_words": ([],), "best_of": (1,), "use_beam_search": (False,), "length_penalty": (1,),
    "continue_final_message": (False,), "add_generation_prompt": (True,), "add_special_tokens": (False,), "echo": (False,),
    "include_stop_str_in_output": (False,), "skip_special_tokens": (True,), "spaces_between_special_tokens": (True, False),
    "repeat_penalty": (1,), "typical_p": (1,), "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
    "chat_template_kwargs": ({},), "documents": ([],), "logits_processors": ([],), "prompt_logprobs": (False,),
    "reasoning_effort": ("none",),
}  # fmt: skip


def plain(text: str) -> str:
    """Refuse what no text holds: control characters, and halves of characters (lone surrogates)."""
    for character in text:
        if "\ud800" <= character <= "\udfff":
            raise ValueError("holds a lone surrogate, which is half a character")
        if (character < " " and character not in "\t\n\r") or character == "\x7f":
            raise ValueError(f"holds the control character U+{ord(character):04X}")
    return text


Text = Annotated[str, AfterValidator(plain)]


class Strict(BaseModel):
    """A part of a request: numbers are numbers and texts are texts."""

    model_config = ConfigDict(strict=True, frozen=True)


class Part(Strict):
    """A part of a message; only text is understood."""

    type: Literal["text"]
    text: Text


def parts(content: Any) -> Any:
    """The content as a list of parts: a plain text becomes one text part."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise ValueError("must be a text or a list of text parts")
    return content


class ChatMessage(Strict):
    """One message: the optional instruction (`system`), a client's turn (`user`) or a counselor's (`assistant`)."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[list[Part], BeforeValidator(parts, json_schema_input_type=str | list[Part])]

    @property
    def text(self) -> str:
        """The message's text, its parts joined."""
        return "\n".join(part.text for part in self.content)


class StreamOptions(Strict):
    """`include_usage`: a stream ends with the numbers of tokens."""

    include_usage: bool = False


class ChatRequest(Strict):
    """The body of POST /v1/chat/completions; None is as good as leaving a field out."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", json_schema_extra={"additionalProperties": False})

    model: Text = Field(max_length=200)
    messages: list[ChatMessage] = Field(min_length=1, max_length=MESSAGES)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, allow_inf_nan=False)
    top_k: int | None = Field(None, ge=-1, lt=2**31)
    top_p: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Text | list[Text] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def answerable(self) -> "ChatRequest":
        """Refuse a request that these models cannot answer."""
        if any(message.role == "system" for message in self.messages[1:]):
            raise ValueError("only the first message may be a system message")
        if self.messages[-1].role != "user":
            raise ValueError("the last message must be a user message: it is the one to answer")
        if len(self.stops) > STOPS or not all(0 < len(stop) <= STOP_CHARACTERS for stop in self.stops):
            raise ValueError(f"stop: at most {STOPS} strings of 1 to {STOP_CHARACTERS} characters")
        for name, value in (self.model_extra or {}).items():
            if name not in IGNORED and value not in (None, *WITHOUT_EFFECT.get(name, ())):
                shown = name if name.isidentifier() and len(name) <= LONGEST_NAME else "a field"
                raise ValueError(f"{shown} is not supported here; leave it out")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings before which a reply ends."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def chat(self) -> list[Message]:
        """The messages as the chat formats take them."""
        return [{"role": message.role, "content": message.text} for message in self.messages]


class ErrorBody(BaseModel):
    """What an error says."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Error(BaseModel):
    """An error as OpenAI's clients read it."""

    error: ErrorBody


class Refusal(Exception):  # noqa: N818
    """A request that is answered with an error: HTTP status, its message, type and code, and after how long to try again."""

    def __init__(self, status: int, message: str, kind: str, code: str | None = None, *, retry_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.retry_s = status, retry_s
        self.body = Error(error=ErrorBody(message=message, type=kind, code=code))


def invalid(message: str, code: str | None = None, status: int = 400) -> Refusal:
    """The refusal of an invalid request."""
    return Refusal(status, message, "invalid_request_error", code)


def described(faults: Sequence[Any]) -> str:
    """The first faults that pydantic found, in one line, without repeating what was sent."""
    lines = []
    for fault in faults[:3]:
        field = ".".join(str(part) for part in fault["loc"][1:])  # without `body`
        message = fault["msg"].removeprefix("Value error, ")
        lines.append(f"{field}: {message}" if field else message)
    return "; ".join(lines)


def usage(prompt: int, reply: int) -> dict[str, int]:
    """The numbers of tokens read and written, as OpenAI's `usage`."""
    return {"prompt_tokens": prompt, "completion_tokens": reply, "total_tokens": prompt + reply}


class Answer:
    """The frame of one answer, whole or as a stream of events."""

    def __init__(self, model: str, *, with_usage: bool = False) -> None:
        self.frame: dict[str, Any] = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        self.with_usage = with_usage

    def completion(self, text: str, finish: str, used: dict[str, int]) -> dict[str, Any]:
        """The whole answer as a chat completion."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return {**self.frame, "object": "chat.completion", "choices": [choice], "usage": used}

    def chunk(self, delta: dict[str, str], finish: str | None = None) -> bytes:
        """An event with a piece of the reply."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return event(
            self.frame | {"object": "chat.completion.chunk", "choices": [choice]} | ({"usage": None} if self.with_usage else {})
        )

    def last(self, used: dict[str, int]) -> bytes:
        """The end of a stream, with the numbers of tokens if they were asked for."""
        counted = self.frame | {"object": "chat.completion.chunk", "choices": [], "usage": used}
        return (event(counted) if self.with_usage else b"") + b"data: [DONE]\n\n"


def event(content: Any) -> bytes:
    """One server-sent event; JSON has no line break, so nothing in a reply can end it."""
    return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"
