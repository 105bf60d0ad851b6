"""`mi-llm chat`: the chat as a service on one machine, in front of a model server, which it starts where none is named.

Reads the study's parameters (instruction, decoding) and, where there is one, the access token in MI_LLM_CHAT_TOKEN; writes the
votes.
"""

import http
import http.client
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import urlsplit

from mi_llm import prompts
from mi_llm.apps import web
from mi_llm.apps.chat import guard, help
from mi_llm.apps.chat.app import Chat, create
from mi_llm.apps.chat.cards import cards
from mi_llm.apps.chat.counselors import Counselors, Manner
from mi_llm.apps.chat.experiment import Record, read
from mi_llm.apps.chat.votes import Votes
from mi_llm.codebook.coding import Text
from mi_llm.parent import RUN
from mi_llm.problem import Problem
from mi_llm.study import Study

SHORTEST_TOKEN = 16
LOCAL = "127.0.0.1"


def serve(
    study: Study, model_url: str, host: str, port: int, votes: Path, *,
    address: str = "", proxies: str = "", experiment: Path | None = None,
) -> None:  # fmt: skip
    """Run the chat until it is interrupted. Without a `model_url`, the study's own models are served here meanwhile.

    `address` is where people reach the chat, where that is not host and port: for instance an https proxy. `proxies` are the
    proxies' addresses and networks. `experiment` is the file of an experiment; what is kept of it lies beside the votes.
    """
    token = os.environ.get("MI_LLM_CHAT_TOKEN", "").strip()
    if token and len(token) < SHORTEST_TOKEN:
        raise Problem("MI_LLM_CHAT_TOKEN", "a short token", f"at least {SHORTEST_TOKEN} characters", "make a longer random one")
    for name, url in (("--model-url", model_url), ("--address", address)):
        if url and not (urlsplit(url).scheme in ("http", "https") and urlsplit(url).hostname):
            raise Problem(name, url, "an address such as http://127.0.0.1:8000/v1", "correct it")
    known = web.trusted(proxies)
    guard.ready()
    help.bundled()
    listening = web.listen(host, port)
    tried = read(experiment) if experiment else None
    kept = Votes(votes)
    record = Record(tried, votes.with_suffix(".experiment.jsonl")) if tried else None
    notice = Text(study.report.notice, study.report.notice_zh)
    clients = cards(study.language)
    here = web.reached_at(listening, host, address)
    try:
        with nullcontext(model_url) if model_url else own_models(study) as models:
            chat = Chat(
                Counselors(models), manner(study), kept, clients, notice, study.language,
                address=address, token=token, record=record,
            )  # fmt: skip
            web.warn("Messages", host, here, known)
            if not web.loopback(host) and not token:
                print("Anybody who can reach this address may use the chat; set MI_LLM_CHAT_TOKEN to require a token.")
            if record:
                people = len(record.experiment.participants)
                print(f"An experiment with {people} participants. Consents and talks are kept: {record.path}")
            opened = f"The chat is open: {here}   Ctrl+C closes it. Models: {models}   Votes: {votes}"
            web.run(create(chat), listening, known, opened, timeout_graceful_shutdown=3)
    finally:
        kept.close()
        if record:
            record.close()


@contextmanager
def own_models(study: Study) -> Iterator[str]:
    """Serve the study's models on this machine during the block: yields the server's address once they are loaded.

    Raises Problem where the server ends before; it has then said why.
    """
    with web.listen(LOCAL, 0) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mi_llm", "serve", "--study", study.params, "--host", LOCAL, "--port", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "MI_LLM_TOKEN"} | {RUN: str(os.getpid())}
    print(f"Loading the models of study {study.name} …", flush=True)
    server = subprocess.Popen(command, env=environment)  # noqa: S603 — our own command
    try:
        while not ready(port):
            if server.poll() is not None:
                remedy = (
                    f"see the message above; mi-llm reproduce {study.name} makes the models; --model-url names another server"
                )
                raise Problem("mi-llm serve", "ended before it was ready", "the models of a study that has run", remedy)
            time.sleep(0.2)
        yield f"http://{LOCAL}:{port}/v1"
    finally:
        server.terminate()
        server.wait()


def ready(port: int) -> bool:
    """Whether the model server at a port of this machine says that its models are loaded."""
    connection = http.client.HTTPConnection(LOCAL, port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def manner(study: Study) -> Manner:
    """How the study asks its models, but with the chat's own instruction: the study's claims 20 years of practice."""
    return Manner(
        instruction=prompts.render(study, "chat"),
        placement=study.finetune.instruction_placement,
        options=study.respond,
    )
