#!/usr/bin/env bash
# For a machine with a GPU, PyTorch and no network: puts the packages that run.sh needs, in the versions of the lock, into .gpu/.
# Then take the repository there, with .gpu/, data/ and pretrain/models/ in it. PYTHON_VERSION: the one over there.
set -euo pipefail
cd "$(dirname "$0")/../.."
platforms=(manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux1_x86_64)
packages=(Jinja2 MarkupSafe PyYAML accelerate annotated-doc annotated-types anyio click distro filelock fsspec h11 httpcore2
  httpx2 huggingface_hub idna jiter openai packaging pandas peft psutil pydantic pydantic_core python-dateutil regex ruamel.yaml
  safetensors shellingham six sniffio tiktoken tokenizers tqdm transformers truststore typer typing-inspection
  typing_extensions)
rm -rf .gpu
mkdir .gpu
for package in "${packages[@]}"; do
  grep "^$package==" requirements.lock >>.gpu/requirements.txt
done
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
  --python-version "${PYTHON_VERSION:-3.12}" "${platforms[@]/#/--platform=}" --dest .gpu -r .gpu/requirements.txt
du -sh .gpu
