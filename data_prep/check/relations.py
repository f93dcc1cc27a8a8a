"""Rules between samples: duplicates, leakage from training to test, near copies of images."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
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
        self.tested = {image for s in self.test for image in s.images}
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
        for sample, first in repeats(self.test, lambda s: (s.file, s.id)):
            text = f"id {sample.id!r} stands at {self._at(first)} too; ids of a test set differ"
            yield sample, "duplicate-id", text, ERROR
        for sample, first in repeats((s for s in self.train if s.id), lambda s: s.id):
            text = f"id {sample.id!r} stands at {self._at(first)} too"
            yield sample, "duplicate-id", text, WARNING

    def repeated_samples(self) -> Iterator[Finding]:
        """The same images, question and answer twice."""
        for samples in (self.train, self.test):
            same = repeats(samples, lambda s: (self._images(s), s.question, s.answer))
            for sample, first in same:
                text = f"the same sample as {self._at(first)}"
                yield sample, "duplicate-sample", text, WARNING

    def answered_otherwise(self) -> Iterator[Finding]:
        """The same images and question, with different answers."""
        for samples in (self.train, self.test):
            with_images = (sample for sample in samples if sample.images)
            for sample, first in repeats(with_images, lambda s: (self._images(s), s.question)):
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
            # With the same question, too, it is a finding of shared_samples already.
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
        uses: dict[int, tuple[str, Sample]] = {}  # by hash: the first image, and who uses it
        # Test samples first: of a pair over both, the training sample is the one to leave out.
        for sample in [*self.test, *self.train]:
            for image in sample.images:
                picture = self.pictures.get(image)
                if picture is None or picture.dhash is None:
                    continue
                first, user = uses.setdefault(picture.dhash, (image, sample))
                if first != image and self.pictures[first].sha256 != picture.sha256:
                    yield self._near(sample, image, first, user)
        for a, b in near_pairs(uses):
            image, sample = uses[b]  # the later of the two: never the test sample of a leak
            yield self._near(sample, image, *uses[a])

    def _near(self, sample: Sample, image: str, other: str, user: Sample) -> Finding:
        across = (image in self.tested) != (other in self.tested)
        text = f"image {image!r} looks like {other!r} of {self._at(user)}"
        return sample, "leak-near" if across else "near-image", text, WARNING


def repeats(
    samples: Iterable[Sample], key: Callable[[Sample], object]
) -> Iterator[tuple[Sample, Sample]]:
    """Yield every sample whose key an earlier one has, and the first of these."""
    seen: dict[object, Sample] = {}
    for sample in samples:
        first = seen.setdefault(key(sample), sample)
        if first is not sample:
            yield sample, first


def near_pairs(values: Iterable[int]) -> set[tuple[int, int]]:
    """Return the pairs of 64-bit hashes that differ in at most `NEAR_BITS` bits, in their order.

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
                    pairs.add((a, b))
    return pairs
