"""Converting published layouts: the same logits as the published architectures, the same tokens as the published tokenizers."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tiktoken._educational import bpe_train
from tiny import study_with
from torch.nn.functional import normalize, silu
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, PreTrainedTokenizerBase

from mi_llm import storage
from mi_llm.dialog import Dialog, write_dialogs, write_rounds
from mi_llm.engine.load import checkpoint
from mi_llm.models.convert import GLM4_PATTERN, convert, convertible
from mi_llm.models.finetune import finetune
from mi_llm.models.respond import respond
from mi_llm.problem import Problem

Tensors = dict[str, torch.Tensor]
TEXTS = (
    "", " ", "   ", "\n", "你好，我想戒烟。可是我总是忍不住", "I'm here.  Are you?", " leading and trailing ",
    "a   b\t\tc\r\n\r\nd\n", "2024年12月，1,234.5%", "😀👍🏽👩\u200d👧", "龘𠮷𩸽", "naïve Ⅷ ﬁ ｆｕｌｌ　ｗｉｄｔｈ",
    "<0x41><0xE4> ▁ _", "----====……！！", "def f(x):\n    return x",
)  # fmt: skip
# The first 192 stand where the published vocabulary has other reserved symbols, so that the chat marks get ids 195 and 196.
RESERVED = [f"<reserved_{number}>" for number in range(194) if number not in (106, 107)] + ["<reserved_106>", "<reserved_107>"]
BAICHUAN2: dict[str, Any] = {
    "architectures": ["BaichuanForCausalLM"], "model_type": "baichuan", "hidden_act": "silu", "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "rms_norm_eps": 1e-06, "model_max_length": 4096,
    "vocab_size": 3520, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "torch_dtype": "bfloat16", "z_loss_weight": 0,
}  # fmt: skip
CHATGLM: dict[str, Any] = {
    "architectures": ["ChatGLMModel"], "model_type": "chatglm", "hidden_size": 32, "ffn_hidden_size": 48, "num_layers": 2,
    "num_attention_heads": 4, "kv_channels": 16, "multi_query_attention": True, "multi_query_group_num": 2, "add_qkv_bias": True,
    "add_bias_linear": False, "layernorm_epsilon": 1.5625e-07, "rope_ratio": 500, "seq_length": 131072, "original_rope": True,
    "rmsnorm": True, "post_layer_norm": True, "apply_residual_connection_post_layernorm": False, "padded_vocab_size": 424,
    "tie_word_embeddings": False, "eos_token_id": [400, 407, 409], "pad_token_id": 400, "torch_dtype": "bfloat16",
}  # fmt: skip
GLM4_MARKS = [
    "<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>",
]  # fmt: skip


# Checkpoints as they are published


@pytest.fixture(scope="session")
def spoken(sample_dialogs: list[Dialog]) -> list[str]:
    """What the sample dialogs say, and some text with spaces and digits."""
    return [*(turn.text for dialog in sample_dialogs for turn in dialog.turns), *["a  b   c    d 12345 def f(x):"] * 20]


def sentencepiece_model(texts: list[str], **options: Any) -> bytes:
    """Train a SentencePiece BPE with byte fallback; by default without normalization or leading space, as Baichuan2's."""
    chosen = {
        "add_dummy_prefix": False, "remove_extra_whitespaces": False, "normalization_rule_name": "identity", "vocab_size": 3500,
        "user_defined_symbols": RESERVED, "allow_whitespace_only_pieces": True, **options,
    }  # fmt: skip
    written = io.BytesIO()
    SentencePieceTrainer.Train(
        sentence_iterator=iter(texts), model_writer=written, model_type="bpe", byte_fallback=True, character_coverage=0.9999,
        split_digits=True, minloglevel=2, **chosen,
    )  # fmt: skip
    return written.getvalue()


@pytest.fixture(scope="session")
def pieces(spoken: list[str]) -> bytes:
    return sentencepiece_model(spoken)


@pytest.fixture(scope="session")
def ranks(spoken: list[str]) -> dict[bytes, int]:
    """A byte BPE of 400 tokens, cut by GLM-4's pattern."""
    ranks: dict[bytes, int] = bpe_train("\n".join(spoken)[:4000] + " I'm sure we'll see" * 5, 400, GLM4_PATTERN, visualise=None)
    return ranks


