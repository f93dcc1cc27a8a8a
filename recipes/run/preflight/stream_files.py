"""Is the stream whole: manifest, chunks, test sets, and the images that they name?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from data_prep.files import numbered_jsonl
from data_prep.stream import MANIFEST, Stream, StreamError
from recipes.baselines.replay import MEMORY
from recipes.config.schema import Recipe
from recipes.run.chunk_data import missing_text, open_recipe_stream
from recipes.run.preflight.finding import Finding
from recipes.run.preflight.free_space import done_chunks
from recipes.run.scoring.named_scorers import scorer_problems
from recipes.run_folder.layout import RunLayout

SHOWN = 3


def check_stream(recipe: Recipe) -> Iterator[Finding]:
    """Whether every file that the run will read is the one that the manifest describes."""
    data = recipe.data
    if not (Path(data.stream) / MANIFEST).is_file():
        made = " (the run does this itself)" if data.source == "mini" else ""
        yield Finding("data", missing_text(data) + made, stops=not made)
        return
    try:
        stream = open_recipe_stream(recipe)
    except StreamError as error:
        yield Finding("data", str(error))
        return
    yield from (Finding("eval.scorer", text) for text in scorer_problems(recipe, stream))
    chunks = chunks_to_come(recipe)
    yield from _empty(stream, chunks)
    yield from _too_few(recipe, stream)
    broken = _broken(stream.verify_chunk, chunks)
    broken += _broken(lambda task: stream.verify_tests([task]), recipe.eval.tasks or stream.tasks)
    again = data.prepare or "copy the whole folder, or prepare the stream again"
    for text in _shown(broken, "files of the stream"):
        yield Finding("data", f"{text}. Get them: {again}")
    if not broken:  # what the files name is only known of whole ones
        for text in _shown(_absent_images(recipe, stream, chunks), "images"):
            yield Finding("data", f"{text}. Get them: {again}")


def _empty(stream: Stream, chunks: Sequence[int]) -> Iterator[Finding]:
    for index in chunks:
        file = stream.chunk_file(index)
        if not stream.chunk(index).samples or (file.is_file() and not file.stat().st_size):
            yield Finding(
                "data",
                f"{file} is empty: there is nothing to train on in chunk {index} of data.stream; "
                "prepare the stream again or set data.chunks below it",
            )


def _too_few(recipe: Recipe, stream: Stream) -> Iterator[Finding]:
    """Trainings with fewer samples than processes, of which the host would leave all out."""
    done, processes = done_chunks(recipe), recipe.processes
    for chunk in recipe.trained_chunks:
        samples = sum(stream.chunk(index).samples for index in recipe.data_chunks(chunk))
        # Beside samples of the past a chunk is filled up to what the processes divide.
        if chunk > done and 0 < samples < processes and not recipe.replays(chunk):
            yield Finding(
                "data",
                f"chunk {chunk} of data.stream has {samples} samples for {processes} processes, "
                "each of which needs one: use fewer (launcher.nproc), or larger chunks",
            )


def chunks_to_come(recipe: Recipe) -> list[int]:
    """The chunks whose samples are still to be trained on: files of others may be gone."""
    done = done_chunks(recipe)
    return [i for chunk in recipe.trained_chunks if chunk > done for i in recipe.data_chunks(chunk)]


def _broken(verify: Callable[..., None], items: Sequence[int] | Sequence[str]) -> list[str]:
    problems = []
    for item in items:
        try:
            verify(item)
        except (StreamError, OSError) as error:
            problems.append(str(error))
    return problems


def _absent_images(recipe: Recipe, stream: Stream, chunks: Sequence[int]) -> list[str]:
    """What each image that is not there, or is empty, is and who asks for it."""
    files = [stream.chunk_file(i) for i in chunks]
    files += [stream.test_file(task) for task in recipe.eval.tasks or stream.tasks]
    # Replay asks for pictures of chunks that are done, whose files may be gone.
    kept = RunLayout(Path(recipe.folder)).replay(done_chunks(recipe)) / MEMORY
    if recipe.replay is not None and chunks and kept.is_file():
        files.append(kept)
    seen: set[str] = set()
    problems = []
    for file in files:
        for number, record in numbered_jsonl(file):
            for image in record.get("images") or []:
                if image in seen:
                    continue
                seen.add(image)
                path = stream.root / image
                if not path.exists() or not path.stat().st_size:
                    what = "is an empty file" if path.exists() else "is not there"
                    problems.append(f"{path} of {file}:{number} {what}")
    return problems


def _shown(problems: list[str], what: str) -> Iterator[str]:
    yield from problems[:SHOWN]
    if len(problems) > SHOWN:
        yield f"{len(problems) - SHOWN} more {what} are missing or damaged"
