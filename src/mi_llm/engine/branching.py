"""Answer all rounds of a dialog after reading it once.

The rounds of one dialog share their teacher-forced history. Asked one by one, a model reads that history again for each round;
here it reads each dialog once (the *trunk*), lets every round *branch* off where its own prompt leaves the trunk, and writes
the replies of many rounds together, one token each at a time. A round that has ended leaves at once, and the next dialog joins.
Nothing is padded: the tokens of all rounds lie in one row, and only attention, registered with transformers as `mi_llm_rounds`,
knows which of them belong together. In float32 the tokens are those of plain one-by-one generation. A model whose attention has
what this one does not know (`attention.py`) writes each reply alone, in passes of its own (`Apart`).
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from mi_llm.engine.attention import beyond
from mi_llm.engine.load import nondeterministic

ATTENTION = "mi_llm_rounds"
ROOM = 64  # tokens by which the room for the replies' keys and values grows
Choose = Callable[[torch.Tensor, Sequence[int], Sequence[int]], torch.Tensor]


@dataclass(frozen=True)
class Plan:
    """How the prompts of one dialog's rounds are read: the trunk once, then of each prompt what follows its fork.

    `indices` are the rounds' positions in the caller's list. `forks` say how many tokens of the trunk each prompt shares;
    `suffixes` are the tokens after that.
    """

    indices: tuple[int, ...]
    trunk: list[int]
    forks: list[int]
    suffixes: list[list[int]]

    @property
    def prefilled(self) -> int:
        """Tokens that the model reads before it writes."""
        return len(self.trunk) + sum(map(len, self.suffixes))


def shared(prompt: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two prompts have in common from their beginning."""
    shorter = min(len(prompt), len(other))
    return next((position for position in range(shorter) if prompt[position] != other[position]), shorter)


def plan(indices: Sequence[int], prompts: Sequence[list[int]]) -> Plan:
    """Lay out one dialog's prompts: the trunk is what the longest shares with another; each keeps at least one own token."""
    longest = max(range(len(prompts)), key=lambda index: len(prompts[index]))
    forks = [min(shared(prompt, prompts[longest]), len(prompt) - 1) for prompt in prompts]
    length = max((fork for index, fork in enumerate(forks) if index != longest), default=0)
    forks = [min(fork, length) for fork in forks]
    suffixes = [prompt[fork:] for prompt, fork in zip(prompts, forks, strict=True)]
    return Plan(tuple(indices), prompts[longest][:length], forks, suffixes)


@dataclass
class Memory:
    """Keys and values of one layer: of a dialog's trunk [heads, tokens, size], of its rounds [rounds, heads, room, size]."""

    trunk: tuple[torch.Tensor, torch.Tensor]
    own: tuple[torch.Tensor, torch.Tensor]


@dataclass
class Talk:
    """One dialog whose rounds are being answered.

    `indices` are the rounds still open; `forks` [rounds] how many tokens of the trunk each sees, `lengths` [rounds] how many of
    its own it holds; `token` [rounds] each one's last token; `replies` the token ids of each reply so far.
    """

    plan: Plan
    indices: list[int]
    forks: torch.Tensor
    lengths: torch.Tensor
    token: torch.Tensor
    replies: list[list[int]]
    layers: dict[int, Memory] = field(default_factory=dict)

    def step(self) -> None:
        """Prepare one more token per round: room for it, and which keys each round may see."""
        rounds, longest = len(self.indices), int(self.lengths.max()) + 1
        room = self.layers[0].own[0].shape[2]
        if longest > room:
            for memory in self.layers.values():
                grown = [torch.cat([kept, kept.new_zeros(*kept.shape[:2], ROOM, kept.shape[3])], 2) for kept in memory.own]
                memory.own = (grown[0], grown[1])
        self.rows, self.used, self.seen = torch.arange(rounds, device=self.forks.device), longest, int(self.forks.max())
        columns = torch.arange(max(longest, self.seen), device=self.forks.device)
        hidden = [columns[: self.seen] >= self.forks[:, None], columns[:longest] > self.lengths[:, None]]
        self.hidden = torch.cat(hidden, 1)[:, None, None]

    def keep(self, numbers: list[int]) -> None:
        """Drop all rounds but these; `numbers` count the rounds that are still open."""
        index = torch.tensor(numbers, dtype=torch.long, device=self.forks.device)
        self.indices, self.replies = [self.indices[number] for number in numbers], [self.replies[number] for number in numbers]
        self.forks, self.lengths, self.token = self.forks[index], self.lengths[index], self.token[index]
        for memory in self.layers.values():
            memory.own = (memory.own[0][index], memory.own[1][index])

    def join(self, other: "Talk") -> None:
        """Append the rounds of another talk; neither has a trunk."""
        self.indices, self.replies = self.indices + other.indices, self.replies + other.replies
        self.forks = torch.cat([self.forks, other.forks])
        self.lengths, self.token = torch.cat([self.lengths, other.lengths]), torch.cat([self.token, other.token])
        room = max(talk.layers[0].own[0].shape[2] for talk in (self, other))
        for layer, memory in self.layers.items():
            pairs = zip(memory.own, other.layers[layer].own, strict=True)
            keys, values = (torch.cat([pad(kept, (0, 0, 0, room - kept.shape[2])) for kept in pair]) for pair in pairs)
            memory.own = (keys, values)


