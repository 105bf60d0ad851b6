"""Bring two of the paper's models, published with code of their own, into layouts that plain transformers classes load.

Reads a checkpoint folder as it was published: Baichuan2-7B, which becomes a Llama, or ChatGLM (GLM-4-9B), which becomes a Glm.
Writes config, weights, generation settings, a fast tokenizer, and last `conversion.json`, which says what was done to what.
One shard is in memory at a time, and the folder appears whole or not at all.
"""

import base64
import binascii
import os
import platform
import re
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import tiktoken
import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from torch.nn.functional import normalize
from tqdm import tqdm
from transformers import GlmConfig, LlamaConfig, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from mi_llm import __version__, storage
from mi_llm.engine.template import BAICHUAN2, GLM4, ChatFormat
from mi_llm.problem import Problem

AGAIN = "download the checkpoint again (same model, same revision)"
RECORD = "conversion.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
BESIDE = ("config.json", "generation_config.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
SAMPLING = ("do_sample", "max_length", "max_new_tokens", "repetition_penalty", "temperature", "top_k", "top_p")
COMPUTED_BY = ("safetensors", "sentencepiece", "tiktoken", "tokenizers", "torch", "transformers")
ROWS_AT_A_TIME = 4096  # of the output head, whose float32 copy would else be the largest thing in memory

# The pattern that cuts GLM-4's text before its BPE (tokenization_chatglm.py beside the published weights).
GLM4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Texts on which a converted tokenizer must agree with the original one before anything is written.
PROBES = (
    "", "你好，我想戒烟。", " leading", "two  spaces   three ", "line\nbreak\r\n\ttab\n\n", "2024年 12,345.67%",
    "naïve café 😀👍🏽", "龘𠮷", "<0x41> a_b", "I'm sure we'll see.\ndef f(x):\n    return x ** 2", "…………！！", "　全角　ＡＢＣ",
)  # fmt: skip


class Published(BaseModel):
    """A file beside published weights: what it must say; the rest of it is not looked at."""

    model_config = ConfigDict(extra="ignore", frozen=True, protected_namespaces=())


class BaichuanConfig(Published):
    """config.json of Baichuan2-7B; a value that the Llama layout cannot express is refused."""

    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: PositiveInt
    num_attention_heads: PositiveInt
    vocab_size: PositiveInt
    rms_norm_eps: float
    model_max_length: PositiveInt
    initializer_range: float = 0.02
    hidden_act: Literal["silu"]
    tie_word_embeddings: Literal[False] = False
    bos_token_id: int = 1
    pad_token_id: int = 0

    @model_validator(mode="after")
    def heads_divide_the_width(self) -> Self:
        """Rotary positions turn pairs of numbers within a head."""
        if self.hidden_size % (2 * self.num_attention_heads):
            raise ValueError("hidden_size must be a multiple of twice num_attention_heads")
        return self


class ChatglmConfig(Published):
    """config.json of GLM-4-9B; a value that the Glm layout cannot express is refused."""

    padded_vocab_size: PositiveInt
    hidden_size: PositiveInt
    ffn_hidden_size: PositiveInt
    num_layers: PositiveInt
    num_attention_heads: PositiveInt
    kv_channels: PositiveInt
    multi_query_group_num: PositiveInt
    seq_length: PositiveInt
    layernorm_epsilon: float
    rope_ratio: float = 1.0
    add_qkv_bias: bool
    multi_query_attention: Literal[True]
    add_bias_linear: Literal[False] = False
    original_rope: Literal[True] = True
    rmsnorm: Literal[True] = True
    post_layer_norm: Literal[True] = True
    apply_residual_connection_post_layernorm: Literal[False] = False
    tie_word_embeddings: Literal[False] = False
    pad_token_id: int


class Mark(Published):
    """A special token, as tokenizer_config.json describes it."""

    content: str
    lstrip: bool = False
    normalized: bool = False
    rstrip: bool = False
    single_word: bool = False
    special: bool = True


class TokenizerConfig(Published):
    """tokenizer_config.json, and special_tokens_map.json for what it leaves out."""

    bos_token: str | Mark | None = None
    eos_token: str | Mark | None = None
    unk_token: str | Mark | None = None
    pad_token: str | Mark | None = None
    add_bos_token: bool = True  # as the published tokenizer's code assumes where the file is silent
    add_eos_token: bool = False
    added_tokens_decoder: dict[int, Mark] = {}
    padding_side: Literal["left", "right"] = "left"
    model_max_length: int | float | None = None
    chat_template: Any = None

    @property
    def named(self) -> dict[str, str]:
        """The special tokens that have a role, by role."""
        roles = {role: getattr(self, role) for role in ("bos_token", "eos_token", "unk_token", "pad_token")}
        return {role: mark.content if isinstance(mark, Mark) else mark for role, mark in roles.items() if mark is not None}


class Index(Published):
    """The index of a sharded checkpoint: tensor name → file."""

    weight_map: dict[str, str]


@dataclass(frozen=True)
class Fate:
    """What becomes of one tensor: the shape it must have, the tensors its rows go to (name → rows), and whether each row is
    scaled to length one.
    """

    shape: tuple[int, ...]
    becomes: dict[str, int]
    unit_rows: bool = False


@dataclass(frozen=True)
class Plan:
    """How one checkpoint is converted; `dropped` matches the names of tensors that the new layout computes itself.

    `agreement` says on how many texts old and new tokenizer were compared, and on how many vocabulary entries they differ.
    """

    fates: dict[str, Fate]
    dropped: re.Pattern[str]
    config: PreTrainedConfig
    tokenizer: PreTrainedTokenizerFast
    agreement: dict[str, int]


@dataclass(frozen=True)
class Shard:
    """One file of weights: which of its tensors are kept and which dropped, sorted by name."""

    path: Path
    kept: list[str]
    dropped: list[str]


def convertible(source: Path) -> bool:
    """Whether a checkpoint has one of the two layouts that need converting; native ones do not."""
    return model_type(source) in PLANS


def convert(source: Path, target: Path) -> dict[str, Any]:
    """Convert the checkpoint in `source` into the folder `target` and return the record that `conversion.json` holds.

    Raises `Problem`, and leaves `target` as it was, if a file or tensor is missing, surplus, damaged or not as the
    configuration says.
    """
    kind = model_type(source)
    if kind not in PLANS:
        raise Problem(
            f"{source / 'config.json'}: model_type", repr(kind), " or ".join(PLANS), "native checkpoints are used as they are"
        )
    if target.exists() and not (target / RECORD).exists() and any(target.iterdir()):
        raise Problem(
            str(target), "a folder with other files in it", "a new folder, or an earlier conversion", "name another folder"
        )
    plan = PLANS[kind](source)
    files = shard_files(source)
    shards, dtypes = inspect(files, plan)
    with whole_folder(target) as part:
        write_weights(shards, plan, part, f"convert {source.name} to {plan.config.model_type}")
        plan.config.dtype = dtypes.most_common(1)[0][0]
        plan.config.save_pretrained(part)
        plan.tokenizer.save_pretrained(part)
        storage.write_json(part / "generation_config.json", generation_settings(source, plan.config))
        beside = [source / name for name in (*BESIDE, *(f"{name}.index.json" for name in WEIGHTS)) if (source / name).exists()]
        record = {
            "from": kind,
            "to": plan.config.model_type,
            "source": {path.name: storage.sha256(path) for path in sorted({*beside, *files})},
            "tensors": account(shards, plan),
            "dtypes": {str(dtype).removeprefix("torch."): count for dtype, count in sorted(dtypes.items(), key=str)},
            "tokenizer": {"entries": len(plan.tokenizer), **plan.agreement},
            "eos_token_id": plan.config.eos_token_id,
            "versions": {
                "python": ".".join(platform.python_version_tuple()[:2]),
                "mi_llm": __version__,
                **{package: version(package) for package in COMPUTED_BY},
            },
        }
        storage.write_json(part / RECORD, record)
    return record


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A temporary neighbor of `target` to write into; on success it takes the place of `target`, else it is removed."""
    part = target.parent / f".{target.name}.part"
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    try:
        part.mkdir(parents=True)
        yield part
        for path in sorted(part.rglob("*")):
            if path.is_file():
                with path.open("rb") as file:
                    os.fsync(file.fileno())
        shutil.rmtree(target, ignore_errors=True)
        part.replace(target)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):
            raise Problem(
                str(target), f"could not be written ({error})", "a writable folder with space for a copy of the weights",
                "free some space or fix the permissions, then run the same command again",
            ) from error  # fmt: skip
        raise


def account(shards: Iterable[Shard], plan: Plan) -> dict[str, Any]:
    """How many tensors were read and written, and what was done to them."""
    fates = plan.fates
    dropped = sorted(name for shard in shards for name in shard.dropped)
    return {
        "read": len(fates) + len(dropped),
        "written": sum(len(fate.becomes) for fate in fates.values()),
        "unchanged": sum(list(fate.becomes) == [name] and not fate.unit_rows for name, fate in fates.items()),
        "renamed": sum(len(fate.becomes) == 1 and name not in fate.becomes for name, fate in fates.items()),
        "split": sum(len(fate.becomes) > 1 for fate in fates.values()),
        "normalised": sum(fate.unit_rows for fate in fates.values()),
        "dropped": dropped,
    }


def generation_settings(source: Path, config: PreTrainedConfig) -> dict[str, Any]:
    """The published sampling settings, with the token ids of the new layout."""
    path = source / "generation_config.json"
    published = read_object(path) if path.exists() else {}
    ids = {"bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id, "pad_token_id": config.pad_token_id}
    return {**{key: published[key] for key in SAMPLING if key in published}, **{k: v for k, v in ids.items() if v is not None}}


# Reading what was published


def required(path: Path) -> Path:
    """A file that a checkpoint must have."""
    if not path.is_file():
        raise Problem(str(path), "no such file", "a file of the published checkpoint", AGAIN)
    return path


def model_type(source: Path) -> str:
    """The model type that a checkpoint's config.json names."""
    return str(read_object(source / "config.json").get("model_type"))


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object."""
    content = storage.read_json(required(path))
    if not isinstance(content, dict):
        raise Problem(str(path), f"a JSON {type(content).__name__}", "a JSON object", AGAIN)
    return content


Kind = TypeVar("Kind", bound=Published)


def understood(kind: type[Kind], content: dict[str, Any], path: Path) -> Kind:
    """What a JSON file says, as a typed object; values that cannot be carried over are named."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ": ".join([str(path), *(str(part) for part in fault["loc"])])
        found = "missing" if fault["type"] == "missing" else f"{fault['input']!r}"[:120]
        raise Problem(where, found, fault["msg"], "use the paper's models, as they were published") from None


def tokenizer_config(source: Path) -> TokenizerConfig:
    """The tokenizer's settings."""
    path, beside = source / "tokenizer_config.json", source / "special_tokens_map.json"
    return understood(TokenizerConfig, {**(read_object(beside) if beside.exists() else {}), **read_object(path)}, path)


def shard_files(source: Path) -> list[Path]:
    """The files of weights: those that an index names, or a single one; safetensors if there are both kinds."""
    for name in WEIGHTS:
        index = source / f"{name}.index.json"
        if index.exists():
            named = understood(Index, read_object(index), index).weight_map.values()
            return [required(source / file) for file in sorted(set(named))]
        if (source / name).exists():
            return [source / name]
    raise Problem(str(source), "no weights", f"{' or '.join(WEIGHTS)}, or an index of shards beside them", AGAIN)


def load_shard(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one file, mapped from disk: memory is used as they are read, and freed when they are deleted."""
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except Exception as error:  # a damaged pickle can raise anything
        raise Problem(str(path), f"cannot be read ({str(error).splitlines()[0][:120] if str(error) else type(error).__name__})",
                      "a complete file of tensors and nothing else", AGAIN) from error  # fmt: skip
    if not isinstance(content, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in content.values()):
        raise Problem(str(path), "something other than named tensors", "a file of tensors and nothing else", AGAIN)
    return content


def inspect(files: Iterable[Path], plan: Plan) -> tuple[list[Shard], Counter[torch.dtype]]:
    """Compare all files with the plan before anything is written; returns the shards and how many tensors have which dtype."""
    shards: list[Shard] = []
    dtypes: Counter[torch.dtype] = Counter()
    file_by_tensor: dict[str, Path] = {}
    for path in files:
        shard = Shard(path, [], [])
        for name, tensor in sorted(load_shard(path).items()):
            if plan.dropped.fullmatch(name):
                shard.dropped.append(name)
                continue
            if name not in plan.fates:
                raise Problem(f"{path}: {name}", "a surplus tensor", "the tensors of the published architecture only", AGAIN)
            if name in file_by_tensor:
                raise Problem(f"{path}: {name}", f"also in {file_by_tensor[name].name}", "each tensor once", AGAIN)
            shape = plan.fates[name].shape
            if tuple(tensor.shape) != shape:
                raise Problem(f"{path}: {name}", f"shape {list(tensor.shape)}", f"{list(shape)}, by config.json", AGAIN)
            if not tensor.dtype.is_floating_point or tensor.element_size() == 1:
                raise Problem(f"{path}: {name}", str(tensor.dtype), "unquantized weights", "use the unquantized checkpoint")
            file_by_tensor[name] = path
            dtypes[tensor.dtype] += 1
            shard.kept.append(name)
        shards.append(shard)
    missing = [name for name in plan.fates if name not in file_by_tensor]
    if missing:
        looked = (
            f"not in {', '.join(shard.path.name for shard in shards)} (of {len(plan.fates)} tensors, {len(missing)} are missing)"
        )
        raise Problem(f"{shards[0].path.parent}: {missing[0]}", looked, "every tensor of the architecture", AGAIN)
    return shards, dtypes


# Writing the weights


def unit_rows(weight: torch.Tensor) -> torch.Tensor:
    """Each row scaled to length one, in float32 and rounded once: what Baichuan2's NormHead does before each product."""
    scaled = torch.empty_like(weight)
    for rows, out in zip(weight.split(ROWS_AT_A_TIME), scaled.split(ROWS_AT_A_TIME), strict=True):
        out.copy_(normalize(rows.float(), eps=1e-12))
    return scaled


def converted(shard: Shard, plan: Plan) -> dict[str, torch.Tensor]:
    """The tensors of one shard in the new layout; all but normalized ones are still views of the file."""
    source, tensors = load_shard(shard.path), {}
    for name in shard.kept:
        fate = plan.fates[name]
        weight = unit_rows(source[name]) if fate.unit_rows else source[name]
        parts = weight.split(list(fate.becomes.values()))
        tensors.update({new: part.contiguous() for new, part in zip(fate.becomes, parts, strict=True)})
    return tensors


def write_weights(shards: list[Shard], plan: Plan, folder: Path, title: str) -> None:
    """Write one safetensors file for each shard that holds anything, and an index if there are several."""
    full = [shard for shard in shards if shard.kept]
    weight_map: dict[str, str] = {}
    size = 0
    with tqdm(total=sum(shard.path.stat().st_size for shard in full), desc=title, unit="B", unit_scale=True) as bar:
        for number, shard in enumerate(full, 1):
            file = f"model-{number:05}-of-{len(full):05}.safetensors" if len(full) > 1 else "model.safetensors"
            tensors = converted(shard, plan)
            save_file(tensors, folder / file, metadata={"format": "pt"})
            (folder / file).chmod(0o644)
            size += sum(tensor.nbytes for tensor in tensors.values())
            weight_map.update(dict.fromkeys(tensors, file))
            del tensors  # or two shards would be in memory
            bar.update(shard.path.stat().st_size)
    if len(full) > 1:
        storage.write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": weight_map})


# Baichuan2 → Llama


def kept(name: str, *shape: int) -> Fate:
    """A tensor that goes on whole, under `name`."""
    return Fate(shape, {name: shape[0]})


def baichuan2(source: Path) -> Plan:
    """Baichuan2-7B as a Llama: rotary positions, RMSNorm and SwiGLU are the same; `W_pack` is q, k and v in one matrix, and the
    output head is normalized again at each step, which can be done once.
    """
    path = source / "config.json"
    content = read_object(path)
    refuse_other_baichuans(content, path)
    config = understood(BaichuanConfig, content, path)
    width, inner = config.hidden_size, config.intermediate_size
    fates = {
        "model.embed_tokens.weight": kept("model.embed_tokens.weight", config.vocab_size, width),
        "model.norm.weight": kept("model.norm.weight", width),
        "lm_head.weight": Fate((config.vocab_size, width), {"lm_head.weight": config.vocab_size}, unit_rows=True),
    }
    for number in range(config.num_hidden_layers):
        layer = f"model.layers.{number}"
        qkv = {f"{layer}.self_attn.{part}_proj.weight": width for part in "qkv"}
        fates[f"{layer}.self_attn.W_pack.weight"] = Fate((3 * width, width), qkv)
        for name, *shape in (
            ("self_attn.o_proj", width, width),
            ("mlp.gate_proj", inner, width),
            ("mlp.up_proj", inner, width),
            ("mlp.down_proj", width, inner),
            ("input_layernorm", width),
            ("post_attention_layernorm", width),
        ):
            fates[f"{layer}.{name}.weight"] = kept(f"{layer}.{name}.weight", *shape)
    tokenizer, agreement = sentencepiece_tokenizer(required(source / "tokenizer.model"), tokenizer_config(source))
    native = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=config.vocab_size,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        rms_norm_eps=config.rms_norm_eps,
        max_position_embeddings=config.model_max_length,
        initializer_range=config.initializer_range,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=config.bos_token_id,
        pad_token_id=config.pad_token_id,
        eos_token_id=stop_ids(tokenizer, BAICHUAN2, ("<reserved_107>",), config.vocab_size, source),
    )
    return Plan(fates, re.compile(r".*rotary_emb\.inv_freq"), native, tokenizer, agreement)


def refuse_other_baichuans(content: dict[str, Any], path: Path) -> None:
    """Models of the same type that are not of the same architecture."""
    size = {content.get("hidden_size"), content.get("num_hidden_layers")}
    if size & {5120, 40} or any("alibi" in f"{key} {value}".lower() for key, value in content.items() if value):
        raise Problem(str(path), "a Baichuan with ALiBi positions, as the 13B models have", "rotary positions: Baichuan2-7B",
                      "use Baichuan2-7B-Chat, the paper's model")  # fmt: skip
    if content.get("vocab_size") == 64000:
        raise Problem(f"{path}: vocab_size", "64000: the first Baichuan, whose output head is not normalized", "Baichuan2-7B",
                      "use Baichuan2-7B-Chat, the paper's model")  # fmt: skip


# ChatGLM → Glm


def chatglm(source: Path) -> Plan:
    """GLM-4-9B as a Glm: the same network under other names, with q, k and v in matrices of their own."""
    path = source / "config.json"
    config = understood(ChatglmConfig, read_object(path), path)
    width, inner = config.hidden_size, config.ffn_hidden_size
    queries, keys = config.num_attention_heads * config.kv_channels, config.multi_query_group_num * config.kv_channels
    fates = {
        "transformer.embedding.word_embeddings.weight": kept("model.embed_tokens.weight", config.padded_vocab_size, width),
        "transformer.encoder.final_layernorm.weight": kept("model.norm.weight", width),
        "transformer.output_layer.weight": kept("lm_head.weight", config.padded_vocab_size, width),
    }
    for number in range(config.num_layers):
        old, new = f"transformer.encoder.layers.{number}", f"model.layers.{number}"
        rows = {"q": queries, "k": keys, "v": keys}
        for kind, *columns in (("weight", width), ("bias",)) if config.add_qkv_bias else (("weight", width),):
            qkv = {f"{new}.self_attn.{part}_proj.{kind}": count for part, count in rows.items()}
            fates[f"{old}.self_attention.query_key_value.{kind}"] = Fate((queries + 2 * keys, *columns), qkv)
        for name, native_name, *shape in (
            ("self_attention.dense", "self_attn.o_proj", width, queries),
            ("mlp.dense_h_to_4h", "mlp.gate_up_proj", 2 * inner, width),  # in both the gate comes first
            ("mlp.dense_4h_to_h", "mlp.down_proj", width, inner),
            ("input_layernorm", "input_layernorm", width),
            ("post_attention_layernorm", "post_attention_layernorm", width),
        ):
            fates[f"{old}.{name}.weight"] = kept(f"{new}.{native_name}.weight", *shape)
    tokenizer, agreement = tiktoken_tokenizer(required(source / "tokenizer.model"), tokenizer_config(source))
    native = GlmConfig(
        architectures=["GlmForCausalLM"],
        vocab_size=config.padded_vocab_size,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.multi_query_group_num,
        head_dim=config.kv_channels,
        attention_bias=config.add_qkv_bias,
        rms_norm_eps=config.layernorm_epsilon,
        max_position_embeddings=config.seq_length,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0 * config.rope_ratio, "partial_rotary_factor": 0.5},
        pad_token_id=config.pad_token_id,
        eos_token_id=stop_ids(tokenizer, GLM4, ("[gMASK]", "<sop>", "<|assistant|>"), config.padded_vocab_size, source),
    )
    return Plan(fates, re.compile(r"transformer\.rotary_pos_emb\.inv_freq"), native, tokenizer, agreement)


