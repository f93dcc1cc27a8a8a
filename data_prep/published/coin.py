"""CoIN as a table: Chen et al., "CoIN" (2024).

Files and folders as its page and its scripts name them. Its own scripts evaluate ScienceQA,
ImageNet, GQA, Grounding and OCR-VQA on test.json, the others on val.json.
"""

from __future__ import annotations

from data_prep.published.benchmarks import COCO, COCO_SITE, Benchmark, Task
from data_prep.published.gold_files import GQA, SCIENCEQA, TEXTVQA

COIN = Benchmark(
    "coin", "data_prep.coin", "1", "Zacks-Chen/CoIN",
    (
        Task("ScienceQA", "choice", ("ScienceQA/images",), "ScienceQA",
             "https://scienceqa.github.io",
             0, ("ScienceQA/train",), ("ScienceQA/test",), SCIENCEQA, (12726, 4241)),
        Task("TextVQA", "vqa", ("TextVQA/train_images",), "TextVQA (its archive of training and "
             "validation pictures)", "https://textvqa.org/dataset",
             0, ("TextVQA/train",), ("TextVQA/val", "TextVQA/valid", "TextVQA/test"), TEXTVQA),
        Task("ImageNet", "label", ("ImageNet_withlabel/train", "ImageNet_withlabel/val"),
             "ImageNet ILSVRC 2012, a folder a class, about 100 of the classes",
             "https://www.image-net.org/download.php",
             134883, ("ImageNet/train",), ("ImageNet/test",), samples=(129833, 5050)),
        Task("GQA", "vqa", ("GQA/images",), "GQA", "https://cs.stanford.edu/people/dorarad/gqa",
             0, ("GQA/train",), ("GQA/test",), GQA),
        Task("VizWiz", "vqa", ("VizWiz/train", "VizWiz/val"), "VizWiz VQA",
             "https://vizwiz.org/tasks-and-datasets/vqa",
             0, ("VizWiz/train",), ("VizWiz/val",)),
        Task("Grounding", "grounding", COCO[:1], "COCO 2014 (RefCOCO family)", COCO_SITE,
             0, ("Grounding/train",), ("Grounding/test",)),
        Task("VQAv2", "vqa", COCO, "COCO 2014", COCO_SITE,
             0, ("VQAv2/train",), ("VQAv2/val", "VQAv2/test")),
        Task("OCRVQA", "exact", ("OCR-VQA/images",), "OCR-VQA", "https://ocr-vqa.github.io",
             0, ("OCRVQA/train",), ("OCRVQA/test", "OCRVQA/test_1")),
    ),
    places=("Instructions_Original", "Instructions_Type1", ""),
    pictures=("cl_dataset", ""),
)  # fmt: skip