@dataclass
class Apart(Talk):
    """Rounds that are computed one by one, each with the cache (`caches` [rounds]) that the model itself keeps of it.

    Nothing is shared: `forks` are 0, and `lengths` count all tokens of a round that its cache holds.
    """

    caches: list[Any] = field(default_factory=list)

    def step(self) -> None:
        """Nothing to prepare: a cache makes its own room."""

    def alone(self, number: int) -> "Apart":
        """One of the rounds."""
        row = slice(number, number + 1)
        return Apart(
            self.plan, self.indices[row], self.forks[row], self.lengths[row], self.token[row], self.replies[row],
            caches=self.caches[row],
        )  # fmt: skip

    def keep(self, numbers: list[int]) -> None:
        """Drop all rounds but these."""
        super().keep(numbers)
        self.caches = [self.caches[number] for number in numbers]

    def join(self, other: Talk) -> None:
        """Append the rounds of another talk."""
        assert isinstance(other, Apart)
        self.indices, self.replies = self.indices + other.indices, self.replies + other.replies
        self.forks = torch.cat([self.forks, other.forks])
        self.lengths, self.token = torch.cat([self.lengths, other.lengths]), torch.cat([self.token, other.token])
        self.caches += other.caches


@dataclass
class Opening:
    """The pass that reads one dialog: its trunk, then each round's suffix, all in one row."""

    talk: Talk
    sizes: list[int]
    masks: list[torch.Tensor]

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        """Attention [1, heads, tokens, size] of the whole row; keeps keys and values for the replies."""
        length = len(self.talk.plan.trunk)
        pieces = [piece.split([length, *self.sizes], dim=2) for piece in (query, key, value)]
        parts = []
        if length:
            query, key, value = (piece[0] for piece in pieces)
            parts.append(scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=True))
        trunk = (pieces[1][0], pieces[2][0])
        room = max(self.sizes) + ROOM
        own = [piece.new_zeros(len(self.sizes), piece.shape[1], room, piece.shape[3]) for piece in (key, value)]
        for number, (fork, mask) in enumerate(zip(self.talk.plan.forks, self.masks, strict=True)):
            query, key, value = (piece[number + 1] for piece in pieces)
            own[0][number, :, : self.sizes[number]], own[1][number, :, : self.sizes[number]] = key[0], value[0]
            keys, values = torch.cat([trunk[0][:, :, :fork], key], 2), torch.cat([trunk[1][:, :, :fork], value], 2)
            parts.append(scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scaling, enable_gqa=True))
        kept = [piece[0] if length else piece[0].clone() for piece in trunk]  # a view of no tokens would hold the whole row
        self.talk.layers[layer] = Memory((kept[0], kept[1]), (own[0], own[1]))
        return torch.cat(parts, 2)