def write_weights(folder: Path, tensors: Tensors, kind: str = "bin", shards: int = 2) -> None:
    """Write tensors as one file or as shards with an index, in either of the two kinds."""
    stem, single = ("model", "model.safetensors") if kind == "safetensors" else ("pytorch_model", "pytorch_model.bin")
    names = [single] if shards == 1 else [f"{stem}-{n:05}-of-{shards:05}.{kind}" for n in range(1, shards + 1)]
    whole, before = sum(tensor.nbytes for tensor in tensors.values()), 0
    parts: dict[str, Tensors] = {name: {} for name in names}
    for name, tensor in tensors.items():
        parts[names[before * shards // whole]][name] = tensor
        before += tensor.nbytes
    for file, part in parts.items():
        save_file(part, folder / file, {"format": "pt"}) if kind == "safetensors" else torch.save(part, folder / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    if shards > 1:
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (folder / f"{single}.index.json").write_text(json.dumps(index), encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def baichuan2(
    folder: Path,
    model: bytes,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
    settings: dict[str, Any] | None = None,
    **how: Any,
) -> Tensors:
    """Write a random Baichuan2 checkpoint; returns its tensors."""
    config = BAICHUAN2 | (settings or {})
    width, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    chance = torch.Generator().manual_seed(seed)

    def matrix(*shape: int) -> torch.Tensor:
        return (torch.randn(*shape, generator=chance) / shape[-1] ** 0.5).to(dtype)

    def scale() -> torch.Tensor:
        return (1 + 0.2 * torch.randn(width, generator=chance)).to(dtype)

    tensors = {"model.embed_tokens.weight": matrix(vocabulary, width)}
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        tensors |= {
            f"{layer}.self_attn.W_pack.weight": matrix(3 * width, width),
            f"{layer}.self_attn.o_proj.weight": matrix(width, width),
            f"{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4),
            f"{layer}.mlp.gate_proj.weight": matrix(inner, width),
            f"{layer}.mlp.up_proj.weight": matrix(inner, width),
            f"{layer}.mlp.down_proj.weight": matrix(width, inner),
            f"{layer}.input_layernorm.weight": scale(),
            f"{layer}.post_attention_layernorm.weight": scale(),
        }
    tensors |= {"model.norm.weight": scale(), "lm_head.weight": matrix(vocabulary, width) * 7}
    folder.mkdir(parents=True)
    write_weights(folder, tensors, **how)
    write_json(folder / "config.json", config)
    (folder / "tokenizer.model").write_bytes(model)
    role = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": True}
    roles = {
        "bos_token": role | {"content": "<s>"},
        "eos_token": role | {"content": "</s>"},
        "unk_token": role | {"content": "<unk>"},
    }
    write_json(folder / "special_tokens_map.json", roles | {"pad_token": "<unk>"})
    own = {
        "add_bos_token": False,
        "add_eos_token": False,
        "tokenizer_class": "BaichuanTokenizer",
        "model_max_length": 4096,
        "use_fast": False,
    }
    write_json(folder / "tokenizer_config.json", own)
    sampling = {
        "temperature": 0.3,
        "top_k": 5,
        "top_p": 0.85,
        "repetition_penalty": 1.05,
        "do_sample": True,
        "max_new_tokens": 2048,
    }
    marks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "user_token_id": 195, "assistant_token_id": 196}
    write_json(folder / "generation_config.json", sampling | marks)
    return tensors


def chatglm(folder: Path, ranks: dict[bytes, int], seed: int = 1, settings: dict[str, Any] | None = None, **how: Any) -> Tensors:
    """Write a random GLM-4 checkpoint in the published layout; returns its tensors."""
    config = CHATGLM | (settings or {})
    width, inner, vocabulary = config["hidden_size"], config["ffn_hidden_size"], config["padded_vocab_size"]
    queries = config["num_attention_heads"] * config["kv_channels"]
    rows = queries + 2 * config["multi_query_group_num"] * config["kv_channels"]
    chance = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance) / shape[-1] ** 0.5

    tensors = {
        "transformer.embedding.word_embeddings.weight": random(vocabulary, width),
        "transformer.rotary_pos_emb.inv_freq": torch.ones(4),
        "transformer.encoder.final_layernorm.weight": 1 + random(width),
        "transformer.output_layer.weight": random(vocabulary, width),
    }
    for number in range(config["num_layers"]):
        layer = f"transformer.encoder.layers.{number}"
        tensors |= {
            f"{layer}.self_attention.query_key_value.weight": random(rows, width),
            f"{layer}.self_attention.query_key_value.bias": random(rows),
            f"{layer}.self_attention.dense.weight": random(width, queries),
            f"{layer}.mlp.dense_h_to_4h.weight": random(2 * inner, width),
            f"{layer}.mlp.dense_4h_to_h.weight": random(width, inner),
            f"{layer}.input_layernorm.weight": 1 + random(width),
            f"{layer}.post_attention_layernorm.weight": 1 + random(width),
        }
    folder.mkdir(parents=True)
    write_weights(folder, tensors, **how)
    write_json(folder / "config.json", config)
    lines = b"".join(base64.b64encode(token) + f" {rank}\n".encode() for token, rank in ranks.items())
    (folder / "tokenizer.model").write_bytes(lines)
    mark = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    added = {str(number): mark | {"content": content} for number, content in enumerate(GLM4_MARKS, len(ranks))}
    own = {"added_tokens_decoder": added, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "padding_side": "left"}
    write_json(
        folder / "tokenizer_config.json", own | {"model_max_length": 128000, "chat_template": "[gMASK]<sop>{{ messages }}"}
    )
    write_json(folder / "generation_config.json", {"do_sample": True, "temperature": 0.8, "top_p": 0.8, "max_length": 128000})
    return tensors


# The published architectures, in float64, from their published description


def rms_norm(x: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Causal attention of [batch, heads, tokens, size]; a key head serves several consecutive query heads."""
    k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], dim=1) for part in (k, v))
    scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5
    future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
    return mixed.transpose(1, 2).flatten(2)


def turned(first: torch.Tensor, second: torch.Tensor, base: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary positions: turn each pair (first, second) of [.., tokens, pairs] by position × base^(-pair / pairs)."""
    tokens, pairs = first.shape[-2:]
    angles = torch.outer(torch.arange(tokens).double(), base ** (-torch.arange(pairs).double() / pairs))
    return first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()


def half_turned(part: torch.Tensor, base: float) -> torch.Tensor:
    """Rotary positions on neighboring pairs in the first half of each head; the second half stays."""
    moving, fixed = part.chunk(2, dim=-1)
    moved = torch.stack(turned(moving[..., 0::2], moving[..., 1::2], base), dim=-1).flatten(-2)
    return torch.cat([moved, fixed], dim=-1)


def baichuan2_logits(tensors: Tensors, ids: torch.Tensor, config: dict[str, Any] = BAICHUAN2) -> torch.Tensor:
    """Logits [batch, tokens, vocabulary] of Baichuan2-7B: rotary pairs half a head apart, W_pack, SwiGLU, NormHead."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    heads, epsilon = config["num_attention_heads"], config["rms_norm_eps"]
    size = config["hidden_size"] // heads
    x = w["model.embed_tokens.weight"][ids]
    for number in range(config["num_hidden_layers"]):
        layer = f"model.layers.{number}"
        packed = rms_norm(x, w[f"{layer}.input_layernorm.weight"], epsilon) @ w[f"{layer}.self_attn.W_pack.weight"].T
        q, k, v = packed.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = (torch.cat(turned(part[..., : size // 2], part[..., size // 2 :], 10000.0), dim=-1) for part in (q, k))
        x = x + attend(q, k, v) @ w[f"{layer}.self_attn.o_proj.weight"].T
        h = rms_norm(x, w[f"{layer}.post_attention_layernorm.weight"], epsilon)
        gated = silu(h @ w[f"{layer}.mlp.gate_proj.weight"].T) * (h @ w[f"{layer}.mlp.up_proj.weight"].T)
        x = x + gated @ w[f"{layer}.mlp.down_proj.weight"].T
    return rms_norm(x, w["model.norm.weight"], epsilon) @ normalize(w["lm_head.weight"]).T


def chatglm_logits(tensors: Tensors, ids: torch.Tensor, config: dict[str, Any] = CHATGLM) -> torch.Tensor:
    """Logits of GLM-4-9B: multi-query groups, biases on q, k and v, neighboring rotary pairs in the first half of a head."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    heads, groups, size = config["num_attention_heads"], config["multi_query_group_num"], config["kv_channels"]
    x = w["transformer.embedding.word_embeddings.weight"][ids]
    for number in range(config["num_layers"]):
        layer = f"transformer.encoder.layers.{number}"
        h = rms_norm(x, w[f"{layer}.input_layernorm.weight"], config["layernorm_epsilon"])
        mixed = h @ w[f"{layer}.self_attention.query_key_value.weight"].T + w[f"{layer}.self_attention.query_key_value.bias"]
        parts = mixed.split([heads * size, groups * size, groups * size], dim=-1)
        q, k, v = (part.unflatten(-1, (-1, size)).transpose(1, 2) for part in parts)
        q, k = (half_turned(part, 10000.0 * config["rope_ratio"]) for part in (q, k))
        x = x + attend(q, k, v) @ w[f"{layer}.self_attention.dense.weight"].T
        h = rms_norm(x, w[f"{layer}.post_attention_layernorm.weight"], config["layernorm_epsilon"])
        gate, up = (h @ w[f"{layer}.mlp.dense_h_to_4h.weight"].T).chunk(2, dim=-1)
        x = x + (silu(gate) * up) @ w[f"{layer}.mlp.dense_4h_to_h.weight"].T
    return (
        rms_norm(x, w["transformer.encoder.final_layernorm.weight"], config["layernorm_epsilon"])
        @ w["transformer.output_layer.weight"].T
    )


def logits_of(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a converted checkpoint, loaded with native classes in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids).logits
    return logits


LAYOUTS = [("bin", 2), ("bin", 1), ("safetensors", 3), ("safetensors", 1)]


@pytest.mark.parametrize(("seed", "layout"), list(enumerate(LAYOUTS, 1)))
def test_a_converted_baichuan2_gives_the_logits_of_the_published_architecture(
    seed: int, layout: tuple[str, int], pieces: bytes, tmp_path: Path
) -> None:
    tensors = baichuan2(tmp_path / "source", pieces, seed, kind=layout[0], shards=layout[1])
    convert(tmp_path / "source", tmp_path / "target")
    ids = torch.randint(BAICHUAN2["vocab_size"], (3, 50), generator=torch.Generator().manual_seed(seed))
    expected = baichuan2_logits(tensors, ids)
    assert (logits_of(tmp_path / "target", ids) - expected).abs().max() <= 1e-4
    assert expected.std() > 0.5


@pytest.mark.parametrize(("seed", "layout"), list(enumerate(LAYOUTS, 1)))
def test_a_converted_chatglm_gives_the_logits_of_the_published_architecture(
    seed: int, layout: tuple[str, int], ranks: dict[bytes, int], tmp_path: Path
) -> None:
    tensors = chatglm(tmp_path / "source", ranks, seed, kind=layout[0], shards=layout[1])
    convert(tmp_path / "source", tmp_path / "target")
    ids = torch.randint(CHATGLM["padded_vocab_size"], (3, 50), generator=torch.Generator().manual_seed(seed))
    expected = chatglm_logits(tensors, ids)
    assert (logits_of(tmp_path / "target", ids) - expected).abs().max() <= 1e-4
    assert expected.std() > 0.5


# What is written


def test_the_record_says_what_was_done_and_nothing_of_the_machine(pieces: bytes, tmp_path: Path) -> None:
    source, target = tmp_path / "Baichuan2-7B-Chat", tmp_path / "target"
    baichuan2(source, pieces, dtype=torch.bfloat16)
    record = convert(source, target)
    assert record == storage.read_json(target / "conversion.json")
    assert record["tensors"] == {
        "read": 19, "written": 21, "unchanged": 14, "renamed": 0, "split": 2, "normalised": 1,
        "dropped": ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.layers.1.self_attn.rotary_emb.inv_freq"],
    }  # fmt: skip
    assert record["dtypes"] == {"bfloat16": 17}
    assert record["tokenizer"]["entries"] == 3500
    assert record["tokenizer"]["entries_different"] == 0
    assert record["source"] == {path.name: storage.sha256(path) for path in source.iterdir()}
    texts = [path.read_text(encoding="utf-8") for path in target.iterdir() if path.suffix == ".json"]
    assert not any(str(tmp_path) in text for text in texts)
    first = storage.sha256(target)
    convert(source, target)
    assert storage.sha256(target) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Baichuan2-7B-Chat", "target"]


def test_weights_keep_their_dtype_and_only_the_head_is_computed_anew(pieces: bytes, tmp_path: Path) -> None:
    tensors = baichuan2(tmp_path / "source", pieces, dtype=torch.bfloat16)
    convert(tmp_path / "source", tmp_path / "target")
    index = storage.read_json(tmp_path / "target" / "model.safetensors.index.json")
    written: Tensors = {}
    for file in sorted(set(index["weight_map"].values())):
        part = load_file(tmp_path / "target" / file)
        assert {index["weight_map"][name] for name in part} == {file}
        written |= part
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in written.values())
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    head = tensors["lm_head.weight"].float()
    assert torch.equal(written["lm_head.weight"], (head / head.norm(dim=1, keepdim=True)).bfloat16())
    packed = torch.cat([written[f"model.layers.1.self_attn.{part}_proj.weight"] for part in "qkv"])
    assert torch.equal(packed, tensors["model.layers.1.self_attn.W_pack.weight"])
    assert torch.equal(written["model.layers.0.mlp.up_proj.weight"], tensors["model.layers.0.mlp.up_proj.weight"])
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "target", dtype="auto").dtype == torch.bfloat16


def test_settings_are_carried_over_with_the_chat_formats_stop_tokens(
    pieces: bytes, ranks: dict[bytes, int], tmp_path: Path
) -> None:
    baichuan2(tmp_path / "baichuan2", pieces)
    chatglm(tmp_path / "chatglm", ranks)
    convert(tmp_path / "baichuan2", tmp_path / "llama")
    convert(tmp_path / "chatglm", tmp_path / "glm")
    llama, glm = (storage.read_json(tmp_path / name / "config.json") for name in ("llama", "glm"))
    assert (llama["architectures"], llama["model_type"], llama["dtype"]) == (["LlamaForCausalLM"], "llama", "float32")
    assert (llama["eos_token_id"], llama["max_position_embeddings"], llama["tie_word_embeddings"]) == ([2, 195], 4096, False)
    assert (glm["architectures"], glm["model_type"], glm["num_key_value_heads"]) == (["GlmForCausalLM"], "glm", 2)
    assert (glm["eos_token_id"], glm["pad_token_id"], glm["max_position_embeddings"]) == ([400, 407, 409], 400, 131072)
    assert glm["rope_parameters"] == {"rope_type": "default", "rope_theta": 5000000.0, "partial_rotary_factor": 0.5}
    assert storage.read_json(tmp_path / "llama" / "generation_config.json") == {
        "temperature": 0.3, "top_k": 5, "top_p": 0.85, "repetition_penalty": 1.05, "do_sample": True, "max_new_tokens": 2048,
        "bos_token_id": 1, "eos_token_id": [2, 195], "pad_token_id": 0,
    }  # fmt: skip


class Says(LogitsProcessor):  # type: ignore[misc]
    """Makes a model say the given tokens, whatever it would say."""

    def __init__(self, tokens: list[int], prompt: int) -> None:
        self.tokens, self.prompt = tokens, prompt

    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores[:, self.tokens[ids.shape[1] - self.prompt]] = torch.inf
        return scores


@pytest.mark.parametrize(
    ("layout", "stop"), [("baichuan2", 2), ("baichuan2", 195), ("chatglm", 400), ("chatglm", 407), ("chatglm", 409)]
)
def test_generation_ends_at_each_stop_token(
    layout: str, stop: int, pieces: bytes, ranks: dict[bytes, int], tmp_path: Path
) -> None:
    if layout == "baichuan2":
        baichuan2(tmp_path / "source", pieces)
    else:
        chatglm(tmp_path / "source", ranks)
    convert(tmp_path / "source", tmp_path / "target")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    says = Says([300, 301, stop, 302, 303], prompt=4)
    generated = model.generate(torch.tensor([[260, 261, 262, 263]]), do_sample=False, max_new_tokens=5, logits_processor=[says])
    assert generated[0, 4:].tolist() == [300, 301, stop]


# Tokenizers


def converted_tokenizer(source: Path) -> PreTrainedTokenizerBase:
    convert(source, source.with_name("target"))
    return AutoTokenizer.from_pretrained(source.with_name("target"), trust_remote_code=False)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"user_defined_symbols": ["▁▁", "▁▁▁", "▁▁▁▁", *RESERVED]},
        {"add_dummy_prefix": True},
        {"add_dummy_prefix": True, "user_defined_symbols": ["▁▁", "▁▁▁", "||", *RESERVED]},
        {"add_dummy_prefix": True, "remove_extra_whitespaces": True, "normalization_rule_name": "nmt_nfkc"},
        {"user_defined_symbols": [], "control_symbols": RESERVED, "split_by_whitespace": False},
    ],
    ids=["as Baichuan2's", "symbols of spaces", "leading space", "both", "normalised", "marks as control symbols"],
)
def test_tokens_and_text_equal_sentencepiece(options: dict[str, Any], spoken: list[str], tmp_path: Path) -> None:
    model = sentencepiece_model(spoken, **options)
    baichuan2(tmp_path / "source", model)
    tokenizer, original = converted_tokenizer(tmp_path / "source"), SentencePieceProcessor(model_proto=model)

    def equal(text: str) -> bool:
        ids = tokenizer(text)["input_ids"]
        return bool(ids == original.encode(text) and tokenizer.decode(ids) == original.decode(ids))

    assert [text for text in (*TEXTS, *spoken[:200]) if not equal(text)] == []

    combining = "" if "normalization_rule_name" in options else "\u0301\u200d"  # an exception that the docstring names
    letters = st.sampled_from("我你想烟，。 \n\t▁ab012<>|é😀龘Ａ" + combining)
    parts = st.lists(letters | st.sampled_from(["  ", "||", "我想", "def ", "<0x41>"]), max_size=30)

    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(parts.map("".join))
    def any_text(text: str) -> None:
        assert equal(text) or ("add_dummy_prefix" in options and text == "||")  # the other

    any_text()


