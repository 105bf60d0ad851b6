"""What we hand to vLLM, which needs a GPU: the adapters, the command line, the requests, against facts of its pinned version.

Where vLLM's own code can be had, it is asked too, without a GPU (`under_vllm.py`). MI_LLM_VLLM names the folders, joined by
colons, that hold `vllm` and what it imports beyond this environment:

    pip download --no-deps vllm==0.22.1 && unzip -d vllm vllm-*.whl
    pip install --no-deps --target beside aiohappyeyeballs aiohttp aiosignal attrs cachetools cbor2 cloudpickle dill einops \
        frozenlist gguf ijson jmespath jsonschema jsonschema-specifications llguidance mistral-common \
        model-hosting-container-standards msgspec multidict openai-harmony opencv-python-headless opentelemetry-api \
        partial-json-parser pillow propcache py-cpuinfo pybase64 pycountry pydantic-extra-types python-multipart pyzmq \
        referencing regex rpds-py sentencepiece sniffio apache-tvm-ffi uvloop watchfiles xgrammar yarl
    MI_LLM_VLLM=$PWD/vllm:$PWD/beside python -m pytest tests/models/test_vllm.py
"""

import json
import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from repository import ROOT
from ruamel.yaml import YAML
from safetensors.torch import load_file
from tiny import MODELS, model_server, study_with
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mi_llm import storage
from mi_llm.dialog import Dialog, write_rounds
from mi_llm.engine.counselor import chats, questions
from mi_llm.engine.load import chat_format, checkpoint, load
from mi_llm.engine.template import FORMATS, LLAMA3, ChatFormat, prompt, unmarked
from mi_llm.models.base import base
from mi_llm.models.export import export
from mi_llm.models.finetune import adapt, save_adapter, write_log
from mi_llm.models.respond import respond
from mi_llm.models.vllm import write_for_vllm
from mi_llm.study import Study
from mi_llm.study import load as load_study

FACTS = YAML(typ="safe").load((ROOT / "tests/references/vllm.yaml").read_text(encoding="utf-8"))
GPU = YAML(typ="safe")
GPU.constructor.add_constructor("!reset", lambda *_: None)
PAPER = {"baichuan2-7b": "baichuan2", "glm-4-9b": "glm4", "llama-3-8b-chinese": "llama3"}


@pytest.fixture
def tuned(workspace: Path, checkpoints: Path) -> Study:
    """A study of the three architectures whose adapters, as stage `finetune` writes them, change what the models say."""
    study = load_study(Path("mini/params.yaml"))
    for model in study.models:
        base(study, model)
        adapted = adapt(load(checkpoint(study, model), "float32")[0], study.finetune, seed=1)
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "lora_B" in name:
                    weight.normal_(0, 0.02)
        folder = study.folder / "finetune" / model
        save_adapter(adapted, folder / "adapter", model)
        write_for_vllm(folder / "adapter", folder / "vllm")
        (folder / "adapter/README.md").write_text("# a card\n", encoding="utf-8")
        write_log(folder / "dvclive", [{"step": 1, "loss": 1.0, "learning_rate": 0.1, "gradient_norm": 1.0}])
    return study


