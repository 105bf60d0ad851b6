"""How training records lie in memory: several end to end in one row, so that no token is padding.

The records of a step are shared out among the processes and made into micro-batches here. Packed, the positions of a row start
again with each record, and attention, registered with transformers as `mi_llm_records`, goes record by record, so that no mask
exists. The loss is summed over labeled tokens and divided once a step, so grouping changes speed and memory, not the result.
Padded is the plain layout: records below one another, in their order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from mi_llm.engine.gradients import cross_entropy
from mi_llm.engine.template import IGNORED, Encoded
from mi_llm.study import Finetune

ATTENTION = "mi_llm_records"


@dataclass(frozen=True)
class Batch:
    """What one pass reads: the model's inputs, the positions whose next token is labeled, and those labels [labeled tokens].

    `labeled` is what transformers calls `logits_to_keep`: columns of the one row, or a mask [rows, tokens].
    """

    inputs: dict[str, Any]
    labeled: torch.Tensor
    labels: torch.Tensor


def shares(
    step_records: Sequence[int], lengths: Sequence[int], options: Finetune, processes: int, device: torch.device
) -> list[list[list[int]]]:
    """Share out a step's records: for each process its micro-batches, each a list of record numbers.

    Packed, the longest are dealt out first, so that all have about as much to do, and a micro-batch has room for `options.batch`
    of the longest records there are: it never takes more memory than padding would. On a CPU, one record per row suffices.
    """
    if not options.packed:
        dealt = [list(step_records[process::processes]) for process in range(processes)]
        return [[numbers[start : start + options.batch] for start in range(0, len(numbers), options.batch)] for numbers in dealt]
    longest_first = sorted(step_records, key=lambda number: (-lengths[number], number))
    room = max(lengths) * (1 if device.type == "cpu" else options.batch)
    return [first_fit(longest_first[process::processes], lengths, room) for process in range(processes)]


def first_fit(numbers: Sequence[int], lengths: Sequence[int], room: int) -> list[list[int]]:
    """Put each record into the first row that has room for it, else into a new row; rows hold `room` tokens."""
    rows: list[list[int]] = []
    left: list[int] = []
    for number in numbers:
        row = next((row for row, free in enumerate(left) if lengths[number] <= free), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(room)
        rows[row].append(number)
        left[row] -= lengths[number]
    return rows


def pack(records: Sequence[Encoded], device: torch.device) -> Batch:
    """Lay records end to end in one row."""
    sizes = [len(record.ids) for record in records]
    row = torch.tensor([token for record in records for token in record.ids])
    positions = torch.cat([torch.arange(size) for size in sizes])
    following = torch.tensor([label for record in records for label in (*record.labels[1:], IGNORED)])
    labeled = (following != IGNORED).nonzero()[:, 0]
    inputs = {"input_ids": row[None].to(device), "position_ids": positions[None].to(device), "sizes": sizes}
    return Batch(inputs, labeled.to(device), following[labeled].to(device))


def pad(records: Sequence[Encoded], padding: int, device: torch.device) -> Batch:
    """Lay records below one another, each filled up with `padding` to the longest."""
    width = max(len(record.ids) for record in records)
    ids, mask = torch.full((len(records), width), padding), torch.zeros(len(records), width, dtype=torch.long)
    following = torch.full((len(records), width), IGNORED)
    for row, record in enumerate(records):
        ids[row, : len(record.ids)] = torch.tensor(record.ids)
        mask[row, : len(record.ids)] = 1
        following[row, : len(record.labels) - 1] = torch.tensor(record.labels[1:])
    labeled = following != IGNORED
    return Batch(
        {"input_ids": ids.to(device), "attention_mask": mask.to(device)}, labeled.to(device), following[labeled].to(device)
    )


def loss_sum(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Cross entropy summed over the labeled tokens, in float32; no other token's logits are computed."""
    logits = model(**batch.inputs, use_cache=False, logits_to_keep=batch.labeled).logits
    return cross_entropy(logits.flatten(0, -2).float(), batch.labels)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    _: None,
    *,
    scaling: float,
    dropout: float,
    sizes: Sequence[int],
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer: causal attention of each record of the row to itself, [1, tokens, heads, size]."""
    parts = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = [
        scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=True).transpose(1, 2)
        for q, k, v in parts
    ]
    return torch.cat(outputs, 1), None


AttentionInterface.register(ATTENTION, attend)