def test_marks_are_single_tokens_and_each_stretch_between_them_is_encoded_for_itself(pieces: bytes, tmp_path: Path) -> None:
    baichuan2(tmp_path / "source", pieces)
    tokenizer, original = converted_tokenizer(tmp_path / "source"), SentencePieceProcessor(model_proto=pieces)
    ids = tokenizer("指示<reserved_106>我想 戒烟<reserved_107> 请说</s><s>")["input_ids"]
    assert ids == [*original.encode("指示"), 195, *original.encode("我想 戒烟"), 196, *original.encode(" 请说"), 2, 1]
    assert tokenizer.decode(ids) == "指示<reserved_106>我想 戒烟<reserved_107> 请说</s><s>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "指示我想 戒烟 请说"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id) == (1, 2, 0, 0)


@pytest.mark.parametrize(("start", "end"), [(False, False), (True, False), (False, True), (True, True)])
def test_start_and_end_marks_are_added_as_the_settings_say(start: bool, end: bool, pieces: bytes, tmp_path: Path) -> None:
    baichuan2(tmp_path / "source", pieces)
    path = tmp_path / "source" / "tokenizer_config.json"
    write_json(path, storage.read_json(path) | {"add_bos_token": start, "add_eos_token": end})
    ids = converted_tokenizer(tmp_path / "source")("你好")["input_ids"]
    assert ids == [1] * start + SentencePieceProcessor(model_proto=pieces).encode("你好") + [2] * end


