"""What fine-tuning and answering will take, before they are started: memory, time, and the ways in which a model fits a card.

Reads nothing and writes nothing: arithmetic on a model's shape, the training settings and a card. Sizes are counted from the
architecture and agree with real checkpoints and adapters; what cannot be counted (the share of its peak that a card reaches,
the room that CUDA takes) is an assumption, named below, and whatever depends on it is printed as estimated.
"""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

from mi_llm.problem import Problem
from mi_llm.study import Finetune, Study

FUSED, HEAD_NORMS = ("glm", "glm4", "phi3"), ("qwen3", "gemma3_text")  # kinds of models whose layers differ from Llama's
FOUR_NORMS = ("glm4", "gemma2", "gemma3_text")
BYTES = {"float32": 4, "bfloat16": 2}
# NF4 with double quantization: 4 bits per weight, an 8-bit scale for 64 weights, a 32-bit scale for 256 scales (Dettmers et al.
# 2023, QLoRA, section 3).
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
ADAPTER_BYTES = 16  # a parameter in float32, as peft keeps it: weight, gradient, AdamW's two moments (Kingma and Ba 2015)
LOGIT_BYTES = 6  # float32, overwritten with their gradient; and once in bfloat16, as the model gives and takes them
WORKSPACE = 1.5e9  # assumption: bytes that CUDA, its libraries and gaps between blocks take
LABELED = 0.6  # assumption: the share of a record's tokens that the loss sees
ROUNDS = 8  # assumption: rounds of a dialog
OWN = 512  # assumption: tokens of a round's prompt that its dialog does not share: the instruction and the last client volley
SHARE = 0.4  # assumption: the share of its peak that a card reaches in fine-tuning
SHARE_FOUR_BIT = 0.25  # assumption: the same, where each weight is unpacked before it is used
# Dense BF16 with float32 accumulation, in 10^12 operations a second, from NVIDIA's data sheets and architecture white papers;
# the first name that stands in the card's counts.
PEAKS = {
    "B200": 2250, "GH200": 989, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H800": 989, "H20": 148,
    "A100": 312, "A800": 312, "A40": 150, "A30": 165, "A10": 125, "A10G": 70, "L40S": 362, "L40": 181, "L4": 121,
    "RTX 6000 Ada": 364, "RTX A6000": 155, "RTX A5000": 111, "RTX 5090": 210, "RTX 5080": 113, "RTX 4090": 165, "RTX 4080": 97,
    "RTX 4070": 58, "RTX 3090": 71, "RTX 3080": 60, "RTX 3060": 25,
}  # fmt: skip


class Shape(BaseModel):
    """The sizes of a decoder of Llama's kind.

    GLM keeps gate and up projection in one matrix; it and Qwen2 have biases on q, k and v; Qwen3 norms each head's queries and
    keys; GLM-4-0414 and later Gemmas have four norms per layer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    layers: PositiveInt
    hidden: PositiveInt
    heads: PositiveInt
    key_value_heads: PositiveInt
    intermediate: PositiveInt
    vocabulary: PositiveInt
    fused_gate_up: bool = False
    head_dim: PositiveInt = Field(default_factory=lambda sizes: sizes["hidden"] // sizes["heads"])
    qkv_bias: bool = False
    tied: bool = False
    head_norms: bool = False
    norms: PositiveInt = 2

    @property
    def query(self) -> int:
        """Width of a layer's queries."""
        return self.head_dim * self.heads

    @property
    def key_value(self) -> int:
        """Width of a layer's keys, and of its values."""
        return self.head_dim * self.key_value_heads

    @property
    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of each linear layer of one decoder layer."""
        up = [(self.hidden, 2 * self.intermediate)] if self.fused_gate_up else 2 * [(self.hidden, self.intermediate)]
        attention = [(self.hidden, width) for width in (self.query, self.key_value, self.key_value)]
        return [*attention, (self.query, self.hidden), *up, (self.intermediate, self.hidden)]

    @property
    def linear(self) -> int:
        """Weights of all decoder layers' linear layers, without biases."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def embedding(self) -> int:
        """Weights of the embedding; as many as of the output head."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All parameters, a tied output head counted once."""
        biases = self.layers * (self.query + 2 * self.key_value) if self.qkv_bias else 0
        norms = (self.norms * self.layers + 1) * self.hidden + self.head_norms * 2 * self.layers * self.head_dim
        return self.linear + self.embedding * (1 if self.tied else 2) + biases + norms

    def adapter(self, rank: int, joined_qkv: bool = False) -> int:
        """Parameters of LoRA matrices of this rank on every linear layer but the output head (Hu et al. 2021, section 4.1).

        `joined_qkv`: as many as there are where queries, keys and values are one matrix, which has one A in place of three.
        """
        fewer = 2 * self.hidden if joined_qkv else 0
        return self.layers * rank * (sum(inputs + outputs for inputs, outputs in self.linears) - fewer)


