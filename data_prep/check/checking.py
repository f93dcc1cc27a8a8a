"""The whole check: samples, images, relations, lengths, statistics."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import nlargest
from itertools import islice
from pathlib import Path

from data_prep.check.lengths import Lengths, LongSample, spread
from data_prep.check.pictures import inspect_all
from data_prep.check.relations import Relations
from data_prep.check.sample_rules import Sample, scan
from data_prep.check.stream_folder import DataFile, Layout, check_counts
from data_prep.errors import ERROR, WARNING, DataError, Problem
from data_prep.images import Picture, resolve
from data_prep.parallel import cores, ordered_map
from data_prep.progress_bar import Progress
from data_prep.sources.fields import Columns, StartOfFile, Uneven
from data_prep.sources.readers import parse, read_items
from data_prep.sources.records import HostSample, check_host

BATCH = 500
LIMIT = 10 << 20  # bytes by which `datasets` fixes the columns of a file


@dataclass(frozen=True)
class Settings:
    """What to check, and how severe a finding is.

    Attributes:
        near: compare images by difference hash.
        decode: decode images; False only looks whether they are there.
        lengths: how many tokens are allowed; None: they are not counted.
        allow: codes that are warnings even where they would be errors.
        strict: warnings are errors.
    """

    near: bool = False
    decode: bool = True
    lengths: Lengths | None = None
    allow: tuple[str, ...] = ()
    strict: bool = False


@dataclass
class Result:
    """What a check found.

    Attributes:
        problems: all findings. bad: (file name, line) of samples with an error.
        samples: good samples. seen: samples by task in each file, refused ones under "".
        pictures: by image name. tokens: of each good sample whose tokens were counted.
        typical: the tokens of evenly spread ones among them. too_long: those with too many.
    """

    layout: Layout
    problems: list[Problem] = field(default_factory=list)
    bad: set[tuple[str, int]] = field(default_factory=set)
    samples: list[Sample] = field(default_factory=list)
    seen: dict[str, Counter[str]] = field(default_factory=dict)
    pictures: dict[str, Picture] = field(default_factory=dict)
    tokens: list[int] = field(default_factory=list)
    typical: list[int] = field(default_factory=list)
    too_long: list[LongSample] = field(default_factory=list)
    uneven: dict[str, Uneven] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def errors(self) -> list[Problem]:
        """Return the findings because of which the data must not be trained on."""
        return [problem for problem in self.problems if problem.severity == ERROR]


class Check:
    """One check of one folder."""

    def __init__(
        self,
        layout: Layout,
        settings: Settings,
        workers: int | None = None,
        known: Mapping[str, Picture] | None = None,
    ) -> None:
        """`known` are pictures, by name, that need not be decoded again."""
        self.layout, self.settings, self.known = layout, settings, known or {}
        self.workers = workers or cores()
        self.result = Result(layout)

    def run(self) -> Result:
        """Check everything; return what was found."""
        started, result = time.monotonic(), self.result
        for problem in self.layout.problems:
            self._note(problem)
        for number, file in enumerate(self.layout.files):
            self._scan_file(number, file)
        for problem in check_counts(self.layout, result.seen):
            self._note(problem)
        # Images first: samples are then compared by the bytes of their pictures.
        self._look_at_images()
        self._compare()
        if self.settings.lengths:
            self._measure(self.settings.lengths)
        result.seconds = time.monotonic() - started
        return result

    def _note(self, problem: Problem, place: tuple[str, int] | None = None) -> None:
        """Keep a problem; `place` is the file and line of the sample that it makes unusable."""
        settings = self.settings
        if problem.code in settings.allow:
            problem = replace(problem, severity=WARNING)
        elif settings.strict:
            problem = replace(problem, severity=ERROR)
        self.result.problems.append(problem)
        if place and problem.severity == ERROR:
            self.result.bad.add(place)

    def _on(self, sample: Sample, code: str, text: str, severity: str = ERROR) -> None:
        name = self.layout.files[sample.file].name
        where = f"{self.layout.root / name}:{sample.line}"
        self._note(Problem(code, where, text, severity, sample.id), (name, sample.line))

    def _scan_file(self, number: int, file: DataFile) -> None:
        path = self.layout.root / file.name
        size = path.stat().st_size
        seen = self.result.seen[file.name] = Counter()
        columns, progress = Columns(), Progress("samples")
        # One process for small files: starting others takes longer than reading.
        workers = self.workers if size > 4 << 20 else 1
        try:
            items = read_items(path)
            # By hand: itertools.batched is there from Python 3.12 on.
            batches = iter(lambda: list(islice(items, BATCH)), [])
            for scanned in ordered_map(partial(scan, path, number, file), batches, workers):
                self.result.samples += scanned.samples
                seen.update(sample.task for sample in scanned.samples)
                seen[""] += len(scanned.problems)
                for line, problem in scanned.problems:
                    self._note(problem, (file.name, line))
                columns.merge(scanned.columns)
                progress(len(self.result.samples), None, file.name)
        except DataError as refused:
            self._note(refused.at(str(path)))
        progress.close()
        if file.task is None and columns.samples and size > LIMIT:
            self._check_own_fields(path)
        if uneven := columns.uneven(size, LIMIT):
            self.result.uneven[file.name] = uneven
            text = (
                f"the fields {list(uneven)} are not in every sample or not of one type at every "
                "depth: the host's loader stops there (where they are only missing, in files of "
                "over 10 MB); make the stream with data_prep.chunk, or use --fix"
            )
            self._note(Problem("fields-uneven", str(path), text))

    def _check_own_fields(self, path: Path) -> None:
        """Note the first sample at which the host's loader stops for one of its own fields."""
        # The file is read once more, here in order: batches were scanned in several processes.
        start_of_file = StartOfFile(LIMIT)
        for line, item in read_items(path):
            record = parse(item)
            size = len(item) + 1 if isinstance(item, bytes) else len(str(item))
            if isinstance(record, dict) and (key := start_of_file.late(record, size)):
                text = (
                    f"{key!r} holds what no sample in the first 10 MB holds: the host's loader "
                    "stops here; make smaller chunks, or move such a sample to the front"
                )
                self._note(Problem("fields-late", f"{path}:{line}", text))
                return

    def _look_at_images(self) -> None:
        result, settings = self.result, self.settings
        names = {image for sample in result.samples for image in sample.images}
        result.pictures = {name: self.known[name] for name in names & self.known.keys()}
        result.pictures |= inspect_all(
            self.layout.root,
            self.layout.allowed,
            names - self.known.keys(),
            self.workers,
            settings.near,
            settings.decode,
        )
        warned: set[str] = set()
        for sample in result.samples:
            for image in sample.images:
                self._judge(sample, image, warned)
        result.samples = [sample for sample in result.samples if sample.good]

    def _judge(self, sample: Sample, image: str, warned: set[str]) -> None:
        """Put an image's errors on every sample that uses it, its warnings on the first."""
        picture = self.result.pictures[image]
        for code, text, severity in picture.findings:
            if severity == ERROR:
                sample.good = False
                self._on(sample, code, text)
            elif image not in warned:
                self._on(sample, code, text, severity)
        warned.add(image)
        if sample.size and picture.size and sample.size != picture.size:
            sample.good = False
            text = f"size says {list(sample.size)}, but {image!r} has {list(picture.size)} pixels"
            self._on(sample, "box-size", text)

    def _compare(self) -> None:
        files = self.layout.files
        tests = {number for number, file in enumerate(files) if file.task is not None}
        names = [str(self.layout.root / file.name) for file in files]
        relations = Relations(self.result.samples, tests, self.result.pictures, names)
        for sample, code, text, severity in relations.all(self.settings.near):
            self._on(sample, code, text, severity)

    def _measure(self, lengths: Lengths) -> None:
        samples = self.result.samples
        even, more = self._counted(lengths.most)
        numbers = sorted({*even, *more})
        counts = dict(zip(numbers, lengths.count(self._records(numbers)), strict=True))
        self.result.tokens = list(counts.values())
        self.result.typical = [counts[number] for number in even]
        for number, total in counts.items():
            if total > lengths.max_length:
                self._judge_length(samples[number], total, lengths)

    def _counted(self, most: int | None) -> tuple[list[int], list[int]]:
        """Return the samples to count: evenly spread ones, and those that are likely to be long."""
        samples, pictures = self.result.samples, self.result.pictures
        if most is None or len(samples) <= most:
            return [*range(len(samples))], []
        sizes = [[pictures[i].size or (0, 0) for i in sample.images] for sample in samples]
        pixels = [sum(width * height for width, height in each) for each in sizes]
        texts = [sample.length for sample in samples]
        numbers, each = range(len(samples)), most // 4
        long = nlargest(each, numbers, texts.__getitem__)
        wide = nlargest(each, numbers, pixels.__getitem__)
        return spread(len(samples), max(1, most - 2 * each)), [*long, *wide]

    def _records(self, numbers: list[int]) -> list[HostSample]:
        """Return the samples of these numbers as the host reads them, images by absolute paths."""
        layout, samples = self.layout, self.result.samples
        places = {(samples[number].file, samples[number].line): number for number in numbers}
        records: dict[int, HostSample] = {}
        for file in sorted({file for file, _ in places}):
            for line, item in read_items(layout.root / layout.files[file].name):
                if (file, line) in places:
                    record = records[places[file, line]] = check_host(parse(item))
                    if names := record.get("images"):
                        paths = (resolve(layout.root, name, layout.allowed) for name in names)
                        record["images"] = [str(path.absolute()) for path in paths]
        return [records[number] for number in numbers]

    def _judge_length(self, sample: Sample, total: int, lengths: Lengths) -> None:
        """A training sample that the run skips or cuts is no error; a test question stops it."""
        most, done, file = lengths.max_length, lengths.too_long, self.layout.files[sample.file]
        self.result.too_long.append(
            {
                "file": str(self.layout.root / file.name),
                "line": sample.line,
                "id": sample.id or None,
                "tokens": total,
                "max_length": most,
                "done": done if file.task is None else "stop",
            }
        )
        text = f"{total} tokens, model.max_length is {most}; "
        if file.task is not None:
            self._on(sample, "too-long", f"{text}the evaluation would stop: shorten it")
        elif done == "stop":
            self._on(sample, "too-long", f"{text}the run would stop (data.too_long): shorten it")
        else:
            does = "takes the next in its place" if done == "skip" else "leaves out its end"
            self._on(sample, "too-long", f"{text}the run {does} (data.too_long: {done})", WARNING)