def test_tokens_and_text_equal_tiktoken(ranks: dict[bytes, int], spoken: list[str], tmp_path: Path) -> None:
    chatglm(tmp_path / "source", ranks)
    tokenizer = converted_tokenizer(tmp_path / "source")
    original = tiktoken.Encoding("glm", pat_str=GLM4_PATTERN, mergeable_ranks=ranks, special_tokens={})

    def equal(text: str) -> bool:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return bool(ids == original.encode_ordinary(text) and tokenizer.decode(ids) == text)

    assert [text for text in (*TEXTS, *spoken[:200]) if not equal(text)] == []

    @settings(max_examples=300, deadline=None, derandomize=True, database=None)
    @given(st.text(max_size=40))
    def any_text(text: str) -> None:
        assert equal(text)

    any_text()
    assert tokenizer("hi")["input_ids"] == [402, 404, *original.encode_ordinary("hi")]
    ids = tokenizer("[gMASK]<sop><|user|>\n你好<|assistant|>", add_special_tokens=False)["input_ids"]
    assert ids == [402, 404, 407, *original.encode_ordinary("\n你好"), 408]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.chat_template) == (400, 400, "[gMASK]<sop>{{ messages }}")


# What can be wrong


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    """Change keys of a JSON file."""
    return lambda folder: write_json(folder / name, storage.read_json(folder / name) | changes)