def shape_of(config: Any) -> Shape:
    """The shape that a checkpoint's configuration tells, as transformers loads it: with defaults for what config.json omits."""
    config, kind = config.get_text_config(), config.model_type
    try:
        return Shape(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            heads=config.num_attention_heads,
            key_value_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
            intermediate=config.intermediate_size,
            vocabulary=config.vocab_size,
            fused_gate_up=kind in FUSED,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            qkv_bias=getattr(config, "attention_bias", kind == "qwen2"),  # Qwen2 has them always, and no setting
            tied=config.tie_word_embeddings,
            head_norms=kind in HEAD_NORMS,
            norms=4 if kind in FOUR_NORMS else 2,
        )
    except AttributeError as error:
        raise Problem(
            f"config.json of a {kind}",
            f"no {error.name}",
            "the sizes of a decoder of Llama's kind",
            "use a model of such an architecture",
        ) from None


def weight_bytes(shape: Shape, precision: str, four_bit: bool = False) -> float:
    """Bytes of the frozen base. In 4 bits, embedding, output head, norms and biases stay as they are."""
    if not four_bit:
        return shape.parameters * BYTES[precision]
    return shape.linear * NF4_BYTES + (shape.parameters - shape.linear) * BYTES[precision]


def layer_bytes(shape: Shape, precision: str, rank: int, dropout: bool = False) -> float:
    """Bytes that one decoder layer keeps of one token for its backward pass.

    Counted from what is saved in transformers' Llama and GLM with our gradients (`engine/gradients.py`) and attention that does
    not keep its scores (FlashAttention, Dao et al. 2022): the inputs of the linear layers and the LoRA products, queries, keys,
    values and output of attention with one normalizer per head, three more tensors of the gated feed-forward part, and of the
    two norms what they normalized and by how much. A frozen matrix keeps nothing. With dropout each linear layer has an input
    of its own, and a mask that takes as much (on a GPU, less).
    """
    size, hidden, wide = BYTES[precision], shape.hidden, shape.intermediate
    inputs = 2 * sum(width for width, _ in shape.linears) if dropout else 2 * hidden + shape.query + wide
    inputs += rank * len(shape.linears)
    attention = size * 2 * (shape.query + shape.key_value) + 4 * shape.heads
    return size * inputs + attention + size * 3 * wide + 2 * (size * hidden + 4)


def flops_per_token(shape: Shape, rank: int, checkpointing: bool, context: float) -> float:
    """Floating-point operations of training on one token, in a record of `context` tokens on average.

    A weight takes 2 operations forward and 2 for the gradient of its input; a frozen one needs no gradient of its own, the
    adapter's does (2 more). Checkpointing computes the forward pass of all decoder layers but the last once more. Attention
    (scores and weighted sum, half of the record on average): 4 × width of the queries × context / 2 per layer, twice that
    backward (Kaplan et al. 2020, Table 1; Chowdhery et al. 2022, appendix B).
    """
    again = int(checkpointing) * (1 - 1 / shape.layers)
    attention = shape.layers * 4 * shape.query * context / 2
    frozen = shape.linear * (4 + 2 * again) + shape.embedding * 4
    return frozen + shape.adapter(rank) * (6 + 2 * again) + attention * (3 + again)


