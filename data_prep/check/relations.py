"""Rules between samples: duplicates, leakage from training to test, near copies of images."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import combinations

from data_prep.check.sample_rules import Sample
from data_prep.errors import ERROR, WARNING
from data_prep.images import Picture

Finding = tuple[Sample, str, str, str]  # sample, code, text, severity
NEAR_BITS = 3  # difference hashes this near count as copies; more would need other bands
MIN_WORDS = 5  # shorter questions are the same by chance
_BANDS, _BAND_BITS = 4, 16
MOST_IN_BAND = 300  # pictures of one colour share their bands with thousands


class Relations:
    """Compares samples with each other.

    Args:
        samples: all good samples.
        tests: numbers of the files that are test sets.
        pictures: by image name.
        names: file names by number, for the texts.
    """

    def __init__(
        self,
        samples: list[Sample],
        tests: set[int],
        pictures: dict[str, Picture],
        names: list[str],
    ) -> None:
        self.train = [s for s in samples if s.file not in tests]
        self.test = [s for s in samples if s.file in tests]
        self.pictures, self.names = pictures, names

    def all(self, near: bool) -> Iterator[Finding]:
        """Yield every finding; `near` compares difference hashes too."""
        yield from self.repeated_ids()
        yield from self.repeated_samples()
        yield from self.answered_otherwise()
        yield from self.shared_samples()
        yield from self.shared_images()
        yield from self.shared_texts()
        if near:
            yield from self.near_images()

    def _at(self, sample: Sample) -> str:
        return f"{self.names[sample.file]}:{sample.line}"

    def _images(self, sample: Sample) -> tuple[str, ...]:
        """Return what identifies the images of a sample: their bytes, else their names."""
        return tuple(getattr(self.pictures.get(n), "sha256", None) or n for n in sample.images)

    def repeated_ids(self) -> Iterator[Finding]:
        """An id twice in a test set is an error (answers are joined by it), elsewhere a warning."""
        seen: dict[tuple[int, str], Sample] = {}
        for sample in self.test:
            first = seen.setdefault((sample.file, sample.id), sample)
            if first is not sample:
                text = f"id {sample.id!r} stands at {self._at(first)} too; ids of a test set differ"
                yield sample, "duplicate-id", text, ERROR
        known: dict[str, Sample] = {}
        for sample in self.train:
            first = known.setdefault(sample.id, sample) if sample.id else sample
            if first is not sample:
                text = f"id {sample.id!r} stands at {self._at(first)} too"
                yield sample, "duplicate-id", text, WARNING

    def repeated_samples(self) -> Iterator[Finding]:
        """The same images, question and answer twice."""
        for samples in (self.train, self.test):
            seen: dict[tuple[object, ...], Sample] = {}
            for sample in samples:
                key = (self._images(sample), sample.question, sample.answer)
                first = seen.setdefault(key, sample)
                if first is not sample:
                    text = f"the same sample as {self._at(first)}"
                    yield sample, "duplicate-sample", text, WARNING

    def answered_otherwise(self) -> Iterator[Finding]:
        """The same images and question, with different answers."""
        for samples in (self.train, self.test):
            seen: dict[tuple[object, ...], Sample] = {}
            for sample in filter(lambda sample: sample.images, samples):
                first = seen.setdefault((self._images(sample), sample.question), sample)
                if first.answer != sample.answer:
                    text = (
                        f"answers {sample.shown!r} where {self._at(first)}, the same picture and "
                        f"question, answers {first.shown!r}; keep the right one"
                    )
                    yield sample, "answers-differ", text, WARNING

    def shared_samples(self) -> Iterator[Finding]:
        """The same images and question in training and test."""
        tested = {(self._images(s), s.question): s for s in self.test}
        for sample in self.train:
            other = tested.get((self._images(sample), sample.question))
            if other:
                text = f"the test sample {self._at(other)} asks the same; leave this one out"
                yield sample, "leak-sample", text, ERROR

    def shared_images(self) -> Iterator[Finding]:
        """The same image, by its bytes, in training and test."""
        tested = {image: s for s in self.test for image in self._images(s)}
        questions = {(self._images(s), s.question) for s in self.test}
        for sample in self.train:
            images = self._images(sample)
            other = next((tested[image] for image in images if image in tested), None)
            if other and (images, sample.question) not in questions:
                text = f"its image is in the test sample {self._at(other)} too; leave this one out"
                yield sample, "leak-image", text, ERROR

    def shared_texts(self) -> Iterator[Finding]:
        """A question that is not a template, in training and test with different images."""
        trained = Counter(s.question for s in self.train)
        tested = Counter(s.question for s in self.test)
        alone = {s.question: s for s in self.test if tested[s.question] == 1}
        for sample in self.train:
            other = alone.get(sample.question)
            if other is None or trained[sample.question] > 1 or sample.words < MIN_WORDS:
                continue
            if self._images(sample) != self._images(other):
                text = f"the test sample {self._at(other)} asks the same of another image"
                yield sample, "leak-text", text, WARNING

    def near_images(self) -> Iterator[Finding]:
        """Images that look alike but differ in their bytes, by difference hash."""
        users: dict[int, Sample] = {}
        tested = {image for s in self.test for image in s.images}
        names: dict[int, str] = {}
        for sample in [*self.test, *self.train]:
            for image in sample.images:
                value = getattr(self.pictures.get(image), "dhash", None)
                if value is None:
                    continue
                first = names.setdefault(value, image)
                users.setdefault(value, sample)
                if self._differ(first, image):
                    yield self._near(sample, image, first, users[value], tested)
        for a, b in near_pairs(list(names)):
            yield self._near(users[b], names[b], names[a], users[a], tested)

    def _differ(self, first: str, second: str) -> bool:
        return first != second and self.pictures[first].sha256 != self.pictures[second].sha256

    def _near(
        self, sample: Sample, image: str, other: str, user: Sample, tested: set[str]
    ) -> Finding:
        across = (image in tested) != (other in tested)
        code = "leak-near" if across else "near-image"
        text = f"image {image!r} looks like {other!r} of {self._at(user)}"
        return sample, code, text, WARNING


def near_pairs(values: Iterable[int]) -> set[tuple[int, int]]:
    """Return the pairs of 64-bit hashes that differ in at most `NEAR_BITS` bits.

    Two such hashes agree in at least one of four bands of 16 bits, so only those are compared.
    """
    pairs: set[tuple[int, int]] = set()
    mask = (1 << _BAND_BITS) - 1
    for band in range(_BANDS):
        buckets: defaultdict[int, list[int]] = defaultdict(list)
        for value in values:
            buckets[value >> band * _BAND_BITS & mask].append(value)
        for bucket in buckets.values():
            for a, b in combinations(bucket[:MOST_IN_BAND], 2):
                if (a ^ b).bit_count() <= NEAR_BITS:
                    pairs.add((a, b) if a < b else (b, a))
    return pairs