def retouch(shard: str, change: Callable[[Tensors], Any]) -> Callable[[Path], None]:
    """Change the tensors of a shard."""

    def do(folder: Path) -> None:
        tensors = torch.load(folder / shard, weights_only=True)
        change(tensors)
        torch.save(tensors, folder / shard)

    return do


def truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size * 2 // 3)


SECOND = "pytorch_model-00002-of-00002.bin"
EMBEDDING = "model.embed_tokens.weight"
UP = "model.layers.1.mlp.up_proj.weight"
DAMAGES: list[tuple[str, Callable[[Path], Any], tuple[str, ...]]] = [
    ("a missing tensor", retouch(SECOND, lambda t: t.pop(UP)), (UP, SECOND, "1 are missing")),
    ("a surplus tensor", retouch(SECOND, lambda t: t.update(extra=torch.ones(1))), (SECOND, "extra", "surplus")),
    ("a tensor twice", retouch(SECOND, lambda t: t.update({EMBEDDING: t["lm_head.weight"]})), (SECOND, EMBEDDING, "also in")),
    ("a wrong shape", retouch(SECOND, lambda t: t.update({UP: torch.ones(48, 31)})), (SECOND, UP, "[48, 31]", "[48, 32]")),
    ("quantised weights", retouch(SECOND, lambda t: t.update({UP: t[UP].to(torch.int8)})), (SECOND, UP, "torch.int8")),
    ("not only tensors", retouch(SECOND, lambda t: t.update({UP: "text"})), (SECOND, "tensors")),
    ("a truncated shard", truncate(SECOND), (SECOND, "cannot be read")),
    ("an empty shard", lambda folder: (folder / SECOND).write_bytes(b""), (SECOND, "cannot be read")),
    ("a missing shard", lambda folder: (folder / SECOND).unlink(), (SECOND, "no such file")),
    ("no weights", lambda folder: (folder / "pytorch_model.bin.index.json").unlink(), ("no weights",)),
    ("an index of something else", edit("pytorch_model.bin.index.json", weight_map=[]), ("bin.index.json", "weight_map")),
    ("no tokenizer", lambda folder: (folder / "tokenizer.model").unlink(), ("tokenizer.model", "no such file")),
    ("a pointer to a tokenizer", lambda folder: (folder / "tokenizer.model").write_text("oid 1"), ("not a SentencePiece",)),
    ("no tokenizer settings", lambda folder: (folder / "tokenizer_config.json").unlink(), ("tokenizer_config.json",)),
    ("no configuration", lambda folder: (folder / "config.json").unlink(), ("config.json", "no such file")),
    ("a 13B model", edit("config.json", hidden_size=5120, num_hidden_layers=40), ("config.json", "ALiBi")),
    ("ALiBi positions", edit("config.json", position_embedding="ALIBI"), ("config.json", "ALiBi")),
    ("the first Baichuan", edit("config.json", vocab_size=64000), ("config.json", "first Baichuan")),
    ("tied embeddings", edit("config.json", tie_word_embeddings=True), ("config.json", "tie_word_embeddings", "True")),
    ("too few rows for the tokens", edit("config.json", vocab_size=3000), ("3499", "below 3000")),
    ("another model", edit("config.json", model_type="qwen2"), ("config.json", "qwen2", "baichuan or chatglm")),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "named"), [pytest.param(*rest, id=title) for title, *rest in DAMAGES])
