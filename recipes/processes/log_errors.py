"""Why a host process failed: the lines of its log that say so, and exit codes in words."""

from __future__ import annotations

import re
import signal
from pathlib import Path

_ERROR = re.compile(
    r"^(\[rank\d+\]:\s*)?[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit|Killed|Invalid|Iteration)\b"
)
SHOWN = 12  # lines of an exception
# --verbose: all that the process that failed has said, instead of the cause alone.
verbose = False
# torchrun's first words on a process that failed.
_FAILED_RANK = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+) \(pid: (\d+)\)")
_PROGRESS = re.compile(r"\d%\||^\{'")  # a bar, or a step's metrics, which are kept elsewhere
_RANK = re.compile(r"^\[rank\d+\]: ?")  # torch's mark of a process, also on empty lines
_CHAINED = re.compile("(direct cause of the following|During handling of the above) exception")
_TRACEBACK = "Traceback (most recent call last)"
_FILE = re.compile(r"Failed to (read|load) .*file '")  # of the JSON reader, which names the file
_FOLLOWS = re.compile("ChildFailedError|SignalException")  # what torchrun itself raises then


def last_error(log: Path) -> list[str]:
    """The lines of a log that say why a process failed: the last exception, else its end.

    Where torchrun says that a process was killed, this is the cause, and what others say follows.
    """
    try:
        with log.open("rb") as file:
            file.seek(0 if verbose else max(0, log.stat().st_size - 200_000))
            text = file.read().decode(errors="replace")
    except OSError as error:
        return [f"(the log cannot be read: {error})"]
    _, command, last = text.rpartition("\n$ ")
    text = last.partition("\n")[2] if command else text  # of what was started last
    lines = [
        line.rstrip()
        # Progress bars rewrite their line with a carriage return; an error may follow on it.
        for line in text.replace("\r", "\n").splitlines()
        if _RANK.sub("", line).strip()
    ]
    if verbose:
        return lines
    first = _FAILED_RANK.search(text)
    # Negative: killed by a signal. A worker that failed by itself has left a traceback above, which
    # says more.
    if first and int(first.group(1)) < 0:
        number, rank, pid = first.groups()
        return [f"local rank {rank} (process {pid}) {exit_text(int(number))}"]
    for index in range(len(lines) - 1, -1, -1):
        if _ERROR.match(lines[index]) and not _FOLLOWS.search(lines[index]):
            return [*_first_cause(lines, index), *lines[index : index + SHOWN]]
    return [line for line in lines if not _PROGRESS.search(line)][-SHOWN:]


def cause_of(log: Path) -> str:
    """The same, indented: a part of a message."""
    return "\n".join(f"    {line}" for line in last_error(log))


def _first_cause(lines: list[str], last: int) -> list[str]:
    """What an exception was raised from, where a chain of them ends in line `last`; else nothing.

    The innermost one says what happened ("JSON parse error"), the last often only where.
    """
    heads = [index for index in range(last) if _TRACEBACK in lines[index]]
    if not heads or not _CHAINED.search(lines[heads[-1] - 1]):
        return []
    while len(heads) > 1 and _CHAINED.search(lines[heads[-1] - 1]):
        heads.pop()
    frames = range(heads[-1] + 1, last)
    indented = [i for i in frames if _RANK.sub("", lines[i]).startswith((" ", "\t"))]
    start = next((i for i in frames if i not in indented), last)
    end = next((i for i in range(start, last) if _CHAINED.search(lines[i])), last)
    named = [line for line in lines[:start] if _FILE.search(line)][-1:]
    return [*named, *lines[start : min(end, start + SHOWN)]]


def exit_text(code: int) -> str:
    """An exit code in words; a kill without our doing is most often the kernel's out-of-memory."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory? see dmesg)" if name == "SIGKILL" else ""
        return f"was ended by {name}{hint}"
    return f"ended with exit code {code}"