def shapes_of(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of each part of a decoder layer, by what an adapter calls it."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries, keys = (config[name] * config["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    return {
        "q_proj": (queries, hidden), "k_proj": (keys, hidden), "v_proj": (keys, hidden), "o_proj": (hidden, queries),
        "gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner),
    }  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_every_weight_of_an_adapter_for_vllm_has_a_name_and_shape_that_vllm_expects(tuned: Study, model: str) -> None:
    """The study's own, and the one that leaves it (`export adapter`)."""
    config = storage.read_json(checkpoint(tuned, model) / "config.json")
    shapes, rank = shapes_of(config), tuned.finetune.lora.rank
    expected = dict[str, tuple[int, int]]()
    for layer in range(config["num_hidden_layers"]):
        for module, parts in FACTS["layers"][config["architectures"][0]].items():
            for part in parts:
                name = f"base_model.model.model.layers.{layer}.{module.split('.')[0]}.{part}"
                outputs, inputs = shapes[part]
                expected |= {f"{name}.lora_A.weight": (rank, inputs), f"{name}.lora_B.weight": (outputs, rank)}
    export(tuned, model, Path("dist/mi"))
    exported = Path("dist/mi/vllm") if Path("dist/mi/vllm").is_dir() else Path("dist/mi")
    for folder in (tuned.folder / "finetune" / model / "vllm", exported):
        weights = load_file(folder / "adapter_model.safetensors")
        assert {name: tuple(weight.shape) for name, weight in weights.items()} == expected
        settings = storage.read_json(folder / "adapter_config.json")
        assert settings["target_modules"] == sorted(settings["target_modules"])
        assert {name.rsplit(".", 1)[-1] for name in settings["target_modules"]} == {*shapes}
        for name in ("bias", "modules_to_save", "use_dora"):
            assert settings[name] == FACTS["adapter"][name]
        assert (settings["r"], settings["lora_alpha"], settings["use_rslora"]) == (rank, tuned.finetune.lora.alpha, False)
        assert (settings["rank_pattern"], settings["alpha_pattern"]) == ({}, {})  # vLLM does not read them


@pytest.mark.parametrize("model", MODELS)
def test_equal_adapters_give_equal_bytes_and_llamas_layout_stays_as_it_is(tuned: Study, model: str, tmp_path: Path) -> None:
    folder = tuned.folder / "finetune" / model
    write_for_vllm(folder / "adapter", tmp_path / "again")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        written = (folder / "vllm" / name).read_bytes()
        assert (tmp_path / "again" / name).read_bytes() == written
        assert ((folder / "adapter" / name).read_bytes() == written) == (model != "tiny-glm4")


def test_the_halves_add_to_gate_and_up_what_the_fused_adapter_adds(tuned: Study) -> None:
    """peft merges both forms: one into GLM, the other into a Llama whose gate and up are the halves of GLM's layer."""
    glm = AutoModelForCausalLM.from_pretrained(checkpoint(tuned, "tiny-glm4"))
    sizes = {name: value for name, value in glm.config.to_dict().items() if re.search("size|num_|head_dim", name)}
    llama = LlamaForCausalLM(LlamaConfig(**sizes))
    for theirs, ours in zip(llama.model.layers, glm.model.layers, strict=True):
        gate, up = ours.mlp.gate_up_proj.weight.data.chunk(2)
        theirs.mlp.gate_proj.weight.data, theirs.mlp.up_proj.weight.data = gate.clone(), up.clone()
    before = glm.model.layers[0].mlp.gate_up_proj.weight.detach().clone()
    folder = tuned.folder / "finetune" / "tiny-glm4"
    merged = PeftModel.from_pretrained(glm, folder / "adapter").merge_and_unload()
    halves = PeftModel.from_pretrained(llama, folder / "vllm").merge_and_unload()
    assert not torch.equal(merged.model.layers[0].mlp.gate_up_proj.weight, before)
    for fused_layer, split_layer in zip(merged.model.layers, halves.model.layers, strict=True):
        both = torch.cat([split_layer.mlp.gate_proj.weight, split_layer.mlp.up_proj.weight])
        torch.testing.assert_close(both, fused_layer.mlp.gate_up_proj.weight, rtol=0, atol=1e-7)


# ---- the command line


def compose(settings: dict[str, str]) -> dict[str, Any]:
    """The service `model` of the GPU file, its variables filled in as Compose does."""

    def filled(text: str) -> str:
        return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda match: settings.get(match[1]) or match[2], text)

    service: dict[str, Any] = GPU.load(filled((ROOT / "docker-compose.gpu.yml").read_text(encoding="utf-8")))["services"]["model"]
    return service


def documented() -> list[str]:
    """The arguments of `vllm serve` on the page about clusters."""
    page = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
    block = re.search(r"^vllm serve (.+?)\n```", page, re.M | re.S)
    assert block
    return shlex.split(block[1].replace("\\\n", " "))


def options_of(command: list[str]) -> dict[str, str]:
    """The options of a command by name; a flag has no value."""
    return dict(option.partition("=")[::2] for option in command[1:])


@pytest.mark.parametrize("command", [compose({})["command"], documented()], ids=["compose", "docs"])
def test_the_command_line_has_only_options_and_values_that_vllm_takes(command: list[str]) -> None:
    for name, value in options_of(command).items():
        allowed = FACTS["options"][name]
        assert bool(value) == (allowed != "flag"), name
        if isinstance(allowed, list):
            assert value in map(str, allowed), name


def test_the_page_about_clusters_has_the_options_of_the_container() -> None:
    served, page = options_of(compose({})["command"]), options_of(documented())
    bare = {name: value.replace("/study/", "") for name, value in served.items()}
    assert page == bare | {"--host": "127.0.0.1"}