@dataclass(frozen=True)
class Load:
    """What is trained on at once in one process: tokens, those of them the loss sees, and a record's tokens on average."""

    tokens: int
    labeled: float
    context: float


def worst(options: Finetune) -> Load:
    """The largest load the options allow for: every record as long as the cut-off."""
    tokens = options.batch * options.cutoff
    return Load(tokens, LABELED * tokens, options.cutoff)


@dataclass(frozen=True)
class Memory:
    """Bytes on one card at the fullest moment, by what holds them."""

    weights: float
    adapter: float
    activations: float
    logits: float
    workspace: float
    keys_and_values: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return float(sum(vars(self).values()))


def memory(shape: Shape, options: Finetune, load: Load, shared_by: int = 1) -> Memory:
    """Memory of one process; `shared_by` processes may share the base out among them (FSDP, Zhao et al. 2023).

    With checkpointing, only each layer's input is kept, and one layer's activations at a time (Chen et al. 2016). Logits are
    there for labeled tokens only.
    """
    size = BYTES[options.precision]
    weights = weight_bytes(shape, options.precision, options.four_bit)
    if shared_by > 1:  # embedding, head and two layers are whole at a time: the one at work, the next on its way
        unshared = 2 * shape.linear / shape.layers + shape.embedding * (1 if shape.tied else 2)
        weights = weights / shared_by + unshared * size
    layer = layer_bytes(shape, options.precision, options.lora.rank, options.lora.dropout > 0)
    kept = shape.layers * size * shape.hidden + layer if options.checkpointing else shape.layers * layer
    return Memory(
        weights=weights,
        adapter=ADAPTER_BYTES * shape.adapter(options.lora.rank),
        activations=kept * load.tokens,
        logits=LOGIT_BYTES * shape.vocabulary * load.labeled,
        workspace=workspace(shape, options.precision, options.four_bit),
    )


def workspace(shape: Shape, precision: str, four_bit: bool) -> float:
    """Bytes that CUDA takes, and the largest matrix of a 4-bit base, unpacked while it is used."""
    return WORKSPACE + four_bit * BYTES[precision] * max(inputs * outputs for inputs, outputs in shape.linears)


@dataclass(frozen=True)
class Answering:
    """What is answered at once: dialogs, rounds per dialog; tokens of a dialog's trunk, of a round's own prompt, of a reply."""

    dialogs: int
    rounds: int
    trunk: int
    own: int
    reply: int


def keys_and_values(shape: Shape, precision: str, load: Answering) -> float:
    """Bytes of keys and values when every reply is as long as it may be, as `engine/branching.py` holds them.

    Of each dialog the row that it was read as, trunk and prompts, where it has a trunk; of each round room for its own prompt
    and its reply, which grows by `ROOM` tokens. The last token of a reply has no key.
    """
    from mi_llm.engine.branching import ROOM

    row = load.trunk + load.rounds * load.own if load.trunk else 0
    room = load.own + ROOM * max(1, math.ceil((load.reply - 1) / ROOM))
    return 2 * shape.layers * shape.key_value * BYTES[precision] * load.dialogs * (row + load.rounds * room)


def answering(shape: Shape, study: Study, four_bit: bool, load: Answering) -> Memory:
    """Memory of one process that answers with base and adapter; one dialog is read at a time, without a backward pass."""
    precision = study.respond.precision
    read = load.trunk + load.rounds * load.own
    return Memory(
        weights=weight_bytes(shape, precision, four_bit),
        adapter=BYTES["float32"] * shape.adapter(study.finetune.lora.rank),
        activations=BYTES[precision] * read * (2 * shape.hidden + 3 * shape.intermediate),
        logits=LOGIT_BYTES * shape.vocabulary * load.dialogs * load.rounds,
        workspace=workspace(shape, precision, four_bit),
        keys_and_values=keys_and_values(shape, precision, load),
    )