PLANS: dict[str, Callable[[Path], Plan]] = {"baichuan": baichuan2, "chatglm": chatglm}


# Tokenizers


def stop_ids(tokenizer: PreTrainedTokenizerFast, form: ChatFormat, marks: Collection[str], rows: int, source: Path) -> list[int]:
    """Ids of the tokens that end a reply; checks that the tokenizer has all marks of the chat format, and no id beyond the
    `rows` of the embedding.
    """
    vocabulary = tokenizer.get_vocab()
    for token in (*form.stops, *marks):
        if token not in vocabulary:
            raise Problem(
                str(source / "tokenizer.model"), f"no token {token}", f"the tokens of the {form.name} chat format", AGAIN
            )
    if max(vocabulary.values()) >= rows:
        token = max(vocabulary, key=vocabulary.__getitem__)
        raise Problem(
            str(source / "tokenizer_config.json"), f"token {token} has id {vocabulary[token]}", f"an id below {rows}", AGAIN
        )
    return form.stop_ids(tokenizer)


def merge_rules(pieces: Iterable[str], known: Collection[str]) -> list[tuple[str, str]]:
    """The merges of a BPE whose file lists pieces only, in order of priority: each way to join a piece from two known pieces."""
    halves = ((piece[:cut], piece[cut:]) for piece in pieces for cut in range(1, len(piece)))
    return [(left, right) for left, right in halves if left in known and right in known]


