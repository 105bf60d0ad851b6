"""An adapter made ready for the hub: plain peft loads it, the hub reads its card, what its base's license asks for goes along."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard, metadata_load
from peft import PeftModel
from repository import ROOT
from safetensors.torch import load_file, save_file
from tiny import give_adapter, study_of
from transformers import AutoModelForCausalLM

from mi_llm import storage
from mi_llm.models import card, hub
from mi_llm.models.export import export
from mi_llm.models.finetune import write_log
from mi_llm.models.licenses import known
from mi_llm.models.vllm import write_for_vllm
from mi_llm.problem import Problem
from mi_llm.study import Study, load

NUMBERS = {
    "records": 2, "cut": 0, "left_out": 0, "steps": 1, "tokens": 90, "labelled_tokens": 40, "trainable_parameters": 1000,
    "first_loss": 5.0, "last_loss": 4.0,
}  # fmt: skip


def trained(study: Study, model: str) -> Path:
    """What `finetune` leaves beside an adapter: the card and the curve."""
    tuned = study.folder / "finetune" / model
    (tuned / "adapter").mkdir(parents=True, exist_ok=True)
    text = card.card(study, model, card.source_of(study, model), NUMBERS)
    (tuned / "adapter/README.md").write_text(text, encoding="utf-8")
    write_log(tuned / "dvclive", [{"step": 1, "loss": 5.0, "learning_rate": 0.1, "gradient_norm": 1.0}])
    return tuned


@pytest.fixture
def tiny_study(study: Study, checkpoints: Path) -> Study:
    give_adapter(study, "tiny-llama3")
    trained(study, "tiny-llama3")
    return study


@pytest.fixture
def paper(tiny_study: Study, workspace: Path) -> Study:
    """The paper's study with adapters and licenses in their places (a tiny model's weights: nothing here reads them)."""
    shutil.copy(ROOT / "params.yaml", workspace)
    study = load(Path("params.yaml"))
    storage.write_text(Path(study.finetune.instruction), "You are a counselor.")
    for model in study.models:
        adapter = trained(study, model) / "adapter"
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(tiny_study.folder / "finetune/tiny-llama3/adapter" / name, adapter)
        license = study.folder / "base" / model / "LICENCE" / hub.entry_of(study, model).license_file
        license.parent.mkdir(parents=True)
        shutil.copytree("pretrain/models/tiny-llama3", study.path("base", model, "checkpoint"))
        license.write_text(f"the license of {model}\n")
    return study


def test_a_tiny_adapter_loads_from_its_repository_and_says_cc0(tiny_study: Study) -> None:
    export(tiny_study, "tiny-llama3", Path("dist/tiny-mi"))
    folder = Path("dist/tiny-mi")
    assert {file.name for file in folder.iterdir()} == {
        "README.md", "SHA256SUMS", "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja", "check.py",
        "generation_config.json", "golden.json", "loss.tsv", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    base = AutoModelForCausalLM.from_pretrained("pretrain/models/tiny-llama3")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        plain = base(ids).logits
        tuned = PeftModel.from_pretrained(base, folder)(ids).logits
    assert not torch.allclose(plain, tuned)

    text = (folder / "README.md").read_text(encoding="utf-8")
    weights = hashlib.sha256(Path("pretrain/models/tiny-llama3/model.safetensors").read_bytes()).hexdigest()
    assert weights in text
    assert "CC0 1.0" in text
    assert "runs/" not in text
    assert "dvclive" not in text
    data = ModelCard.load(folder / "README.md").data
    assert (data.license, data.library_name, data.language) == ("cc0-1.0", "peft", ["zh"])


def test_two_exports_have_the_same_bytes(tiny_study: Study) -> None:
    export(tiny_study, "tiny-llama3", Path("a/tiny-mi"))
    export(tiny_study, "tiny-llama3", Path("b/tiny-mi"))
    assert {file.name: file.read_bytes() for file in Path("a/tiny-mi").iterdir()} == {
        file.name: file.read_bytes() for file in Path("b/tiny-mi").iterdir()
    }


@pytest.mark.parametrize(
    ("model", "name", "shown", "license"),
    [
        ("glm-4-9b", "glm-4-9b-mi", "Built with glm-4", "other"),
        ("llama-3-8b-chinese", "Llama-3-8B-Chinese-mi", "Built with Meta Llama 3", "llama3"),
        ("baichuan2-7b", "counselor-mi", "Baichuan 2 Model Community License Agreement", "other"),
    ],
)
def test_what_the_license_asks_for_goes_along(model: str, name: str, shown: str, license: str, paper: Study) -> None:
    export(paper, model, Path(name))
    entry = hub.entry_of(paper, model)
    kept = f"LICENSE{Path(entry.license_file).suffix}"
    assert Path(name, kept).read_text() == f"the license of {model}\n"
    assert shown in Path(name, "NOTICE").read_text(encoding="utf-8")
    assert shown in Path(name, "README.md").read_text(encoding="utf-8")
    head = metadata_load(Path(name, "README.md"))
    assert head is not None
    assert (head["base_model"], head["base_model_revision"]) == (entry.repository, entry.revision)
    assert head["license"] == license
    if license == "other":
        assert head["license_link"] == entry.license.address
        assert head["license_name"]


@pytest.mark.parametrize(
    ("model", "name", "says"),
    [
        ("glm-4-9b", "my-counselor", "begins with “glm-4”"),
        ("glm-4-9b", "glm-42", "begins with “glm-4”"),
        ("llama-3-8b-chinese", "mi-Llama-3", "begins with “Llama-3”"),
        ("baichuan2-7b", "my counselor", "no name of a repository"),
    ],
)
def test_a_name_that_may_not_be_is_refused_and_nothing_is_written(model: str, name: str, says: str, paper: Study) -> None:
    with pytest.raises(Problem, match=says):
        export(paper, model, Path("dist") / name)
    assert not Path("dist").exists()


def test_what_is_missing_or_in_the_way_is_said_and_nothing_is_left(paper: Study) -> None:
    (paper.folder / "base/glm-4-9b/LICENCE/LICENSE").unlink()
    with pytest.raises(Problem, match="LICENSE: no such file"):
        export(paper, "glm-4-9b", Path("dist/glm-4-mi"))
    assert list(Path("dist").iterdir()) == []
    Path("dist/Llama-3-mi").mkdir()
    with pytest.raises(Problem, match="is there already"):
        export(paper, "llama-3-8b-chinese", Path("dist/Llama-3-mi"))


def test_every_license_of_the_papers_models_has_its_notice(paper: Study) -> None:
    for model in paper.models:
        assert known()[paper.models[model].license].notice


def of_folder(license_key: str) -> Study:
    """The miniature with one model in a folder of one's own, tuned."""
    study = study_of("mine", "llama3", license_key)
    give_adapter(study, "mine")
    trained(study, "mine")
    return study


