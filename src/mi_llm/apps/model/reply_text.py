"""The text of a reply while its tokens still come: what can be sent now, and what must wait for the next token."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # what a decoder puts where a character lacks bytes


class ReplyText:
    """Gives out a reply's text token by token: never half a character, no white space around it, nothing from a stop string on.

    `stopped` says that a stop string has come. The pieces together are `whole()`, unless the model wrote bytes that are no text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        self.ids: list[int] = []
        self.begin = self.known = 0  # a token is decoded with the piece before it: decoders look at a token's neighbors
        self.held = ""
        self.begun = self.stopped = False

    def add(self, token: int) -> str:
        """The text that can be given out now that a token has come."""
        self.ids.append(token)
        new = self._new()
        if new.endswith(UNFINISHED):
            return ""
        self.begin, self.known = self.known, len(self.ids)
        return self._released(new)

    def end(self) -> str:
        """What is left when no token will come."""
        released = self._released(self._new())
        return released + ("" if self.stopped else self.held.rstrip())

    def whole(self) -> str:
        """The whole text of the tokens so far, as `respond` would keep it."""
        text = self._decoded(0, len(self.ids)).strip()
        return text[: self._stop_in(text)].rstrip()

    def _decoded(self, begin: int, end: int) -> str:
        text: str = self.tokenizer.decode(self.ids[begin:end], skip_special_tokens=True)
        return text

    def _new(self) -> str:
        """The text of the tokens that came since the last piece."""
        return self._decoded(self.begin, len(self.ids))[len(self._decoded(self.begin, self.known)) :]

    def _stop_in(self, text: str) -> int | None:
        """Where the first stop string begins."""
        return min((text.index(stop) for stop in self.stop if stop in text), default=None)

    def _released(self, new: str) -> str:
        """What can be sent of the held text and the new: not the white space or the beginning of a stop string at its end."""
        text = self.held + new if self.begun else (self.held + new).lstrip()
        end = self._stop_in(text)
        if end is not None:
            self.stopped = True
        else:
            beginnings = (stop[:length] for stop in self.stop for length in range(1, len(stop)))
            end = len(text) - max((len(beginning) for beginning in beginnings if text.endswith(beginning)), default=0)
        released = text[:end].rstrip()
        self.held = text[len(released) :]
        self.begun = self.begun or bool(released)
        return released