def agreement_of(
    tokenizer: Tokenizer,
    encode: Callable[[str], list[int]],
    decode: Callable[[list[int]], str],
    pieces: Collection[str],
    path: Path,
) -> dict[str, int]:
    """Compare a converted tokenizer with the library the original was made for: the probes must agree, there and back."""
    for probe in PROBES:
        ids = tokenizer.encode(probe, add_special_tokens=False).ids
        if ids != encode(probe) or tokenizer.decode(ids) != decode(ids):
            raise Problem(
                str(path), f"converted, it encodes {probe!r} as {ids}", f"{encode(probe)}, as the original does",
                "report it: this tokenizer has a setting that the converter does not know",
            )  # fmt: skip
    different = sum(tokenizer.encode(piece, add_special_tokens=False).ids != encode(piece) for piece in pieces)
    return {"probes": len(PROBES), "entries_compared": len(pieces), "entries_different": different}


def fast(tokenizer: Tokenizer, config: TokenizerConfig, **settings: Any) -> PreTrainedTokenizerFast:
    """The tokenizer as transformers wraps it, with the published roles and settings."""
    if config.model_max_length is not None:
        settings["model_max_length"] = config.model_max_length
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        padding_side=config.padding_side,
        **config.named,
        **settings,
    )
    wrapped.chat_template = config.chat_template
    return wrapped


