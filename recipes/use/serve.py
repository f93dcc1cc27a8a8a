"""`serve`: the host's own OpenAI-compatible server with a run's adapter; `chat` talks to one."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from eval.question_form import Form, form_of
from recipes.processes.host_process import HostProcess
from recipes.processes.log_errors import cause_of, exit_text
from recipes.run.commands import deploy_command
from recipes.use.ask import own_questions
from recipes.use.finished_adapter import FinishedAdapter, UseError, adapter_text
from strlora_tuner.options import SERVE_FORM, SERVE_KEY

LOOPBACK, PORT = "127.0.0.1", 8000
_EVERYWHERE = {"0.0.0.0": LOOPBACK, "::": "::1"}


@dataclass(frozen=True)
class Server:
    """A server that answers.

    Attributes:
        url: ends in /v1.
        model: its name, which a request must give.
        key: which a request must carry; None: none is asked for.
        adapter: what the host said of the adapter that it loaded; None: the base model.
        log: of the host.
        form: in which a question that comes alone is put.
    """

    url: str
    model: str
    key: str | None
    adapter: str | None
    log: Path
    form: Form


def serve(
    adapter: FinishedAdapter,
    ready: Callable[[Server], None],
    host: str = LOOPBACK,
    port: int = PORT,
    key: str | None = None,
) -> None:
    """Runs the server until a signal's exception, or one that `ready` raises, ends it.

    Args:
        adapter: who answers.
        ready: called once, when the server answers; while it works, the server does so, too.
        host: the address to listen on.
        port: 0 takes a free one.
        key: that clients must give; None: anybody who reaches the port may ask.

    Raises:
        UseError: the port is taken, or the host failed.
    """
    port = _free_port(host, port)
    name, form = adapter.recipe.name, form_of(own_questions(adapter))
    with adapter.beside() as layout:
        log, closed = layout.eval_log(adapter.chunk), layout.side / "no_files_for_clients"
        closed.mkdir()  # empty: the host opens files of no other folder for its clients
        command = deploy_command(adapter.alone, layout, adapter.chunk, host, port, name)
        more = {"SWIFT_MEDIA_ALLOWED_DIRS": str(closed), **({SERVE_KEY: key} if key else {})}
        more[SERVE_FORM] = json.dumps(asdict(form))
        command = replace(command, environment={**command.environment, **more})
        near = _EVERYWHERE.get(host, host)
        url = f"http://{f'[{near}]' if ':' in near else near}:{port}"
        announced = False

        def tick() -> None:
            nonlocal announced
            if not announced and _answers(url):
                announced = True
                ready(Server(f"{url}/v1", name, key, adapter_text(log), log, form))

        code = HostProcess(command, log).wait(tick)
        # It ends by a signal or by what `ready` raises; by itself only when something is wrong.
        raise UseError(f"the server {exit_text(code)}:\n{cause_of(log)}")


def _free_port(host: str, port: int) -> int:
    """The port, if it is free: the host would quietly take the next one.

    Raises:
        UseError: it is taken, or the address is not one of this machine.
    """
    try:
        if not 0 <= port < 2**16:  # getaddrinfo takes what is left of a division
            raise OverflowError("a port is 1 to 65535, or 0 for a free one")
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            # As the server sets it: a port whose last connections are closing counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except (OSError, OverflowError) as error:
        raise UseError(f"cannot listen on {host}:{port} ({error}); give another --port") from error


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
