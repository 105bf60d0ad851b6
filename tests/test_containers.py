"""How `./reproduce.sh` starts a container: Docker's own client, an engine that only answers, and a Compose that takes notes."""

import json
import os
import re
import shutil
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from repository import ROOT
from ruamel.yaml import YAML

COMPOSE = """#!/bin/sh
case "$1" in
  docker-cli-plugin-metadata) echo '{"SchemaVersion": "0.1.0", "Vendor": "test", "Version": "2.24.0"}' ;;
  *) shift && echo "$MI_LLM_GPU_DRIVER|$MI_LLM_GPUS|$*" >> "$NOTES" ;;
esac
"""
RUNC = {"runc": {"path": "runc", "status": {"features": '{"hooks": ["prestart"]}'}}}
NVIDIA = {**RUNC, "nvidia": {"path": "nvidia-container-runtime"}}
CDI = {"DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}, {"Source": "cdi", "ID": "nvidia.com/gpu=all"}]}


class Engine(BaseHTTPRequestHandler):
    """Answers the questions that `docker info` and `docker ps` put, as Docker's API describes the answers."""

    info: dict[str, Any]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        answer = json.dumps(self.info if self.path.endswith("/info") else []).encode()
        self.send_response(200)
        self.send_header("Api-Version", "1.43" if "DiscoveredDevices" not in self.info else "1.50")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(answer)

    def address_string(self) -> str:
        return "a socket"

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Path]:
    """A folder with the script and the paper's parameters, an engine's socket, Compose, and a driver's `nvidia-smi`."""
    if shutil.which("docker") is None:
        pytest.skip("no Docker client")
    for name in ("reproduce.sh", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name, text in (("config/cli-plugins/docker-compose", COMPOSE), ("bin/nvidia-smi", "#!/bin/sh\n")):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    with socketserver.ThreadingUnixStreamServer(str(tmp_path / "socket"), Engine) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path
        server.shutdown()


def reproduced(bundle: Path, info: dict[str, Any]) -> tuple[int, list[list[str]]]:
    """The exit status of `./reproduce.sh paper --container` with such an engine, and what Compose noted: driver, GPUs, words."""
    Engine.info = {"SecurityOptions": [], "Runtimes": RUNC, **info}
    surroundings = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("DOCKER_", "MI_LLM_"))},
        "PATH": f"{bundle / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "DOCKER_HOST": f"unix://{bundle / 'socket'}",
        "DOCKER_CONFIG": str(bundle / "config"),
        "NOTES": str(bundle / "notes"),
    }
    done = subprocess.run(
        [bundle / "reproduce.sh", "paper", "--container"], env=surroundings, capture_output=True, text=True, check=False
    )
    notes = (bundle / "notes").read_text(encoding="utf-8").splitlines() if (bundle / "notes").exists() else []
    return done.returncode, [line.split("|", 2) for line in notes if not line.endswith("|version")]


def test_the_runtime_of_nvidias_toolkit_is_asked_for_the_gpu(bundle: Path) -> None:
    status, (build, run) = reproduced(bundle, {"Runtimes": NVIDIA, "CDISpecDirs": ["/etc/cdi"]})
    files = "--file docker-compose.yml --file docker-compose.gpu.yml"
    assert (status, build, run) == (0, ["", "", f"{files} build study"], ["", "", f"{files} run --rm study reproduce paper"])


def test_a_gpu_that_only_cdi_offers_is_asked_for_by_its_name(bundle: Path) -> None:
    status, (_, run) = reproduced(bundle, {"CDISpecDirs": ["/etc/cdi"], **CDI})
    assert (status, run[:2]) == (0, ["cdi", "nvidia.com/gpu=all"])


@pytest.mark.parametrize("name", ["nvidia.yaml", "nvidia.json"])
def test_an_older_engine_lists_folders_and_one_of_them_holds_the_gpus_specification(bundle: Path, name: str) -> None:
    folders = [str(bundle / "cdi"), str(bundle / "my cdi")]
    assert reproduced(bundle, {"CDISpecDirs": folders}) == (2, [])
    (bundle / "my cdi").mkdir()
    kinds = {
        "nvidia.yaml": "cdiVersion: 0.5.0\nkind: nvidia.com/gpu\n",
        "nvidia.json": '{"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu"}',
    }
    (bundle / "my cdi" / name).write_text(kinds[name], encoding="utf-8")
    status, (_, run) = reproduced(bundle, {"CDISpecDirs": folders})
    assert (status, run[:2]) == (0, ["cdi", "nvidia.com/gpu=all"])


def test_the_gpu_file_asks_for_what_the_script_found() -> None:
    text = (ROOT / "docker-compose.gpu.yml").read_text(encoding="utf-8")
    (device,) = YAML(typ="safe").load(text.replace("!reset ", ""))["x-gpu"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "${MI_LLM_GPU_DRIVER:-nvidia}"
    assert device["device_ids"] == ["${MI_LLM_GPUS:-all}"]


def test_the_page_names_every_folder_that_a_host_with_selinux_must_label() -> None:
    compose = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    mounted = {
        *re.findall(r"source: \"\$\{(\w+)", compose),
        *re.findall(r"- \$\{(\w+):-nothing\}:/", compose),
        "MI_LLM_STORE_USERS",
    }
    assert len(mounted) == 5
    page = (ROOT / "docs/containers.md").read_text(encoding="utf-8")
    section = page.partition("## Hosts with SELinux")[2].partition("\n## ")[0]
    assert {name for name in mounted if f"`{name}`" not in section} == set()
    assert "`:z`" in section


def test_dockerfile_and_compose_name_one_base() -> None:
    base = re.search(r"^ARG BASE_IMAGE=(\S+@sha256:[0-9a-f]{64})$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.M)
    assert base is not None
    for file in ("docker-compose.yml", "docker-compose.gpu.yml"):
        named = re.findall(r"MI_LLM_BASE_IMAGE:-([^}]+)", (ROOT / file).read_text(encoding="utf-8"))
        assert set(named) <= {base[1]}, file