def sentencepiece_tokenizer(path: Path, config: TokenizerConfig) -> tuple[PreTrainedTokenizerFast, dict[str, int]]:
    """Baichuan2's tokenizer: a SentencePiece BPE with byte fallback.

    Text is cut at special tokens first, and each stretch is encoded for itself. What the model file says of spaces, a leading
    space and normalization is kept. User-defined symbols are matched as SentencePiece does: longest first, before any merge.

    Baichuan2's model neither normalizes nor adds a leading space (its technical report, section 2.2). For models that do, two
    things differ from SentencePiece: combining marks may be normalized together with the character before them, and a text that
    is one user-defined symbol and nothing else gets no leading space.
    """
    proto: Any = sentencepiece_model_pb2
    try:
        original = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError):
        raise Problem(str(path), "not a SentencePiece model", "the tokenizer.model of Baichuan2", AGAIN) from None
    model = proto.ModelProto.FromString(path.read_bytes())
    training, spaces, kinds = model.trainer_spec, model.normalizer_spec, proto.ModelProto.SentencePiece
    by_type = {kind: {piece.piece: piece.score for piece in model.pieces if piece.type == kind} for kind in range(1, 7)}
    usual = training.model_type == proto.TrainerSpec.BPE and spaces.escape_whitespaces and not training.treat_whitespace_as_suffix
    if not usual or by_type[kinds.UNUSED]:
        raise Problem(str(path), "a SentencePiece model of another kind", "a BPE with spaces in front of words", AGAIN)
    normal, user_defined = by_type[kinds.NORMAL], by_type[kinds.USER_DEFINED]
    order = sorted(normal, key=lambda piece: -normal[piece])  # stable: equal scores keep the order of the file

    tokenizer = Tokenizer(
        BPE(
            vocab={piece.piece: index for index, piece in enumerate(model.pieces)},
            merges=merge_rules(order, normal),
            unk_token=training.unk_piece,
            fuse_unk=True,
            byte_fallback=training.byte_fallback,
        )
    )
    steps: list[Any] = []
    if spaces.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spaces.precompiled_charsmap))
    if spaces.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spaces.add_dummy_prefix:
        # The library puts the symbols themselves through these steps before it looks for them: they must stay as they are.
        symbols = "".join(rf"|{re.escape(symbol)}\z" for symbol in user_defined)
        steps.append(normalizers.Replace(Regex(rf"\A(?!\z{symbols})"), "▁"))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    leading = spaces.add_dummy_prefix or spaces.remove_extra_whitespaces
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(content=" ", left=1, right=0)] if leading else []),
        ]
    )
    special = {**by_type[kinds.CONTROL], **by_type[kinds.UNKNOWN], **dict.fromkeys(config.named.values())}
    special.update(dict.fromkeys(mark for mark in ("<reserved_106>", "<reserved_107>") if mark in normal | user_defined))
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in special])
    tokenizer.add_tokens([AddedToken(mark, normalized=True) for mark in user_defined if mark not in special])

    texts = [piece.replace("▁", " ") for piece in normal if piece not in special]
    agreement = agreement_of(tokenizer, original.encode, original.decode, texts, path)
    return fast(tokenizer, config, add_bos_token=config.add_bos_token, add_eos_token=config.add_eos_token), agreement