def test_what_is_wrong_is_named_and_nothing_is_left(
    damage: Callable[[Path], Any], named: tuple[str, ...], pieces: bytes, tmp_path: Path
) -> None:
    baichuan2(tmp_path / "source", pieces)
    damage(tmp_path / "source")
    with pytest.raises(Problem) as caught:
        convert(tmp_path / "source", tmp_path / "target")
    assert [part for part in named if part not in str(caught.value)] == []
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (truncate("model-00002-of-00003.safetensors"), ("model-00002-of-00003.safetensors", "cannot be read")),
        (lambda folder: (folder / "tokenizer.model").write_bytes(b"aGk= 1\nnonsense\n"), ("tokenizer.model, line 2", "nonsense")),
        (edit("tokenizer_config.json", added_tokens_decoder={"500": {"content": "<sop>"}}), ("<sop> has id 500", "400")),
        (edit("tokenizer_config.json", added_tokens_decoder={"400": {"content": "<|endoftext|>"}}), ("no token <|user|>",)),
        (edit("config.json", multi_query_attention=False), ("config.json", "multi_query_attention")),
        (edit("config.json", add_bias_linear=True), ("config.json", "add_bias_linear")),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_chatglm_is_named(
    damage: Callable[[Path], Any], named: tuple[str, ...], ranks: dict[bytes, int], tmp_path: Path
) -> None:
    chatglm(tmp_path / "source", ranks, kind="safetensors", shards=3)
    damage(tmp_path / "source")
    with pytest.raises(Problem) as caught:
        convert(tmp_path / "source", tmp_path / "target")
    assert [part for part in named if part not in str(caught.value)] == []
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_folder_with_other_things_is_not_replaced(pieces: bytes, tmp_path: Path) -> None:
    baichuan2(tmp_path / "source", pieces)
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "thesis.docx").write_bytes(b"years of work")
    with pytest.raises(Problem, match="other files"):
        convert(tmp_path / "source", tmp_path / "target")
    assert [path.name for path in (tmp_path / "target").iterdir()] == ["thesis.docx"]


