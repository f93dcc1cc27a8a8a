"""`chat`: a conversation with a run's model in the terminal, turn after turn."""

from __future__ import annotations

import base64
import json
import mimetypes
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from data_prep.files import Record
from eval.question_form import Form
from recipes.use.ask import checked_turns
from recipes.use.finished_adapter import FinishedAdapter, UseError
from recipes.use.serve import LOOPBACK, Server, serve

HELP = "/picture FILE adds a picture to the next question, /new forgets all, /end (Ctrl-D) ends"


class Ended(Exception):
    """The user ended the conversation."""


def chat(adapter: FinishedAdapter, pictures: Sequence[Path], where: Path) -> None:
    """Starts a server for this conversation alone and talks until the user ends it.

    Args:
        adapter: who answers.
        pictures: of the first question.
        where: the folder in which names of pictures start.

    Raises:
        UseError: the host failed.
    """

    def talk(server: Server) -> None:
        print("; ".join(filter(None, [adapter.title, server.adapter])), file=sys.stderr)
        print("\n".join(filter(None, [server.form.note, HELP])), file=sys.stderr, flush=True)
        say = partial(print, flush=True)
        converse(server, server.form, _typed_lines(), pictures, where, say)
        # serve() goes on until an exception ends it.
        raise Ended

    try:  # no one else knows the key
        serve(adapter, talk, LOOPBACK, 0, secrets.token_urlsafe(24))
    except Ended:
        return


def _typed_lines() -> Iterator[str]:
    while True:
        try:
            yield input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return


def converse(
    server: Server,
    form: Form,
    lines: Iterator[str],
    pictures: Sequence[Path],
    where: Path,
    say: Callable[[str], None],
) -> None:
    """Answers line after line; every turn sees those before it. What goes wrong is said.

    Args:
        server: that answers.
        form: how the run's questions are put.
        lines: what the user types.
        pictures: of the first question.
        where: the folder in which names of pictures start.
        say: shows a text.
    """
    turns: list[Record] = []
    shown: list[Path] = []
    added = list(pictures)
    for line in lines:
        word, _, rest = line.strip().partition(" ")
        if word == "/end":
            return
        if word == "/new":
            turns, shown, added = [], [], []
        elif word == "/picture":
            added.append(where / rest.strip())
        elif word.startswith("/"):
            say(HELP)
        elif line.strip():
            try:
                asked = checked_turns(form, line, added)
                # The form's turns before a question (a system prompt, say) open a conversation
                # once.
                asked = [*turns, asked[-1]] if turns else asked
                answer = _ask(server, asked, [*shown, *added])
            except UseError as error:
                say(f"({error})")
                added = []
                continue
            turns = [*asked, {"role": "assistant", "content": answer}]
            shown, added = [*shown, *added], []
            say(answer)


def _ask(server: Server, turns: Sequence[Record], pictures: Sequence[Path]) -> str:
    images = []
    for picture in pictures:
        # As text in the request: the server opens no file that a client names, see serve.py.
        kind = mimetypes.guess_type(picture.name)[0] or "image/png"
        images.append(f"data:{kind};base64,{base64.b64encode(picture.read_bytes()).decode()}")
    body = {"model": server.model, "messages": turns, "images": images}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {server.key}"}
    request = urllib.request.Request(
        f"{server.url}/chat/completions", json.dumps(body).encode(), headers
    )
    try:
        with urllib.request.urlopen(request) as response:
            return str(json.load(response)["choices"][0]["message"]["content"])
    except urllib.error.HTTPError as error:
        raise UseError(f"no answer: {error.read().decode(errors='replace')}") from error
    except OSError as error:
        raise UseError(f"the server does not answer: {error}; its log: {server.log}") from error