def tiktoken_tokenizer(path: Path, config: TokenizerConfig) -> tuple[PreTrainedTokenizerFast, dict[str, int]]:
    """GLM-4's tokenizer: a byte BPE (a file with a base64 token and its rank per line), special tokens numbered after it."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise Problem(
                f"{path}, line {number}", repr(line[:60])[1:], "a token in base64 and its rank: GLM-4's tiktoken file", AGAIN
            ) from None
    letter = bytes_to_unicode()
    vocabulary = {
        "".join(letter[byte] for byte in token): rank for token, rank in sorted(ranks.items(), key=lambda item: item[1])
    }
    if not all(bytes([byte]) in ranks for byte in range(256)):
        raise Problem(str(path), "not every byte has a rank", "GLM-4's tiktoken file", AGAIN)

    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merge_rules(vocabulary, vocabulary), ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(GLM4_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    for number, mark in sorted(config.added_tokens_decoder.items()):
        tokenizer.add_tokens([AddedToken(**mark.model_dump())])
        if tokenizer.token_to_id(mark.content) != number:
            raise Problem(
                str(path.parent / "tokenizer_config.json"), f"{mark.content} has id {number}",
                f"{tokenizer.token_to_id(mark.content)}, the next free one", AGAIN,
            )  # fmt: skip
    numbers = tokenizer.get_vocab()
    opening = [(mark, numbers[mark]) for mark in ("[gMASK]", "<sop>") if mark in numbers]
    prefix = "".join(f"{mark}:0 " for mark, _ in opening)
    template = processors.TemplateProcessing(single=f"{prefix}$A:0", pair=f"{prefix}$A:0 $B:1", special_tokens=opening)
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])

    original = tiktoken.Encoding("GLM-4", pat_str=GLM4_PATTERN, mergeable_ranks=ranks, special_tokens={})
    marks = {mark.content for mark in config.added_tokens_decoder.values()}
    texts = [text for token in ranks if (text := token.decode(errors="replace")).encode() == token and text not in marks]
    return fast(tokenizer, config), agreement_of(tokenizer, original.encode_ordinary, original.decode, texts, path)
