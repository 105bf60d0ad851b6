"""What vLLM's own code makes of our command lines, requests, chats and adapters; run where `vllm` can be imported.

    python tests/support/under_vllm.py JOB.json ANSWERS

reads a job as `tests/models/test_vllm.py` writes it, and writes `ANSWERS/answers.json` and, for each model whose adapter was
taken, `ANSWERS/<model>.safetensors`: what its adapter adds to each layer. Neither a GPU nor vLLM's compiled parts are needed: the
models have no weights and no pass is made. The one thing replaced is the platform, which is set to the CPU's.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import vllm
import vllm.platforms
from safetensors.torch import save_file
from vllm.platforms.cpu import CpuPlatform

vllm.platforms._current_platform = CpuPlatform()

from vllm.config import VllmConfig, set_current_vllm_config  # noqa: E402 — the platform first
from vllm.distributed import init_distributed_environment, initialize_model_parallel  # noqa: E402
from vllm.engine.arg_utils import AsyncEngineArgs  # noqa: E402
from vllm.entrypoints.cli.serve import ServeSubcommand  # noqa: E402
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest  # noqa: E402
from vllm.lora.request import LoRARequest  # noqa: E402
from vllm.lora.worker_manager import WorkerLoRAManager  # noqa: E402
from vllm.model_executor.model_loader.utils import initialize_model  # noqa: E402
from vllm.renderers.hf import safe_apply_chat_template  # noqa: E402
from vllm.tokenizers import get_tokenizer  # noqa: E402
from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: E402


def parsed(command: list[str]) -> Any:
    """The arguments of a `vllm serve`, as its command line takes them."""
    parser = FlexibleArgumentParser(prog="vllm")
    serve = ServeSubcommand()
    serve.subparser_init(parser.add_subparsers(dest="subparser"))
    arguments = parser.parse_args(["serve", *command])
    serve.validate(arguments)
    arguments.model = arguments.model_tag  # as `serve` does
    return arguments


def sampling(config: VllmConfig, request: dict[str, Any], eos: int) -> dict[str, Any]:
    """How a request would be sampled, and at which tokens its reply would end."""
    defaults = config.model_config.get_diff_sampling_param()
    params = ChatCompletionRequest.model_validate(request).to_sampling_params(request["max_tokens"], defaults)
    params.update_from_generation_config(config.model_config.try_get_generation_config(), eos)
    settings = {name: getattr(params, name) for name in request if name not in ("model", "messages")}
    return settings | {"stops": sorted(params.all_stop_token_ids)}


def loaded(manager: WorkerLoRAManager, number: int, path: str) -> tuple[str, dict[str, torch.Tensor]]:
    """Load an adapter: why it is refused, or what it adds, B A, to each part of each layer."""
    try:
        manager.add_adapter(LoRARequest(f"adapter {number}", number, path))
    except ValueError as error:
        return str(error), {}
    manager._adapter_manager.activate_adapter(number)
    added = {}
    for name, module in manager._adapter_manager.modules.items():
        if isinstance(module.lora_a_stacked, torch.Tensor):
            continue  # embeddings and head, which our adapters leave alone
        for part, (a, b) in enumerate(zip(module.lora_a_stacked, module.lora_b_stacked, strict=True)):
            added[f"{name}.{part}"] = (b[0, 0].float() @ a[0, 0].float()).contiguous()
    manager.remove_adapter(number)
    return "", added


def answer(entry: dict[str, Any], out: Path) -> dict[str, Any]:
    """All that is asked of one model."""
    args = parsed(entry["command"])
    engine = AsyncEngineArgs.from_cli_args(args)
    engine.dtype = "float32"  # to compare with peft's
    engine.enforce_eager = True
    config = engine.create_engine_config()
    tokenizer = get_tokenizer(args.model)
    result: dict[str, Any] = {
        "lora_modules": [[module.name, module.path] for module in args.lora_modules],
        "served_model_name": args.served_model_name,
        "architecture": config.model_config.architecture,
        "sampling": [sampling(config, request, tokenizer.eos_token_id) for request in entry["requests"]],
    }
    template = Path(args.chat_template).read_text(encoding="utf-8")
    result["prompts"] = [
        safe_apply_chat_template(
            config.model_config, tokenizer, request["messages"], chat_template=template, tokenize=True, add_generation_prompt=True
        )
        for request in entry["requests"]
    ]
    with set_current_vllm_config(config):
        if not torch.distributed.is_initialized():
            init_distributed_environment(1, 0, "tcp://127.0.0.1:0", 0, "gloo")
            initialize_model_parallel(1, 1)
        model = initialize_model(config)
        manager = WorkerLoRAManager(config, torch.device("cpu"), model.embedding_modules)
        manager.create_lora_manager(model, config)
        result["refused"] = {}
        for number, path in enumerate(entry["adapters"], 1):
            result["refused"][path], added = loaded(manager, number, path)
            if added:
                save_file(added, out / f"{entry['name']}.safetensors")
    return result


def main() -> None:
    """Do the job."""
    job, out = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2])
    results = {"version": vllm.__version__, "models": {entry["name"]: answer(entry, out) for entry in job}}
    (out / "answers.json").write_text(json.dumps(results), encoding="utf-8")


if __name__ == "__main__":
    main()
