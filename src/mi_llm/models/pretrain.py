"""The miniature's base models: three tiny counselors of the paper's three architectures, pretrained from scratch.

Reads SmileChat (CC0) from its pinned archive, trains one small BPE tokenizer and three language models of 2–3 million
parameters, and writes each as an ordinary checkpoint. They are shipped; `mi-llm pretrain` re-creates them. The base sees
the counseling instruction too (in a system turn or before a client turn), so that fine-tuning does not merely teach it to
ignore unknown text. The hidden matrices are trained with Muon, the rest with AdamW.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from tqdm import tqdm
from transformers import GlmConfig, GlmForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from mi_llm.corpora import files, smilechat
from mi_llm.corpora.reading import Repairs
from mi_llm.dialog import Dialog
from mi_llm.engine.load import make_first_calls
from mi_llm.engine.template import BAICHUAN2, GLM4, LLAMA3, ChatFormat, Message, encode, messages

SPECIAL = [
    "<unk>", "<pad>", "<s>", "</s>", "<reserved_106>", "<reserved_107>",
    "[gMASK]", "<sop>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>",
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
]  # fmt: skip
FORMAT_OF = {"tiny-baichuan2": BAICHUAN2, "tiny-glm4": GLM4, "tiny-llama3": LLAMA3}


class Pretraining(BaseModel):
    """Parameters of the pretraining; `pretrain/params.yaml` holds the ones used."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    seed: int
    threads: int
    vocabulary: int
    tokenizer_dialogs: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_value_heads: int  # of tiny-glm4 and tiny-llama3; Baichuan2-7B has as many as heads
    block: int  # tokens per training sequence
    batch: int  # sequences per step
    tokens: int  # seen in training, each once
    muon_learning_rate: float
    adam_learning_rate: float
    weight_decay: float
    warmup_steps: int
    bf16: bool
    compiled: bool  # through torch.compile, which needs a C compiler


def dialogs_of(archive: Path) -> Iterator[Dialog]:
    """Stream SmileChat's dialogs out of its archive."""
    inside = (file for file in files.from_archive(archive) if "/data/" in file.name)
    return smilechat.read(inside, Repairs())


def train_tokenizer(dialogs: Sequence[Dialog], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train the BPE that the three models share: characters and frequent words, bytes for the rest, all special tokens."""
    tokenizer = Tokenizer(BPE(byte_fallback=True, unk_token=SPECIAL[0], fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\s+|[\p{P}\p{S}\p{N}]"), "isolated")])
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    # The alphabet is counted here, with ties broken by character: the trainer breaks them by chance.
    counts = Counter(chain.from_iterable(turn.text for dialog in dialogs for turn in dialog.turns))
    alphabet = sorted(counts, key=lambda character: (-counts[character], character))[: vocabulary * 2 // 3]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    spoken = (turn.text for dialog in dialogs for turn in dialog.turns)
    headers = repeat("system\n\nuser\n\nassistant\n\n", len(dialogs))  # of Llama-3's turns: one token each, as in the original
    tokenizer.train_from_iterator(chain(spoken, headers), trainer)
    # Byte tokens must be known to the model but never be matched in text, so only the marks above stay special.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] in SPECIAL]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), unk_token=SPECIAL[0], pad_token=SPECIAL[1]
    )


def build(name: str, options: Pretraining, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Make the untrained model `name`: the native class, scaled down, with the stop tokens of its chat format."""
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": options.hidden,
        "intermediate_size": options.intermediate,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.heads,
        "head_dim": options.hidden // options.heads,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": FORMAT_OF[name].stop_ids(tokenizer),
    }
    if name == "tiny-glm4":
        return GlmForCausalLM(GlmConfig(**shape, num_key_value_heads=options.key_value_heads))
    if name == "tiny-llama3":
        rope = {"rope_type": "default", "rope_theta": 500000.0}
        return LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=options.key_value_heads, rope_parameters=rope))
    return LlamaForCausalLM(LlamaConfig(**shape))


def with_instruction(dialog: Dialog, instruction: str, chance: random.Random) -> list[Message]:
    """Half of the dialogs bare, a quarter with a system turn, a quarter with the instruction before some client turn."""
    draw = chance.random()
    chat = messages(dialog.turns, instruction if draw < 0.25 else "", "system")
    client_turns = [index for index, message in enumerate(chat) if message["role"] == "user"]
    if draw > 0.75 and client_turns:
        index = chance.choice(client_turns)
        chat[index] = {"role": "user", "content": f"{instruction}\n{chat[index]['content']}"}
    return chat


