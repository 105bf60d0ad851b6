"""Tiny random models of the families that people tune today, each with a tokenizer and a chat template of its family's kind.

Everything is made here: models by transformers from their configurations, tokenizers from the bundle's sample text, templates
written as the families' own work for a dialog without tools. Nothing is from the hub.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

from mi_llm.dialog import Dialog
from mi_llm.engine.template import Placement

CHATML = """
{%- if messages[0].role != 'system' -%}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{%- endif -%}
{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""
# Thinks unless it is told not to; the thought of the last reply stays, those of earlier ones are left out.
THINKING = """
{%- set last = namespace(user=0) -%}
{%- for message in messages -%}{%- if message.role == 'user' -%}{%- set last.user = loop.index0 -%}{%- endif -%}{%- endfor -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' and loop.index0 > last.user -%}
{{ '<|im_start|>assistant\\n<think>\\n\\n</think>\\n\\n' + message.content + '<|im_end|>\\n' }}
{%- else -%}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}
{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}{%- endif -%}"""
GLM = """[gMASK]<sop>{%- for message in messages -%}{{ '<|' + message.role + '|>\\n' + message.content }}{%- endfor -%}
{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""
# Without system turns, as Gemma's.
MISTRAL = """{{ bos_token }}{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ '[INST] ' + message.content + ' [/INST]' }}
{%- elif message.role == 'assistant' -%}{{ ' ' + message.content + eos_token }}
{%- else -%}{{ raise_exception('Only user and assistant roles are supported!') }}{%- endif -%}{%- endfor -%}"""
GEMMA = """{{ bos_token }}{%- if messages[0].role == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}
{%- for message in messages -%}
{%- set speaker = 'model' if message.role == 'assistant' else 'user' -%}
{{ '<start_of_turn>' + speaker + '\\n' + message.content | trim + '<end_of_turn>\\n' }}
{%- endfor -%}{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}"""
# With today's date, and with marks around what the model says.
HEADERS = """{{ bos_token }}{%- if messages[0].role != 'system' -%}
{{ '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + strftime_now('%d %b %Y') + '<|eot_id|>' }}{%- endif -%}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
{%- if message.role == 'assistant' -%}{% generation %}{{ message.content | trim + '<|eot_id|>' }}{% endgeneration %}
{%- else -%}{{ message.content | trim + '<|eot_id|>' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"""


@dataclass(frozen=True)
class Family:
    """One family: transformers' name of it, its template, its special tokens, and what its configuration has beyond the sizes."""

    model_type: str
    template: str
    stops: tuple[str, ...]
    special: tuple[str, ...]
    bos: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    metaspace: bool = False

    @property
    def placement(self) -> Placement:
        """Where the instruction can stand: not all families know system turns."""
        return "query" if "raise_exception" in self.template else "system"


QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
FAMILIES = {
    "qwen2": Family("qwen2", CHATML, QWEN[2:] + QWEN[:1], QWEN),
    "qwen3": Family("qwen3", THINKING, QWEN[2:] + QWEN[:1], QWEN),
    "glm4-0414": Family(
        "glm4",
        GLM,
        ("<|endoftext|>", "<|user|>", "<|observation|>"),
        ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
        settings={"attention_bias": True, "partial_rotary_factor": 0.5},
    ),
    "mistral": Family("mistral", MISTRAL, ("</s>",), ("<unk>", "<s>", "</s>"), "<s>", {"sliding_window": None}, metaspace=True),
    "gemma": Family(
        "gemma",
        GEMMA,
        ("<eos>", "<end_of_turn>"),
        ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
        "<bos>",
        {"tie_word_embeddings": True},
        metaspace=True,
    ),
    "llama": Family(
        "llama",
        HEADERS,
        ("<|eot_id|>", "<|end_of_text|>"),
        ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|>",
    ),
    "tied": Family("qwen2", CHATML, QWEN[2:], QWEN, settings={"tie_word_embeddings": True}),
}


def tokenizer_of(family: Family, dialogs: Sequence[Dialog], vocabulary: int = 600) -> PreTrainedTokenizerFast:
    """A tokenizer of the family's kind: byte-level BPE, or SentencePiece's with a space for the beginning of a word."""
    if family.metaspace:
        tokenizer = Tokenizer(BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        first = "first" if family.model_type == "mistral" else "never"
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=first)
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        tokens = [*family.special, *(f"<0x{byte:02X}>" for byte in range(256))]
        alphabet: list[str] = []
    else:
        tokenizer = Tokenizer(BPE())
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokens, alphabet = [*family.special, "<think>", "</think>"], pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=vocabulary, special_tokens=tokens, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator((turn.text for dialog in dialogs for turn in dialog.turns), trainer)
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [
        token | {"special": token["content"] in family.special}
        for token in state["added_tokens"]
        if not token["content"].startswith("<0x")
    ]
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token=family.bos,
        eos_token=family.stops[0],
        pad_token=family.special[0],
        clean_up_tokenization_spaces=False,
    )
    made.chat_template = family.template
    return made


def make(folder: Path, name: str, dialogs: Sequence[Dialog], *, shard: str | None = None, **settings: Any) -> Path:
    """Write a family's checkpoint: random weights, norms and biases too; `shard`: the most bytes of a weight file."""
    family = FAMILIES[name]
    tokenizer = tokenizer_of(family, dialogs)
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 4096,
        "tie_word_embeddings": False, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.convert_tokens_to_ids(list(family.stops)),
    }  # fmt: skip
    torch.manual_seed(1)
    logging.disable_progress_bar()
    config = AutoConfig.for_model(**{"model_type": family.model_type} | sizes | family.settings | settings)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * (0.1 if weight.ndim == 1 else 0.2))
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    tokenizer.save_pretrained(folder)
    return folder
