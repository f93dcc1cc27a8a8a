"""UCIT as a table: Guo et al., "HiDe-LLaVA" (ACL 2025).

Files and folders as its page and its scripts name them; the numbers of samples and pictures are
those that a public audit of all twelve files counted.
"""

from __future__ import annotations

from data_prep.published.benchmarks import Benchmark, Task
from data_prep.published.gold_files import CAPTIONS

_HUB = "https://huggingface.co/datasets/HaiyangGuo/UCIT"

UCIT = Benchmark(
    "ucit", "data_prep.ucit", "1", "HaiyangGuo/UCIT",
    (
        Task("ImageNet-R", "label", ("ImageNet-R/train", "ImageNet-R/test"), "ImageNet-R", _HUB,
             26998, ("ImageNet-R/train",), ("ImageNet-R/test_3000",), samples=(23998, 3000)),
        Task("ArxivQA", "choice", ("ArxivQA/images",), "ArxivQA",
             "https://huggingface.co/datasets/MMInstruction/ArxivQA",
             32225, ("ArxivQA/train_4w",), ("ArxivQA/test_3000",), samples=(40000, 3000)),
        Task("VizWiz", "caption", ("VizWiz/train", "VizWiz/val"), "VizWiz captions",
             "https://vizwiz.org/tasks-and-datasets/image-captioning",
             23559, ("VizWiz/train",), ("VizWiz/test_3000",), CAPTIONS, (40000, 3000)),
        Task("IconQA", "choice", ("IconQA/iconqa_data/iconqa",), "IconQA",
             "https://iconqa.github.io",
             32859, ("IconQA/train",), ("IconQA/test_3000",), samples=(29859, 3000)),
        Task("CLEVR", "number", ("CLEVR/images/train", "CLEVR/images/val"), "CLEVR-Math",
             "https://huggingface.co/datasets/dali-does/clevr-math",
             33184, ("CLEVR/train_4w",), ("CLEVR/test_3000",), samples=(40000, 3000)),
        Task("Flickr30k", "caption", ("Flickr30k/train", "Flickr30k/val"), "Flickr30k", _HUB,
             24632, ("Flickr30k/train_brief_4w",), ("Flickr30k/test_3000",), CAPTIONS,
             (40000, 3000)),
    ),
    places=("instructions", ""),
    pictures=("datasets", ""),
)  # fmt: skip
