"""The commands of `bash recipes/run_stream.sh`: what each does, and its exit codes."""

from __future__ import annotations

COMMANDS: dict[str, str] = {
    "run": "train and evaluate chunk after chunk, from where the run stopped",
    "watch": "train and evaluate whatever arrives in a folder, until it is stopped",
    "sweep": "run a recipe over methods, seeds and values, here or as one SLURM array",
    "plan": "count steps, tokens, parameters and memory of a run; hours where they were measured",
    "status": "show where a run or a sweep stands, from its files alone, also from another machine",
    "validate": "check a recipe and name all its mistakes at once",
    "report": "write report.html from a run's files, finished or not",
    "reproduce": "repeat a recorded run in a new folder and list what differs",
    "clean": "list files that the run no longer needs; --yes removes them",
    "ask": "ask a run's model one question, with or without pictures",
    "chat": "talk with a run's model in the terminal",
    "serve": "serve a run's model with an OpenAI-compatible API",
    "export": "copy a run's adapter into a folder for others, with its model card",
    "push": "send a run's adapter, as export writes it, to the Hugging Face hub",
}
# The commands that use a run's model: they take what the run recorded, and no overrides.
USES: tuple[str, ...] = ("ask", "chat", "serve", "export", "push")
_STOPPED = "stopped by signal n"
EXIT_CODES: dict[str, dict[str, str]] = {  # besides 2
    "run": {"0": "done", "1": "failed", "128+n": _STOPPED},
    "watch": {"0": "--once: all is up to date", "1": "failed", "128+n": _STOPPED},
    "sweep": {
        "0": "all runs are finished, submitted, or printed with --dry-run",
        "1": "a run failed",
        "128+n": _STOPPED,
    },
    "plan": {"0": "printed"},
    "status": {"0": "printed", "1": "--verify found damage, or state.json cannot be read"},
    "validate": {"0": "the recipe is valid"},
    "report": {"0": "written", "1": "the run has not started, or its files cannot be read"},
    "reproduce": {
        "0": "the same",
        "1": "an adapter or a score differs, a chunk is missing, or a run failed",
        "128+n": _STOPPED,
    },
    "clean": {"0": "done", "1": "the run is being worked on, or its state cannot be read"},
    "ask": {"0": "answered", "1": "no such adapter, another base model, or no answer"},
    "chat": {"0": "ended", "1": "no such adapter, or another base model"},
    "serve": {
        "0": "stopped by Ctrl-C or SIGTERM",
        "1": "no such adapter, another base model, or the port is taken",
    },
    "push": {"0": "sent, or printed with --dry-run", "1": "no such adapter, or the hub refused it"},
    "export": {"0": "written", "1": "no such adapter, or it cannot be exported so"},
}
