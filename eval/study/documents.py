"""What stands between the markers of a document, made anew out of the CSVs.

    <!-- study: scores docs/results/tiny -->
    everything here is written by `python -m eval.study`
    <!-- study ends -->

The parts, each with the folders or files that it takes:

    scores FOLDER            the table of scores
    figure FOLDER IMAGE      accuracy of the tasks seen so far, drawn into IMAGE, of the methods
                             that ran on the most streams
    machines FOLDER FOLDER   what another machine or library changes
    streams FOLDER           a section for every folder of results below FOLDER
    finding FOLDER           the finding of the largest of them in three sentences
    below FOLDER             the methods that end below plain LoRA
    routing FOLDER           measures of routing beside what was forgotten
    tasks FOLDER             the preset beside LoRA with slow weights, task by task
    across FOLDER            the same two on every stream whose results lie below FOLDER
    goals FOLDER             the goals that were set before, and which of them are met

`methods=lora,er` behind scores or figure leaves the others out, as `run_stream.sh` names them, and
trials of these with other settings than a block at its defaults.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from data_prep.files import write_text
from eval.charts.figure import counted
from eval.compare.names import printed
from eval.study import across_streams, goals, routing_table, stream_figure, tables, task_table
from eval.study.groups import Study, read_study

DOCUMENTS = (Path("README.md"), Path("docs/study.md"))
RESULTS = Path("docs/results")
# How many paths each takes.
PARTS = {"scores": 1, "figure": 2, "machines": 2, "streams": 1, "finding": 1, "goals": 1}
PARTS |= {"below": 1, "routing": 1, "tasks": 1, "across": 1}
_BLOCK = re.compile(
    r"(?P<head><!-- study: (?P<words>[^\n]+?) -->\n)(?P<body>.*?)(?P<end><!-- study ends -->)",
    re.DOTALL,
)
_MARKERS = re.compile(r"<!--\s*study\b", re.IGNORECASE)


@dataclass
class Made:
    """Everything that the CSVs make: texts of documents, and figures by file."""

    texts: dict[Path, str] = field(default_factory=dict)
    figures: dict[Path, Study] = field(default_factory=dict)


def make(root: Path) -> Made:
    """Return the documents of a repository as its CSVs have them.

    Raises:
        ValueError: a marker asks for what is not known, has no end, or a CSV is damaged.
        FileNotFoundError: a document is not there.
    """
    made = Made()
    for name in DOCUMENTS:
        text = (root / name).read_text(encoding="utf-8")
        # Every comment that begins like a marker: one that is misspelt would leave its text alone.
        if len(_MARKERS.findall(text)) != 2 * len(_BLOCK.findall(text)):
            raise ValueError(
                f"{name}: a marker stands alone or is misspelt; each '<!-- study: ... -->' needs "
                "its '<!-- study ends -->'"
            )
        made.texts[name] = _BLOCK.sub(partial(_block, root, name, made), text)
    return made


def _block(root: Path, document: Path, made: Made, block: re.Match[str]) -> str:
    part, *given = block["words"].split()
    chosen = part in ("scores", "figure") and given and given[-1].startswith("methods=")
    methods = given.pop().removeprefix("methods=").split(",") if chosen else []
    if PARTS.get(part) != len(given):
        known = ", ".join(f"{name} ({counted(count, 'path')})" for name, count in PARTS.items())
        raise ValueError(f"{document}: found '<!-- study: {block['words']} -->', expected {known}")
    folders = [root / word for word in given]
    if part == "figure":
        study = read_study(folders[0]).only(methods).on_all_streams()
        body = _figure(root, document, study, Path(given[1]), made)
    elif part in _OF_FOLDER:
        body = _OF_FOLDER[part](folders[0])
    elif part == "machines":
        body = tables.machines(*map(read_study, folders))
    else:
        body = tables.scores(read_study(folders[0]).only(methods))
    return f"{block['head']}{body}\n{block['end']}"


def studies(results: Path) -> list[Study]:
    """Return the studies of all folders that hold a CSV, the one with most runs last.

    A folder named NAME-study has streams that chose nothing: those come after all others. One named
    NAME_CONFIGURATION holds runs of NAME on another configuration: no study.
    """
    folders = sorted(path.parent for path in results.glob("*/*.csv"))
    found = [read_study(folder) for folder in dict.fromkeys(folders) if "_" not in folder.name]
    return sorted(found, key=lambda study: (study.folder.name.endswith("-study"), len(study.runs)))


def _streams(results: Path) -> str:
    return "\n\n".join(_sections(results)) or tables.NOTHING


def _sections(results: Path) -> Iterator[str]:
    for study in sorted(studies(results), key=lambda study: study.folder.name):
        yield f"### `{study.folder.name}`"
        yield f"{tables.winner(study)}."
        yield tables.scores(study, whole=True)
        yield tables.lead_table(study)
        if apart := tables.spread_of_seeds(study):
            yield apart
        for other in sorted(results.glob(f"{study.folder.name}_*")):
            yield f"The same on another configuration (`{other.name}`):"
            yield tables.machines(study, read_study(other))


def _finding(results: Path) -> str:
    found = studies(results)
    if not found:
        return tables.NOTHING
    more = (tables.keepers(found[-1]), goals.summary(results))
    said = (tables.winner(found[-1]), *(f"{text[0].upper()}{text[1:]}" for text in more))
    return "\n".join(f"{sentence}." for sentence in said)


_OF_FOLDER: dict[str, Callable[[Path], str]] = {
    "streams": _streams,
    "finding": _finding,
    "goals": goals.table,
    "below": lambda folder: tables.below(read_study(folder), printed("lora")),
    "routing": lambda folder: routing_table.table(read_study(folder)),
    "tasks": task_table.table,
    "across": lambda results: across_streams.table(studies(results)),
}


def _figure(root: Path, document: Path, study: Study, image: Path, made: Made) -> str:
    if not study.groups:
        return tables.NOTHING
    made.figures[image] = study
    link = os.path.relpath(root / image, (root / document).parent)
    return f"![{stream_figure.described(study)}]({link})"


def write(root: Path) -> list[Path]:
    """Write documents and figures; return those that changed."""
    made, changed = make(root), []
    for name, text in made.texts.items():
        if (root / name).read_text(encoding="utf-8") != text:
            write_text(root / name, text)
            changed.append(name)
    for image, study in made.figures.items():
        if not _shown(root / image, study):
            write_text(root / image, stream_figure.drawn(study))
            changed.append(image)
    return changed


def first_difference(root: Path) -> str:
    """Return where documents and CSVs differ first: file, line, both texts; empty: nowhere."""
    made = make(root)
    for name, text in made.texts.items():
        found, expected = ((root / name).read_text(encoding="utf-8").split("\n"), text.split("\n"))
        for number, line in enumerate(expected):
            there = found[number] if number < len(found) else ""
            if there != line:
                return f"{name}:{number + 1}: found {there!r}, the CSVs give {line!r}"
        if len(found) > len(expected):
            return f"{name}:{len(expected) + 1}: found {found[len(expected)]!r}, expected the end"
    for image, study in made.figures.items():
        if not _shown(root / image, study):
            return f"{image}: was not drawn from the CSVs in {study.folder.relative_to(root)}"
    return ""


def _shown(image: Path, study: Study) -> bool:
    return image.is_file() and stream_figure.shows(image.read_text(encoding="utf-8"), study)
