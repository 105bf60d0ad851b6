"""One process or many: what fine-tuning needs to know of the processes that work on it, and how they put results together.

`torchrun` (or `accelerate launch`) starts them, on one machine or several, and accelerate's PartialState connects them: over NCCL
where there are GPUs, over gloo where not. Started without either, a process is alone, and everything here does nothing.
"""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch
from accelerate import PartialState
from torch import distributed

from mi_llm.problem import Problem
from mi_llm.study import Study

Value = TypeVar("Value")
BROKEN = ("connection", "gloo", "nccl", "peer")  # words in the backends' errors when another process is gone


class Processes:
    """This process's number (`rank`), how many there are (`count`), how many on this machine (`beside`), and its device."""

    def __init__(self) -> None:
        connected = distributed.is_initialized()
        state = PartialState(cpu=not torch.cuda.is_available())
        self.rank, self.count = int(state.process_index), int(state.num_processes)
        if self.count > 1 and not connected:
            distributed.barrier()  # one of them keeps the store through which they connect: it may not end before all have
        self.device: torch.device = state.device
        self.beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))

    @property
    def main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def sum(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all processes: the same bits in each of them."""
        if self.count > 1:
            flat = torch.cat([tensor.flatten() for tensor in tensors])
            distributed.all_reduce(flat)
            for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def from_main(self, value: Value) -> Value:
        """The main process's value, in all of them."""
        values = [value]
        if self.count > 1:
            distributed.broadcast_object_list(values, src=0)
        return values[0]

    def all(self, value: Value) -> list[Value]:
        """Every process's value, in the order of their numbers."""
        values: list[Any] = [value] * self.count
        if self.count > 1:
            distributed.all_gather_object(values, value)
        return values

    def refuse_idle(self, title: str, parts: int, what: str) -> None:
        """Raise Problem if there are more processes than parts of the work: some would have no work."""
        if self.count > parts:
            raise Problem(
                title,
                f"{self.count} processes",
                f"at most {parts}: they share {what}, and further processes would have no work",
                f"start {parts} processes at most",
            )

    @contextmanager
    def together(self, title: str) -> Iterator[None]:
        """Work that all processes do; raises Problem when another process dies or torchrun ends this one."""
        before = signal.signal(signal.SIGTERM, self._ended(title)) if self.count > 1 else None
        try:
            yield
        except RuntimeError as error:
            if self.count == 1 or not any(word in str(error).lower() for word in BROKEN):
                raise
            raise self._alone(title, "another process has ended") from error
        finally:
            if before is not None:
                signal.signal(signal.SIGTERM, before)
        if self.count > 1:
            distributed.barrier()
            PartialState().destroy_process_group()

    def _ended(self, title: str) -> Any:
        def handler(number: int, frame: FrameType | None) -> NoReturn:
            raise self._alone(title, "ended by SIGTERM, as torchrun does when another process has ended")

        return handler

    def _alone(self, title: str, found: str) -> Problem:
        return Problem(
            f"{title}, process {self.rank} of {self.count}",
            found,
            "all processes until the end",
            "see the other process's message above, then run the same command again: it continues from the last saved step",
        )


# ---- what a stage that works alone, on tuned models, with its own weights refuses


def refuse_company(title: str) -> None:
    """Raise Problem if several processes or GPUs would do the work of a stage that does not divide it."""
    processes, cards = Processes().count, torch.cuda.device_count()
    if processes > 1 or cards > 1:
        found, remedy = f"{processes} processes, {cards} GPUs", "start it without torchrun, with CUDA_VISIBLE_DEVICES=0"
        raise Problem(title, found, "one process, one GPU", remedy)


def refuse_untuned(study: Study, model: str, title: str) -> None:
    """Raise Problem for a model that the study does not tune."""
    if model not in study.tuned:
        raise Problem(title, f"{model} is not tuned", f"one of {', '.join(study.tuned)}", "name another model")


def refuse_server(study: Study, stage: str) -> None:
    """Raise Problem where a model server answers: it does not have the adapters that this stage makes."""
    if study.respond.engine == "server":
        raise Problem(f"{study.params}: respond.engine", "server", f"local, for the stage {stage}", "set respond.engine: local")
