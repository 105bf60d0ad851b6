"""Does this adapter answer as it did in the study? Asks it the ten prompts of golden.json, greedily, and compares every token.

    python check.py [BASE]

BASE: a folder with the base model's files, or its name on the hub; needed where golden.json does not name one. Reads the folder
in which this program lies; needs torch, transformers 5 and peft, nothing else. Exit status 0: all answers are equal.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig


def main() -> int:
    """Load base and adapter, ask, compare."""
    folder = Path(__file__).resolve().parent
    golden = json.loads((folder / "golden.json").read_text(encoding="utf-8"))
    ends = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))["eos_token_id"]
    stops = ends if isinstance(ends, list) else [ends]
    named, dtype = golden["base"], getattr(torch, golden["precision"])
    if len(sys.argv) < 2 and named is None:
        sys.exit("python check.py BASE: the folder with the base model's files (README.md says which)")
    base, revision = (sys.argv[1], None) if len(sys.argv) > 1 else (named["name"], named["revision"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    four_bit: dict[str, Any] = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
    model = AutoModelForCausalLM.from_pretrained(
        base,
        revision=revision,
        dtype=dtype,
        device_map={"": device} if device == "cuda" else None,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, **four_bit) if golden["four_bit"] else None,
    )
    model.generation_config = GenerationConfig(
        do_sample=False, max_new_tokens=golden["max_new_tokens"], eos_token_id=stops, pad_token_id=stops[0]
    )
    tuned = PeftModel.from_pretrained(model, folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    differing = 0
    for number, prompt in enumerate(golden["prompts"], 1):
        ids = tokenizer.apply_chat_template(prompt["messages"], add_generation_prompt=True, return_dict=True)["input_ids"]
        asked = torch.tensor([ids], device=device)
        with torch.no_grad():
            said = tuned.generate(input_ids=asked, attention_mask=torch.ones_like(asked))[0, len(ids) :].tolist()
        reply = [*said[:-1]] if said and said[-1] in stops else said
        told = "equal" if (ids, reply) == (prompt["prompt"], prompt["reply"]) else "differs"
        differing += told != "equal"
        print(f"{number:>2} {told}: {prompt['text']!r}" + ("" if told == "equal" else f"; here {tokenizer.decode(reply)!r}"))
    print(f"{len(golden['prompts']) - differing} of {len(golden['prompts'])} answers are equal")
    return int(differing > 0)


if __name__ == "__main__":
    sys.exit(main())