def token_stream(
    dialogs: Sequence[Dialog],
    tokenizer: PreTrainedTokenizerFast,
    chat_format: ChatFormat,
    instruction: str,
    options: Pretraining,
) -> tuple[np.ndarray, np.ndarray]:
    """Encode shuffled dialogs, until `options.tokens` tokens are there; returns token ids and labels, each [tokens]."""
    chance = random.Random(options.seed)
    order = list(range(len(dialogs)))
    chance.shuffle(order)
    ids: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    chats = (with_instruction(dialogs[index], instruction, chance) for index in order)
    with tqdm(total=options.tokens, desc=f"encode for {chat_format.name}", unit="token", unit_scale=True) as bar:
        while bar.n < options.tokens and (chunk := list(islice(chats, 512))):
            for record in encode(tokenizer, chat_format, chunk, 10**9, only_replies=False):
                ids.append(np.array(record.ids, dtype=np.int32))
                labels.append(np.array(record.labels, dtype=np.int32))
                bar.update(len(record.ids))
    return np.concatenate(ids), np.concatenate(labels)


def learning_rate(step: int, steps: int, warmup: int) -> float:
    """Share of the peak rate at `step`: a linear warm-up, then linear to zero."""
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def pretrain(archive: Path, out: Path, names: Sequence[str], instruction: str, options: Pretraining) -> None:
    """Train tokenizer and models from the SmileChat archive; write `out/<name>/` and `out/<name>/pretraining.jsonl`."""
    torch.set_num_threads(options.threads)
    make_first_calls()
    dialogs = list(tqdm(dialogs_of(archive), desc="read SmileChat", unit="dialog"))
    sample = random.Random(options.seed).sample(dialogs, min(options.tokenizer_dialogs, len(dialogs)))
    tokenizer = train_tokenizer(sample, options.vocabulary)
    for name in names:
        train_model(name, dialogs, tokenizer=tokenizer, instruction=instruction, out=out / name, options=options)


def train_model(
    name: str,
    dialogs: Sequence[Dialog],
    *,
    tokenizer: PreTrainedTokenizerFast,
    instruction: str,
    out: Path,
    options: Pretraining,
) -> None:
    """Train one model and save it in float16 beside its tokenizer, log and generation settings."""
    torch.manual_seed(options.seed)
    chat_format = FORMAT_OF[name]
    model = build(name, options, tokenizer)
    ids, labels = token_stream(dialogs, tokenizer, chat_format, instruction, options)
    rows = np.random.default_rng(options.seed).permutation(len(ids) // options.block)
    steps = len(rows) // options.batch
    forward = torch.compile(model) if options.compiled else model

    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    other = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    muon = torch.optim.Muon(
        hidden, lr=options.muon_learning_rate, weight_decay=options.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(other, lr=options.adam_learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    peaks = [(group, group["lr"]) for optimizer in (muon, adam) for group in optimizer.param_groups]

    log = []
    model.train()
    began = time.monotonic()
    with tqdm(total=steps, desc=f"pretrain {name}", unit="step") as bar:
        for step in range(steps):
            for group, peak in peaks:
                group["lr"] = peak * learning_rate(step, steps, options.warmup_steps)
            chosen = rows[step * options.batch : (step + 1) * options.batch]
            spans = [slice(row * options.block, (row + 1) * options.block) for row in chosen]
            inputs = torch.from_numpy(np.stack([ids[span] for span in spans])).long()
            targets = torch.from_numpy(np.stack([labels[span] for span in spans])).long()
            with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
                loss = forward(input_ids=inputs, labels=targets).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in (muon, adam):
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}")
            if step % 20 == 0 or step == steps - 1:
                tokens = (step + 1) * options.batch * options.block
                log.append({"step": step, "loss": loss.item(), "tokens": tokens, "seconds": time.monotonic() - began})

    model.eval().to(torch.float16).save_pretrained(out)
    tokenizer.chat_template = chat_format.template
    tokenizer.save_pretrained(out)
    (out / "pretraining.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log), encoding="utf-8")