@pytest.fixture
def own(checkpoints: Path, workspace: Path) -> Path:
    """A folder with a model of one's own."""
    return Path(shutil.copytree(checkpoints / "tiny-llama3", workspace / "mine/mine"))


@pytest.mark.usefixtures("own")
def test_an_adapter_of_a_model_of_unknown_license_is_not_exported() -> None:
    study = of_folder("unknown")
    card_of_training = (study.path("finetune", "mine", "adapter") / "README.md").read_text(encoding="utf-8")
    assert ModelCard.load(study.path("finetune", "mine", "adapter", "README.md")).data.license == "unknown"
    assert "CC0" not in card_of_training
    assert "must not be passed on" in card_of_training
    with pytest.raises(Problem, match=r"(?s)models\.mine\.license: unknown.*one of apache-2\.0, cc0-1\.0.*licenses\.yaml"):
        export(study, "mine", Path("dist/mi"))
    assert not Path("dist").exists()


def test_a_license_learned_after_the_training_goes_along_with_its_text(own: Path) -> None:
    (own / "LICENSE.txt").write_text("Apache License", encoding="utf-8")
    of_folder("unknown")
    study = study_of("mine", "llama3", "apache-2.0")
    export(study, "mine", Path("dist/mi"))
    text = Path("dist/mi/README.md").read_text(encoding="utf-8")
    assert ModelCard.load("dist/mi/README.md").data.license == "apache-2.0"
    assert "The base model's license is the Apache License 2.0 (https://www.apache.org/licenses/LICENSE-2.0)." in text
    assert text.count("## License\n") == 1
    assert "must not be passed on" not in text
    assert "tiny model" not in text
    assert Path("dist/mi/LICENSE.txt").read_text(encoding="utf-8") == "Apache License"


# ---- alone, without the study

BARE = """
import runpy, sys
class No:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mi_llm", "dvc", "pydantic"):
            raise ImportError(name)
sys.meta_path.insert(0, No())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def checked(folder: Path, base: str) -> subprocess.CompletedProcess[str]:
    """Run an exported folder's own program in a Python that has neither the study's package nor what that needs."""
    command = [sys.executable, "-c", BARE, str(folder.absolute() / "check.py"), *([base] if base else [])]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, env=environment | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_an_exported_adapter_answers_the_golden_prompts_alone_as_it_did_in_the_study(study: Study, checkpoints: Path) -> None:
    for model in study.models:
        give_adapter(study, model, strength=0.5)
        tuned = trained(study, model)
        write_for_vllm(tuned / "adapter", tuned / "vllm")
        folder = Path("dist") / f"{model}-mi"
        export(study, model, folder)
        golden = storage.read_json(folder / "golden.json")
        assert len({tuple(prompt["reply"]) for prompt in golden["prompts"]}) > 1, "the answers do not depend on the prompts"
        assert len(golden["prompts"]) == 10
        done = checked(folder, str((checkpoints / model).absolute()))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "10 of 10 answers are equal" in done.stdout
        assert (folder / "vllm").is_dir() == (model == "tiny-glm4")  # the other layouts are vLLM's own


def test_an_adapter_that_was_changed_on_its_way_is_found(study: Study, checkpoints: Path) -> None:
    folder = Path("dist/tiny-mi")
    give_adapter(study, "tiny-llama3", strength=0.5)
    trained(study, "tiny-llama3")
    export(study, "tiny-llama3", folder)
    assert "python check.py BASE" in checked(folder, "").stderr
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: -weight if "lora_B" in name else weight for name, weight in weights.items()},
        folder / "adapter_model.safetensors",
        {"format": "pt"},
    )
    done = checked(folder, str((checkpoints / "tiny-llama3").absolute()))
    assert done.returncode == 1
    assert "differs" in done.stdout


def test_an_export_whose_files_give_other_prompts_is_refused(study: Study, checkpoints: Path) -> None:
    """A tokenizer that begins each text with a letter gives other tokens for a whole dialog than for its parts."""
    path = checkpoints / "tiny-llama3/tokenizer.json"
    storage.write_json(path, storage.read_json(path) | {"normalizer": {"type": "Prepend", "prepend": "X"}})
    give_adapter(study, "tiny-llama3")
    trained(study, "tiny-llama3")
    with pytest.raises(Problem, match=r"other prompts than the study's(?s:.*)mi-llm template check tiny-llama3"):
        export(study, "tiny-llama3", Path("dist/tiny-mi"))
    assert list(Path("dist").iterdir()) == []
