"""Servers a DVC remote may be on, started for a test at a free port of this machine, and a relay that can stop the traffic."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from getpass import getuser
from pathlib import Path

import pytest
from edits import edited
from repository import ROOT

DAV_EXT = Path("/usr/lib/nginx/modules/ngx_http_dav_ext_module.so")
USER, PASSWORD = "ann", "a long sentence"  # of servers that live for a test


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


class Relay:
    """Hands bytes on between clients and a port; told to, it stops after a number of bytes, and everybody waits."""

    def __init__(self, target: int) -> None:
        self.target, self.limit, self.passed = target, 0, 0
        self.held = threading.Event()
        self.sockets: list[socket.socket] = []
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listening.getsockname()[1])
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listening.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                client.close()
                continue
            self.sockets += [client, server]
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self.pump, args=(source, sink), daemon=True).start()

    def pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                self.passed += len(data)
                if self.limit and self.passed > self.limit:
                    self.held.set()
                if self.held.is_set():
                    return  # the connection stays, and nothing comes
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def hold_after(self, count: int) -> None:
        """Let so many more bytes pass, then none; `held` says when."""
        self.passed, self.limit = 0, count
        self.held.clear()

    def cut(self) -> None:
        """Break all connections, and serve new ones without a limit."""
        for connection in self.sockets:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # close alone would wait for the thread that reads
            connection.close()
        self.sockets.clear()
        self.limit = 0
        self.held.clear()


class Server:
    """A process that serves a DVC remote. `settings` are the remote's, `url` its address at a port."""

    settings: dict[str, str]
    remembers = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.process: subprocess.Popen[bytes] | None = None
        (folder / "files").mkdir()
        self.prepare()
        self.start()

    def prepare(self) -> None:
        """Write what the server reads."""

    def command(self) -> list[str]:
        raise NotImplementedError

    def url(self, port: int) -> str:
        raise NotImplementedError

    def options(self, port: int) -> dict[str, str]:
        """The remote's settings when the server is reached at a port."""
        return self.settings

    def start(self) -> None:
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=log, stderr=log, start_new_session=True, cwd=self.folder, env=self.environment()
            )
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self.process.poll() is None, (self.folder / "server.log").read_text()
                assert time.monotonic() < until, "the server does not listen"
                time.sleep(0.05)
            else:
                return

    def environment(self) -> dict[str, str]:
        return dict(os.environ)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


class Ssh(Server):
    """OpenSSH's server: own host key, login by key only."""

    def prepare(self) -> None:
        self.keygen("host")
        self.keygen("person")
        self.keygen("stranger")
        shutil.copy(self.folder / "person.pub", self.folder / "authorized")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # sshd started by root insists on it
        (self.folder / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
            f"AuthorizedKeysFile {self.folder}/authorized\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
            "PermitRootLogin prohibit-password\nSubsystem sftp internal-sftp\n"
        )
        self.settings = {"keyfile": f"{self.folder}/person"}

    def keygen(self, name: str) -> None:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name], check=True)

    def command(self) -> list[str]:
        return [path_of("sshd"), "-D", "-e", "-f", f"{self.folder}/sshd_config"]

    def url(self, port: int) -> str:
        return f"ssh://{getuser()}@127.0.0.1:{port}{self.folder}/files"


class Http(Server):
    """The bundle's store: nginx with docker/store.conf, its paths and port changed."""

    def prepare(self) -> None:
        changes = {
            "/tmp/": f"{self.folder}/",  # first: the folder may lie there
            "listen 8900": f"listen 127.0.0.1:{self.port}",
            "/run/secrets/store-users": f"{self.folder}/users",
            "/data/": f"{self.folder}/",
        }
        self.write(edited((ROOT / "docker/store.conf").read_text(encoding="utf-8"), changes))
        self.settings = {"auth": "basic", "user": USER, "password": PASSWORD, "method": "PUT"}

    def write(self, text: str) -> None:
        if os.geteuid() == 0:
            text = f"user {getuser()};\n{text}"  # else its workers could not write here
        (self.folder / "nginx.conf").write_text(text, encoding="utf-8")
        (self.folder / "users").write_text(f"{USER}:{{PLAIN}}{PASSWORD}\n")

    def command(self) -> list[str]:
        return [path_of("nginx"), "-p", str(self.folder), "-c", f"{self.folder}/nginx.conf", "-g", "daemon off;"]

    def url(self, port: int) -> str:
        return f"http://127.0.0.1:{port}"


class Webdav(Http):
    """nginx as a whole WebDAV server: it also lists and makes folders."""

    def prepare(self) -> None:
        temporary = "".join(f"{kind}_temp_path {self.folder}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
        self.write(
            f"load_module {DAV_EXT};\npid {self.folder}/pid;\nerror_log stderr warn;\nevents {{}}\n"
            f"http {{ access_log off; client_max_body_size 0; client_body_temp_path {self.folder}/incoming; {temporary}\n"
            f"server {{ listen 127.0.0.1:{self.port}; root {self.folder}/files;\n"
            f'auth_basic "remote"; auth_basic_user_file {self.folder}/users;\n'
            "location / { dav_methods PUT DELETE MKCOL COPY MOVE; dav_ext_methods PROPFIND OPTIONS; create_full_put_path on; }\n"
            "}}\n"
        )
        self.settings = {"user": USER, "password": PASSWORD}

    def url(self, port: int) -> str:
        return f"webdav://127.0.0.1:{port}"


class S3(Server):
    """moto's server: the S3 protocol, kept in memory. After its first request it knows nobody's keys if `strict`."""

    remembers = False
    strict = False

    def prepare(self) -> None:
        self.settings = {"access_key_id": USER, "secret_access_key": PASSWORD, "region": "us-east-1"}

    def environment(self) -> dict[str, str]:
        return dict(os.environ) | ({"INITIAL_NO_AUTH_ACTION_COUNT": "1"} if self.strict else {})

    def command(self) -> list[str]:
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def start(self) -> None:
        super().start()
        import boto3

        boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            aws_access_key_id=USER,
            aws_secret_access_key=PASSWORD,
            region_name="us-east-1",
        ).create_bucket(Bucket="lab")

    def url(self, port: int) -> str:
        return "s3://lab/study"

    def options(self, port: int) -> dict[str, str]:
        return self.settings | {"endpointurl": f"http://127.0.0.1:{port}"}


class StrictS3(S3):
    """The same, but strict about keys."""

    strict = True


KINDS: dict[str, type[Server]] = {"ssh": Ssh, "http": Http, "webdav": Webdav, "s3": S3}


def path_of(program: str) -> str:
    """The program's path; servers lie in folders that not everybody searches."""
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    assert path is not None
    return path


def need(kind: str) -> None:
    """Skip the test, with the reason, where the server or DVC's client for it is not installed."""
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"
    if kind in ("http", "webdav") and shutil.which("nginx", path=search) is None:
        pytest.skip("no nginx here (Debian: nginx)")
    if kind == "webdav" and not DAV_EXT.exists():
        pytest.skip("no WebDAV listing in this nginx (Debian: libnginx-mod-http-dav-ext)")
    if kind == "ssh" and (shutil.which("sshd", path=search) is None or shutil.which("ssh-keygen") is None):
        pytest.skip("no SSH server here (Debian: openssh-server)")
    modules = {"ssh": ["dvc_ssh"], "webdav": ["dvc_webdav"], "s3": ["dvc_s3", "moto", "flask"]}
    for module in modules.get(kind, []):
        pytest.importorskip(module, reason=f"no {module} here (make remotes)")