@pytest.mark.parametrize("model", PAPER)
def test_the_container_serves_each_model_of_the_paper_as_the_study_has_it(model: str) -> None:
    study = load_study(ROOT / "params.yaml")
    form = study.models[model].chat_format
    assert {name: study.models[name].chat_format for name in study.models} == PAPER
    service = compose({"MI_LLM_MODEL": model, "MI_LLM_CHAT_FORMAT": form})
    assert service["image"].startswith(f"vllm/vllm-openai:v{FACTS['version']}@sha256:")
    assert service["command"][0] == f"/study/{checkpoint(study, model)}"
    options = options_of(service["command"])
    assert options["--lora-modules"] == f"{model}+mi=/study/{study.folder / 'finetune' / model / 'vllm'}"
    assert (options["--served-model-name"], options["--generation-config"]) == (model, "vllm")
    assert (ROOT / options["--chat-template"].removeprefix("/study/")).read_text(encoding="utf-8") == FORMATS[form].template
    assert int(options["--max-lora-rank"]) >= study.finetune.lora.rank
    names = {line.partition("=")[0] for line in service["environment"]}
    assert {name for name in names if name.startswith("VLLM_")} == {*FACTS["environment"]}


def test_the_ranks_that_the_settings_name_are_those_that_vllm_takes() -> None:
    text = (ROOT / ".env.example").read_text(encoding="utf-8")
    (line,) = re.findall(r"^# .*finetune\.lora\.rank.*$", text, re.M)
    assert [int(number) for number in re.findall(r"\d+", line)] == FACTS["options"]["--max-lora-rank"]


# ---- requests and chats


