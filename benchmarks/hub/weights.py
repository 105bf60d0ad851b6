"""The stand-in's weights: a `pytorch_model.bin` in Baichuan2's layout, its tensors read out of a small pool of random values.

On disk the file is sparse: the headers of its zip archive and the pickle that names the tensors, with holes where tensors lie.
What the holes hold is made when it is read: every tensor begins at a place of its own in a pool of 64 MiB that repeats.
"""

import hashlib
import struct
import zipfile
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mi_llm.engine.estimate import Shape

FILE = "pytorch_model.bin"
MATRIX_VALUES = 33_554_393  # prime, so that no two rows of a matrix longer than the pool are equal
NORM_VALUES = 1 << 16
PHASE = 2 * 1_234_567  # bytes by which each tensor begins later in the pool than the one before it
SEED = 7
STANDARD_DEVIATION = 0.02  # Baichuan2's initializer_range
CHUNK = 1 << 22  # bytes
LOCAL_HEADER = 30  # bytes of a zip entry's header before its name


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """The published tensors in the order of the file, by name: 3, and 7 for each layer."""
    width, inner, vocabulary = shape.hidden, shape.intermediate, shape.vocabulary
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, width)}
    for number in range(shape.layers):
        layer = f"model.layers.{number}"
        shapes |= {
            f"{layer}.self_attn.W_pack.weight": (3 * width, width),
            f"{layer}.self_attn.o_proj.weight": (width, width),
            f"{layer}.mlp.gate_proj.weight": (inner, width),
            f"{layer}.mlp.down_proj.weight": (width, inner),
            f"{layer}.mlp.up_proj.weight": (inner, width),
            f"{layer}.input_layernorm.weight": (width,),
            f"{layer}.post_attention_layernorm.weight": (width,),
        }
    return shapes | {"model.norm.weight": (width,), "lm_head.weight": (vocabulary, width)}


@dataclass(frozen=True)
class Span:
    """A part of the file and what it holds: the bytes of `pool` from `phase` on, over and over."""

    start: int
    length: int
    pool: bytes
    phase: int = 0

    def put(self, target: bytearray, offset: int) -> None:
        """Fill in what this part holds of `target`, which begins at byte `offset` of the file."""
        position, end = max(self.start, offset), min(self.start + self.length, offset + len(target))
        while position < end:
            begin = (position - self.start + self.phase) % len(self.pool)
            count = min(end - position, len(self.pool) - begin)
            target[position - offset : position - offset + count] = self.pool[begin : begin + count]
            position += count


def random_bytes(values: int, mean: float, deviation: float) -> bytes:
    """Normal random numbers in bfloat16."""
    drawn = torch.randn(values, generator=torch.Generator().manual_seed(SEED)) * deviation + mean
    return bytes(drawn.bfloat16().view(torch.uint8).numpy())


class Weights:
    """The file in a folder, made sparse if it is not there; can be read anywhere."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        self.path = folder / FILE
        if not self.path.exists():
            write_sparse(self.path, shape)
        self.size = self.path.stat().st_size
        self.spans = spans_of(self.path, list(tensor_shapes(shape)))
        self.starts = [span.start for span in self.spans]

    def read(self, start: int, count: int) -> bytearray:
        """Read bytes of the file, fewer at its end."""
        content = bytearray(min(count, self.size - start))
        for span in self.spans[max(0, bisect_right(self.starts, start) - 1) :]:
            if span.start >= start + count:
                break
            span.put(content, start)
        return content

    def chunks(self, start: int = 0) -> Iterator[bytearray]:
        """Read the file from a byte on, part by part."""
        for position in range(start, self.size, CHUNK):
            yield self.read(position, CHUNK)

    def sha256(self) -> str:
        """SHA-256 of the whole file; kept beside it."""
        kept = self.path.with_name(f".{FILE}.sha256")
        if not kept.exists():
            whole = hashlib.sha256()
            for chunk in self.chunks():
                whole.update(chunk)
            kept.write_text(whole.hexdigest(), encoding="utf-8")
        return kept.read_text(encoding="utf-8")


def write_sparse(path: Path, shape: Shape) -> None:
    """Write the file as torch.save would, without the tensors' bytes."""
    with FakeTensorMode():
        tensors = {name: torch.empty(*size, dtype=torch.bfloat16) for name, size in tensor_shapes(shape).items()}
    with torch.serialization.skip_data(materialize_fake_tensors=True):
        torch.save(tensors, path)


def spans_of(path: Path, names: list[str]) -> list[Span]:
    """The tensors, as random values, and what lies between them, in the order of the file."""
    matrices, norms = random_bytes(MATRIX_VALUES, 0, STANDARD_DEVIATION), random_bytes(NORM_VALUES, 1, 0.1)
    spans, position = list[Span](), 0
    with path.open("rb") as file:
        for number, (name, (start, length)) in enumerate(zip(names, tensor_places(path), strict=True)):
            file.seek(position)
            spans.append(Span(position, start - position, file.read(start - position)))
            pool = norms if "norm" in name else matrices
            spans.append(Span(start, length, pool, number * PHASE % len(pool)))
            position = start + length
        file.seek(position)
        rest = file.read()
    return [*spans, Span(position, len(rest), rest)]


def tensor_places(path: Path) -> list[tuple[int, int]]:
    """First byte and length of each tensor, in the order in which torch.save numbered them."""
    places = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for entry in archive.infolist():
            folder, _, name = entry.filename.rpartition("/")
            if folder.endswith("/data"):
                file.seek(entry.header_offset)
                name_length, extra_length = struct.unpack("<HH", file.read(LOCAL_HEADER)[26:])
                places[int(name)] = (entry.header_offset + LOCAL_HEADER + name_length + extra_length, entry.file_size)
    return [places[number] for number in sorted(places)]