def after_tuning(study: Study, model: str, shape: Shape, four_bit: bool) -> dict[str, Memory]:
    """Memory of the stages that use a model once it is tuned, by stage; those that ask a server or people take none here.

    Prompts are taken to be as long as the longest training record. `respond` and `prefer` answer whole dialogs together, a
    client of `simulate` talks for himself. `prefer` also trains, on `prefer.batch` pairs in which the loss sees every token.
    """
    options, cutoff = study.respond, study.finetune.cutoff
    if options.engine == "server":
        return {}
    reply = options.max_new_tokens

    def together(rounds: int) -> Memory:
        return answering(shape, study, four_bit, Answering(max(1, options.batch // rounds), rounds, cutoff, OWN, reply))

    memories = {"respond": together(ROUNDS)}
    if study.simulate.client != "person":
        talks = Answering(min(options.batch, study.simulate.dialogs), 1, 0, cutoff, reply)
        memories["simulate"] = answering(shape, study, four_bit, talks)
    if model in study.prefer.models:
        tokens = 2 * study.prefer.batch * cutoff
        training = memory(shape, study.finetune, Load(tokens, tokens, cutoff))
        memories["prefer"] = max(together(ROUNDS * study.prefer.candidates), training, key=lambda need: need.total)
    return memories


@dataclass(frozen=True)
class Card:
    """`count` equal cards (or processors): memory of each in bytes, peak in operations per second where it is known."""

    name: str
    memory: float
    peak: float | None
    count: int = 1


def peak_of(name: str) -> float | None:
    """A card's peak in operations per second, by its name; None for a card that is not in the list."""
    if "Laptop" in name:  # they run at a fraction of the desktop card's power
        return None
    return next((teraflops * 1e12 for known, teraflops in PEAKS.items() if re.search(rf"\b{known}\b", name)), None)


@dataclass(frozen=True)
class Plan:
    """One way to fine-tune, with what it takes; `flops` are those of one token.

    `after` are the bytes of the stage after it that takes most.
    """

    checkpointing: bool
    four_bit: bool
    processes: int
    shared: bool
    memory: Memory
    after: float
    flops: float
    fits: bool

    @property
    def name(self) -> str:
        """The way in words."""
        words = ["4-bit base"] if self.four_bit else []
        words += ["checkpointing"] if self.checkpointing else []
        words = words or ["plain"]
        if self.processes > 1:
            words.append(f"{self.processes} processes" + (" that share the base" if self.shared else ""))
        return ", ".join(words)

    @property
    def most(self) -> float:
        """Bytes of the stage that takes most."""
        return max(self.memory.total, self.after)

    @property
    def share(self) -> float:
        """The assumed share of the peak."""
        return SHARE_FOUR_BIT if self.four_bit else SHARE

    def hours(self, tokens: float, peak: float) -> float:
        """Estimated hours for `tokens` tokens on cards with a peak of `peak` operations per second."""
        return tokens * self.flops / (peak * self.share * self.processes) / 3600


def plan(
    shape: Shape,
    options: Finetune,
    load: Load,
    card_memory: float,
    *,
    processes: int = 1,
    shared: bool = False,
    after: float = 0.0,
) -> Plan:
    """What fine-tuning takes with these options on cards of `card_memory` bytes; the stages after it take `after` bytes."""
    need = memory(shape, options, load, processes if shared else 1)
    return Plan(
        checkpointing=options.checkpointing,
        four_bit=options.four_bit,
        processes=processes,
        shared=shared,
        memory=need,
        after=after,
        flops=flops_per_token(shape, options.lora.rank, options.checkpointing, load.context),
        fits=max(need.total, after) <= card_memory,
    )


def plans(
    shape: Shape,
    options: Finetune,
    gpu_memory: float,
    gpus: int,
    load: Load | None = None,
    *,
    after: Callable[[bool], float] = lambda four_bit: 0.0,
) -> list[Plan]:
    """All ways to fine-tune on `gpus` cards of `gpu_memory` bytes, the best first; by default under the worst load.

    `after` gives the bytes that the stages after it take at most, with a 4-bit base or without.
    What fits comes first; then BF16, which the paper used, before 4 bits; then the faster; then the simpler.
    """
    layouts = [(1, False)] if gpus == 1 else [(1, False), (gpus, False), (gpus, True)]
    ways = [
        plan(
            shape,
            options.model_copy(update={"checkpointing": checkpointing, "four_bit": four_bit}),
            load or worst(options),
            gpu_memory,
            processes=processes,
            shared=shared,
            after=after(four_bit),
        )
        for four_bit in (False, True)
        for checkpointing in (False, True)
        for processes, shared in layouts
        if not (four_bit and shared)
    ]
    return sorted(ways, key=lambda way: (not way.fits, way.four_bit, way.flops / way.processes, way.shared))


def here() -> Card:
    """The cards that PyTorch sees, else this processor, whose peak is measured with products of two float32 matrices."""
    import psutil
    import torch

    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        return Card(card.name, card.total_memory, peak_of(card.name), torch.cuda.device_count())
    matrix, products, began = torch.ones(768, 768), 0, time.perf_counter()
    while time.perf_counter() - began < 0.2:
        matrix @ matrix
        products += 1
    peak = products * 2 * 768**3 / (time.perf_counter() - began)
    return Card(f"this processor ({torch.get_num_threads()} threads)", psutil.virtual_memory().total, peak)


def duration(hours: float) -> str:
    """Hours in words: minutes below two hours."""
    return f"{hours:.1f} h" if hours >= 2 else f"{max(1, math.ceil(hours * 60))} min"


def gib(size: float) -> str:
    """Bytes as GiB (2^30), in which cards are sold."""
    return f"{size / 2**30:.1f} GiB"


def forecast(
    model: str, shape: Shape, options: Finetune, card: Card, load: Load, *, records: int, tokens: int, processes: int = 1
) -> str:
    """What a run will take, for `finetune --dry-run`: steps, tokens, memory and time, the last two estimated.

    `tokens` are those of all records, once; `load` is the largest that will be there at once. Several processes share the base
    out where it does not fit otherwise, as the stage has them do.
    """
    way = plan(shape, options, load, card.memory, processes=processes)
    if processes > 1 and not way.fits and not options.four_bit:
        way = plan(shape, options, load, card.memory, processes=processes, shared=True)
    per_step = options.batch * options.accumulation
    parts = ", ".join(f"{name} {size / 2**30:.1f}" for name, size in vars(way.memory).items() if size)
    lines = [
        f"finetune {model}: {records} records, {options.epochs} epochs ({way.name})",
        f"  steps     {math.ceil(records * options.epochs / per_step)} of {per_step} records (for at most {per_step} processes)",
        f"  tokens    {tokens * options.epochs}",
        f"  memory    {gib(way.memory.total)} estimated: {parts}",
    ]
    if card.peak is None:
        lines.append(f"  time      unknown: {card.name} is not in the list of cards")
    else:
        hours, peak = way.hours(tokens * options.epochs, card.peak), card.peak / 1e12
        lines.append(f"  time      {duration(hours)} estimated, at {way.share:.0%} of the {peak:.3g} TFLOP/s of {card.name}")
    lines.append(f"  fits      {'yes' if way.fits else 'no'}: {card.name} has {gib(card.memory)}")
    if not way.fits:
        lines.append(f"            {instead(plans(shape, options, card.memory, card.count, load))}")
    return "\n".join(lines)


def instead(ways: Sequence[Plan]) -> str:
    """The first way, the best, if it fits; else the way that takes least memory; in words."""
    if ways[0].fits:
        return f"{ways[0].name}: {gib(ways[0].most)} would fit"
    least = min(ways, key=lambda way: way.most)
    return f"nothing fits: the smallest is {least.name}, {gib(least.most)}"