@dataclass
class Step:
    """The pass that adds one token to every open round, dialog after dialog in one row."""

    talks: list[Talk]

    def attend(self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        """Attention [1, heads, rounds, size]: each dialog's rounds against their trunk at once, and against their own tokens."""
        counts = [len(talk.indices) for talk in self.talks]
        pieces = [piece[0].transpose(0, 1).split(counts) for piece in (query, key, value)]
        parts = [
            attend_talk(talk, talk.layers[layer], new, scaling)
            for talk, new in zip(self.talks, zip(*pieces, strict=True), strict=True)
        ]
        return torch.cat(parts).transpose(0, 1)[None]


def attend_talk(talk: Talk, memory: Memory, new: Sequence[torch.Tensor], scaling: float) -> torch.Tensor:
    """Attention [rounds, heads, size] of one new token per round; `new` is its query, key and value, each [rounds, heads, size].

    One softmax over the trunk's keys and the round's own: the scores are computed apart, since all rounds share the trunk's.
    """
    query, key, value = new
    rounds, heads, size = query.shape
    groups = key.shape[1]
    memory.own[0][talk.rows, :, talk.lengths] = key
    memory.own[1][talk.rows, :, talk.lengths] = value
    asking = query.view(rounds, groups, heads // groups, size) * scaling
    together = asking.permute(1, 0, 2, 3).reshape(groups, rounds * (heads // groups), size)
    on_trunk = together @ memory.trunk[0][:, : talk.seen].transpose(1, 2)
    on_trunk = on_trunk.view(groups, rounds, heads // groups, talk.seen).transpose(0, 1)
    on_own = asking @ memory.own[0][:, :, : talk.used].transpose(2, 3)
    scores = torch.cat([on_trunk, on_own], 3).float().masked_fill_(talk.hidden, -torch.inf)
    shares = scores.softmax(3).to(query.dtype)
    of_trunk, of_own = shares.split([talk.seen, talk.used], 3)
    from_trunk = of_trunk.transpose(0, 1).reshape(groups, rounds * (heads // groups), talk.seen) @ memory.trunk[1][:, : talk.seen]
    from_trunk = from_trunk.view(groups, rounds, heads // groups, size).transpose(0, 1)
    return (from_trunk + of_own @ memory.own[1][:, :, : talk.used]).reshape(rounds, heads, size)


def attend(
    module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, _: Any, scaling: float, **arguments: Any
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer: hand the row to the pass that knows its parts."""
    output = arguments["rounds"].attend(module.layer_idx, query, key, value, scaling)
    return output.transpose(1, 2), None


AttentionInterface.register(ATTENTION, attend)


class Branching:
    """A model that answers by branching: `most` rounds at a time, but at least one dialog; each reply at most `limit` tokens."""

    def __init__(self, model: torch.nn.Module, stops: Sequence[int], most: int, limit: int, choose: Choose) -> None:
        self.model, self.stops, self.most, self.limit, self.choose = model, frozenset(stops), most, limit, choose
        self.device = next(model.parameters()).device
        self.apart = model.config._attn_implementation != ATTENTION
        self.prefilled = self.decoded = 0

    def answers(self, plans: Sequence[Plan]) -> Iterator[tuple[int, list[int], str]]:
        """Yield (index, token ids without the stop token, `stop` or `length`) of each round as soon as it has ended."""
        waiting, talks = list(reversed(plans)), list[Talk]()
        while waiting or talks:
            while waiting and (not talks or sum(len(talk.indices) for talk in talks) + len(waiting[-1].indices) <= self.most):
                talks.append(self.opened(waiting.pop()))
            for talk in talks:
                yield from self.ended(talk)
            talks = [talk for talk in talks if talk.indices]
            if talks:
                self.step(talks)

    def tensor(self, numbers: Sequence[int]) -> torch.Tensor:
        """Integers on the model's device."""
        return torch.tensor(numbers, device=self.device)

    def opened(self, dialog: Plan) -> Talk:
        """Read one dialog, and choose the first token of each round."""
        if self.apart:
            return self.opened_apart(dialog)
        sizes = [len(suffix) for suffix in dialog.suffixes]
        row = [*dialog.trunk, *(token for suffix in dialog.suffixes for token in suffix)]
        positions = [*range(len(dialog.trunk))]
        for fork, size in zip(dialog.forks, sizes, strict=True):
            positions += range(fork, fork + size)
        masks = [
            torch.ones(size, fork + size, dtype=torch.bool, device=self.device).tril(fork)
            for fork, size in zip(dialog.forks, sizes, strict=True)
        ]
        indices = list(dialog.indices)
        talk = Talk(dialog, indices, self.tensor(dialog.forks), self.tensor(sizes), self.tensor(sizes), [[] for _ in indices])
        last = self.tensor(sizes).cumsum(0) + len(dialog.trunk) - 1
        self.extend([talk], self.run(row, positions, Opening(talk, sizes, masks), last))
        self.prefilled += dialog.prefilled
        return talk

    def opened_apart(self, dialog: Plan) -> Talk:
        """Read each prompt of a dialog alone, and choose the first token of each round."""
        prompts = [dialog.trunk[:fork] + suffix for fork, suffix in zip(dialog.forks, dialog.suffixes, strict=True)]
        sizes, nothing = self.tensor([len(prompt) for prompt in prompts]), [0] * len(prompts)
        talk = Apart(
            dialog, list(dialog.indices), self.tensor(nothing), sizes, self.tensor(nothing), [[] for _ in prompts],
            caches=[None for _ in prompts],
        )  # fmt: skip
        logits = []
        for number, prompt in enumerate(prompts):
            alone = talk.alone(number)
            last = self.tensor([len(prompt) - 1])
            logits.append(self.run(prompt, range(len(prompt)), Opening(alone, [len(prompt)], []), last))
            talk.caches[number] = alone.caches[0]
        self.extend([talk], torch.cat(logits))
        self.prefilled += sum(map(len, prompts))
        return talk

    def step(self, talks: list[Talk]) -> None:
        """Compute and choose the next token of every open round."""
        if self.apart:
            alone = [talk.alone(number) for talk in talks if isinstance(talk, Apart) for number in range(len(talk.indices))]
            logits = torch.cat([self.run(talk.token, talk.lengths, Step([talk]), 0) for talk in alone])
            self.went(talks, logits)
            return
        for talk in talks:
            talk.step()
        row = torch.cat([talk.token for talk in talks])
        positions = torch.cat([talk.forks + talk.lengths for talk in talks])
        self.went(talks, self.run(row, positions, Step(talks), 0))

    def went(self, talks: list[Talk], logits: torch.Tensor) -> None:
        """Choose each open round's token from the logits [rounds, vocabulary] of a step."""
        for talk in talks:
            talk.lengths = talk.lengths + 1
        self.extend(talks, logits)
        self.decoded += len(logits)

    def run(
        self, row: Sequence[int] | torch.Tensor, positions: Sequence[int] | torch.Tensor, of: Opening | Step, keep: Any
    ) -> torch.Tensor:
        """One pass over one row of tokens; returns the logits [kept tokens, vocabulary] in float32."""
        ids = torch.as_tensor(row, device=self.device)[None]
        position_ids = torch.as_tensor(positions, device=self.device)[None]
        alone = of.talk if isinstance(of, Opening) else of.talks[0]
        with torch.inference_mode():
            if isinstance(alone, Apart):
                out = self.model(
                    input_ids=ids,
                    position_ids=position_ids,
                    use_cache=True,
                    past_key_values=alone.caches[0],
                    logits_to_keep=keep,
                )
                alone.caches[0] = out.past_key_values
            else:
                out = self.model(input_ids=ids, position_ids=position_ids, use_cache=False, logits_to_keep=keep, rounds=of)
        logits: torch.Tensor = out.logits[0].float()
        return logits

    def extend(self, talks: list[Talk], logits: torch.Tensor) -> None:
        """Choose the next token of each open round."""
        indices = [index for talk in talks for index in talk.indices]
        counts = [len(reply) for talk in talks for reply in talk.replies]
        tokens = self.choose(logits, indices, counts)
        for talk, chosen in zip(talks, tokens.split([len(talk.indices) for talk in talks]), strict=True):
            talk.token = chosen
            for reply, token in zip(talk.replies, chosen.tolist(), strict=True):
                reply.append(token)

    def ended(self, talk: Talk) -> Iterator[tuple[int, list[int], str]]:
        """Yield the rounds that have ended and let them leave."""
        going = []
        for row, (index, reply) in enumerate(zip(talk.indices, talk.replies, strict=True)):
            if reply[-1] in self.stops:
                yield index, reply[:-1], "stop"
            elif len(reply) == self.limit:
                yield index, reply, "length"
            else:
                going.append(row)
        if len(going) < len(talk.indices):
            talk.keep(going)


def greedy(logits: torch.Tensor, rounds: Sequence[int], counts: Sequence[int]) -> torch.Tensor:
    """The likeliest token of each round."""
    return logits.argmax(-1)


def drawn(logits: torch.Tensor, temperature: torch.Tensor, top_k: int, top_p: torch.Tensor, chance: torch.Tensor) -> torch.Tensor:
    """A random token for each round: temperature, then the `top_k` likeliest, then the fewest that hold `top_p`.

    `logits` [rounds, vocabulary]; `temperature`, `top_p` and `chance` (a random number from 0 to 1) [rounds].
    """
    likeliest, tokens = (logits / temperature[:, None]).topk(min(top_k, logits.shape[-1]))
    shares = likeliest.softmax(-1)
    with nondeterministic("cumsum") if shares.is_cuda else nullcontext():
        shares[shares.cumsum(-1) - shares >= top_p[:, None]] = 0.0
        summed = shares.cumsum(-1)
    ranks = torch.searchsorted(summed, chance[:, None] * summed[:, -1:], right=True)
    return tokens.gather(-1, ranks.clamp(max=tokens.shape[-1] - 1))[:, 0]


def branching_attention(model: PreTrainedModel) -> None:
    """Have a model attend by rounds from now on, or say why it writes each reply alone."""
    if why := beyond(model):
        print(f"{model.name_or_path}: its attention has {why}; each reply is written alone, which takes longer", file=sys.stderr)
        return
    model.set_attn_implementation(ATTENTION)
