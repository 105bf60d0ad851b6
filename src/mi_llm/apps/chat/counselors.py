"""The counselor models behind the chat: our own server or vLLM, asked through the `openai` client.

A model's arms go by name: `<model>` is the base, `<model>+mi` the tuned one. It reads the server's answers only.
"""

import re
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import openai

from mi_llm.engine.template import Message
from mi_llm.llm import wire
from mi_llm.llm.answer import finish_of
from mi_llm.study import ARMS, SERVED, Arm, Respond, served_name

NAME = re.compile(r"[\w.:/@+-]{1,100}", re.ASCII)
FRESH_S = 10.0  # how long a list of models is used before the server is asked again
LONGEST_REPLY = 8000  # characters
SILENCE_S, CONNECT_S = 120.0, 5.0  # seconds that the server may be silent, and may take to accept a connection


class Unanswered(Exception):  # noqa: N818 — it says what happened
    """No reply: the server is `away`, `busy`, finds the talk too `long`, has `refused` the message, or `failed`."""

    def __init__(self, why: Literal["away", "busy", "long", "refused", "failed"]) -> None:
        self.why = why
        super().__init__(why)


@dataclass(frozen=True)
class Manner:
    """How the models are asked: the study's instruction, its placement, and the options of decoding."""

    instruction: str
    placement: Literal["query", "system"]
    options: Respond


class Counselors:
    """The models of one server; `parameters` says how many each has, where the server tells."""

    def __init__(self, url: str) -> None:
        self.client = wire.client(url, 1, openai.Timeout(SILENCE_S, connect=CONNECT_S))
        self.parameters: dict[str, int] = {}
        self._known: dict[str, tuple[Arm, ...]] = {}
        self._asked = -FRESH_S

    async def models(self) -> dict[str, tuple[Arm, ...]]:
        """The models by name, each with the arms that the server offers, first those with both; only plain names count.

        Raises Unanswered where the server cannot be asked.
        """
        if time.monotonic() - self._asked < FRESH_S:
            return self._known
        try:
            served = {model.id: model async for model in self.client.models.list() if NAME.fullmatch(model.id)}
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:
            raise Unanswered("away") from error
        arms = {
            name: tuple(arm for arm in ARMS if served_name(name, arm) in served)
            for name in sorted({name.removesuffix(SERVED["tuned"]) for name in served} - {""})
        }
        told = {name: getattr(served.get(name), "parameters", None) for name in arms}  # ours tells it, vLLM does not
        self.parameters = {name: number for name, number in told.items() if isinstance(number, int) and number > 0}
        self._known = dict(sorted(arms.items(), key=lambda item: -len(item[1])))
        self._asked = time.monotonic()
        return self._known

    async def reply(
        self, model: str, arm: Arm, asked: Sequence[Message], manner: Manner, seed: int | None
    ) -> AsyncGenerator[tuple[str, str]]:
        """A reply as it comes: (a piece of text, why it ended or ""). With a seed it is drawn, else decoded as in the study.

        Closing the iterator ends the request, and a good server then ends its work. Raises Unanswered.
        """
        options = manner.options
        settings = options.requested(greedy=options.decoding == "greedy" and seed is None)
        length, ended = 0, None
        try:
            stream = await self.client.chat.completions.create(
                model=served_name(model, arm),
                messages=cast("Any", asked),
                stream=True,
                max_tokens=options.max_new_tokens,
                seed=openai.omit if seed is None else seed,
                extra_body=settings,
            )
            async with stream:
                async for chunk in stream:
                    for choice in chunk.choices[:1]:
                        piece = (choice.delta.content or "") if choice.delta else ""
                        length += len(piece)
                        ended = finish_of(choice.model_dump()) if choice.finish_reason is not None else ended
                        yield piece, ""
                    if length > LONGEST_REPLY:
                        ended = "length"
                        break
        except openai.APIConnectionError as error:
            raise Unanswered("failed" if length else "away") from error
        except openai.APIStatusError as error:
            if error.code == "context_length_exceeded" or "context length" in error.message:  # OpenAI's code, vLLM's words
                raise Unanswered("long") from error
            known: dict[int, Literal["busy", "long", "refused"]] = {429: "busy", 503: "busy", 400: "refused", 413: "long"}
            raise Unanswered(known.get(error.status_code, "failed")) from error
        except (openai.OpenAIError, ValueError, TypeError, AttributeError) as error:  # a stream that breaks its own protocol
            raise Unanswered("failed") from error
        if ended is None:  # the stream was cut off
            raise Unanswered("failed")
        yield "", "length" if ended == "length" else "stop"