@pytest.mark.parametrize("decoding", ["greedy", "sample"])
def test_a_request_says_every_sampling_setting(tuned: Study, sample_dialogs: list[Dialog], tmp_path: Path, decoding: str) -> None:
    write_rounds(tuned.folder / "split" / "test_rounds.jsonl", list(sample_dialogs[0].rounds()))
    with model_server(tmp_path / "server.log") as address:
        study = study_with(engine="server", server=address, decoding=decoding)
        respond(study, "tiny-llama3")
    recorded = (study.folder / "respond/tiny-llama3/tuned.cassette.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = study.respond.sampling
    drawn = {"temperature": chosen.temperature, "top_k": chosen.top_k, "top_p": chosen.top_p}
    wanted = FACTS["sampling"] | (drawn if decoding == "sample" else {"temperature": 0.0})
    for line in recorded:
        request = json.loads(line)["request"]
        assert {name: request.get(name) for name in wanted} == wanted
        assert ("seed" in request) == (decoding == "sample")


def test_a_checkpoint_names_the_stop_tokens_of_its_chat_format_whatever_it_came_with(
    study: Study, checkpoints: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    came = checkpoints / "tiny-llama3/generation_config.json"
    storage.write_json(came, {"eos_token_id": tokenizer.convert_tokens_to_ids("<|eot_id|>"), "top_k": 5})
    base(study, "tiny-llama3")
    written = storage.read_json(checkpoint(study, "tiny-llama3") / "generation_config.json")
    assert written == {"eos_token_id": LLAMA3.stop_ids(tokenizer), "top_k": 5}


def test_a_server_fills_the_exported_template_in_as_golden_prompts(tuned: Study) -> None:
    """vLLM renders the folder's template with transformers, and is given text in which nothing reads as a mark."""
    for model in MODELS:
        folder = Path("dist") / model
        export(tuned, model, folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        stops = {*storage.read_json(folder / "generation_config.json")["eos_token_id"]}
        assert stops == {*FORMATS[tuned.models[model].chat_format].stop_ids(tokenizer)}
        for golden in storage.read_json(folder / "golden.json")["prompts"]:
            text = tokenizer.apply_chat_template(unmarked(golden["messages"]), add_generation_prompt=True, tokenize=False)
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == golden["prompt"]
            assert not stops & {*golden["reply"]}


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_a_template_that_a_server_fills_in_gives_the_tokens_of_respond(
    form: ChatFormat, study: Study, tokenizer: PreTrainedTokenizerFast, sample_dialogs: list[Dialog]
) -> None:
    """A server tokenizes a chat as a whole, the study round by round."""
    rounds = [sample for dialog in sample_dialogs[:8] for sample in dialog.rounds()]
    for chat in chats(rounds, study):
        filled = tokenizer.apply_chat_template(chat, chat_template=form.template, add_generation_prompt=True)
        assert filled["input_ids"] == prompt(tokenizer, form, chat)


# ---- vLLM itself


def under_vllm(job: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """What vLLM's own code says to a job (`under_vllm.py`)."""
    vllm_path = os.environ.get("MI_LLM_VLLM", "")
    if not vllm_path and not find_spec("vllm"):
        pytest.skip("no vLLM here (MI_LLM_VLLM)")
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": vllm_path, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    script = [sys.executable, str(ROOT / "tests/support/under_vllm.py"), str(folder / "job.json"), str(folder)]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answers: dict[str, Any] = storage.read_json(folder / "answers.json")
    return answers


def served_here(study: Study, model: str) -> list[str]:
    """The container's command line for a model of this study, with the paths of this machine."""
    service = compose({"MI_LLM_MODEL": model, "MI_LLM_CHAT_FORMAT": study.models[model].chat_format})
    runs = [word.replace("/study/runs/paper", str(study.folder.absolute())) for word in service["command"]]
    return [word.replace("/study/", f"{ROOT}/") for word in runs]


def added_by(adapter: Path) -> dict[str, torch.Tensor]:
    """What peft's adapter adds to the weights, alpha / rank * B A, by module."""
    settings, weights = storage.read_json(adapter / "adapter_config.json"), load_file(adapter / "adapter_model.safetensors")
    scaling = settings["lora_alpha"] / settings["r"]
    added = {}
    for name in weights:
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            b = weights[f"{module}.lora_B.weight"]
            added[module.removeprefix("base_model.model.")] = scaling * b @ weights[name]
    return added


@pytest.mark.slow
def test_vllm_takes_our_command_line_adapters_requests_and_templates(
    tuned: Study, sample_dialogs: list[Dialog], tmp_path: Path
) -> None:
    """Its own code for arguments, adapters, sampling and chats; what it adds to each layer is what peft adds."""
    rounds = [sample for dialog in sample_dialogs[:2] for sample in dialog.rounds()]
    folders = {model: (tuned.folder / "finetune" / model).absolute() for model in tuned.models}
    job: list[dict[str, Any]] = []
    for model in tuned.models:
        asked = [question.request for question in questions(tuned, rounds, model, "tuned")]
        asked += [question.request for question in questions(study_with(decoding="sample"), rounds, model, "tuned")]
        job.append(
            {
                "name": model,
                "command": served_here(tuned, model),
                "requests": asked,
                "adapters": [str(folders[model] / form) for form in ("adapter", "vllm")],
            }
        )
    answers = under_vllm(job, tmp_path)
    assert answers["version"] == FACTS["version"]
    chosen = tuned.respond.sampling
    for entry in job:
        model, answer = entry["name"], answers["models"][entry["name"]]
        _, tokenizer = load(checkpoint(tuned, model), "float32")
        form = chat_format(tuned, model)
        assert answer["lora_modules"] == [[f"{model}+mi", entry["adapters"][1]]]
        assert answer["served_model_name"] == [model]
        refused = answer["refused"]
        assert ("gate_up_proj" in refused[entry["adapters"][0]]) == (model == "tiny-glm4")
        assert refused[entry["adapters"][1]] == ""
        theirs, ours = load_file(tmp_path / f"{model}.safetensors"), added_by(folders[model] / "vllm")
        for module, parts in FACTS["layers"][answer["architecture"]].items():
            names = [name for name in ours if name.rsplit(".", 1)[-1] == parts[0]]
            assert names
            for name in names:
                layer = name.rsplit(".", 2)[0]
                for number, part in enumerate(parts):
                    added = ours.pop(f"{layer}.{module.split('.')[0]}.{part}")
                    torch.testing.assert_close(theirs.pop(f"{layer}.{module}.{number}"), added, rtol=1e-5, atol=1e-8)
        assert (ours, theirs) == ({}, {})
        for request, sampling in zip(entry["requests"], answer["sampling"], strict=True):
            drawn = request["temperature"] > 0
            assert sampling.pop("stops") == sorted(form.stop_ids(tokenizer))
            assert sampling == FACTS["sampling"] | {
                "temperature": chosen.temperature if drawn else 0.0,
                "top_k": chosen.top_k if drawn else 0,
                "top_p": chosen.top_p if drawn else 1.0,
                "max_tokens": tuned.respond.max_new_tokens,
            } | ({"seed": request["seed"]} if drawn else {})
        for request, ids in zip(entry["requests"], answer["prompts"], strict=True):
            assert ids == prompt(tokenizer, form, request["messages"])