def test_native_checkpoints_are_not_converted(checkpoints: Path, pieces: bytes, tmp_path: Path) -> None:
    baichuan2(tmp_path / "source", pieces)
    assert convertible(tmp_path / "source")
    assert not any(convertible(folder) for folder in checkpoints.iterdir())


def test_a_place_that_cannot_be_written_is_named(pieces: bytes, tmp_path: Path) -> None:
    baichuan2(tmp_path / "source", pieces)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Problem, match="could not be written"):
        convert(tmp_path / "source", tmp_path / "file" / "target")


def test_a_shard_in_the_format_before_zip_is_read_too(pieces: bytes, tmp_path: Path) -> None:
    tensors = baichuan2(tmp_path / "source", pieces, shards=1)
    torch.save(tensors, tmp_path / "source" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    convert(tmp_path / "source", tmp_path / "target")
    written = load_file(tmp_path / "target" / "model.safetensors")
    assert torch.equal(written[EMBEDDING], tensors[EMBEDDING])


# Large checkpoints, killed runs

LARGE = {"hidden_size": 256, "intermediate_size": 2048, "num_hidden_layers": 12}
CONVERT = "import sys; from pathlib import Path; from mi_llm.models.convert import convert; convert(*map(Path, sys.argv[1:]))"
MEASURE = """
import re, sys
from pathlib import Path
from mi_llm.models.convert import convert
small, source, target = map(Path, sys.argv[1:])

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

convert(small, target.with_name("small-target"))
before = peak()
convert(source, target)
print(peak() - before)
"""


@pytest.mark.parametrize("kind", ["safetensors", pytest.param("bin", marks=pytest.mark.slow)])
def test_memory_holds_one_shard_at_a_time(kind: str, pieces: bytes, tmp_path: Path) -> None:
    baichuan2(tmp_path / "small", pieces)
    baichuan2(tmp_path / "source", pieces, settings=LARGE, kind=kind, shards=12)
    sizes = [path.stat().st_size for path in (tmp_path / "source").glob(f"*.{kind}")]
    run = [sys.executable, "-c", MEASURE, *(str(tmp_path / name) for name in ("small", "source", "target"))]
    grown = int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    print(f"{len(sizes)} shards, the largest of {max(sizes):,} bytes, {sum(sizes):,} in all; memory grew by {grown:,}")
    assert sum(sizes) > 8 * max(sizes)
    assert grown < 3 * max(sizes)


@pytest.mark.slow
def test_a_killed_conversion_leaves_no_folder_that_looks_complete(pieces: bytes, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    baichuan2(source, pieces, settings=LARGE, shards=12)
    run = subprocess.Popen([sys.executable, "-c", CONVERT, str(source), str(target)], stderr=subprocess.DEVNULL)
    while run.poll() is None and not list(tmp_path.glob(".target.part/model-00003*")):
        time.sleep(0.001)
    os.kill(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert not target.exists()
    record = convert(source, target)
    assert record["tensors"]["written"] == 3 + 9 * 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]


# In one end, out the other


def test_a_published_baichuan2_is_converted_tuned_and_answers(
    workspace: Path, pieces: bytes, sample_dialogs: list[Dialog]
) -> None:
    study, model = study_with(finetune_epochs="3", threads="1", max_new_tokens="12"), "tiny-baichuan2"
    baichuan2(workspace / "published", pieces)
    convert(workspace / "published", checkpoint(study, model))
    write_dialogs(study.folder / "split" / "train.jsonl", sample_dialogs[:8])
    rounds = [sample for dialog in sample_dialogs[8:10] for sample in dialog.rounds()]
    write_rounds(study.folder / "split" / "test_rounds.jsonl", rounds)
    finetune(study, model)
    respond(study, model)
    answers = list(storage.read_lines(study.folder / "respond" / model / "tuned.jsonl"))
    assert len(answers) == len(rounds)
    assert all(isinstance(answer["text"], str) and answer["text"] for answer in answers)
