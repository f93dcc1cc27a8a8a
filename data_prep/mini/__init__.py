"""Mini-StrCVIT: a small embedded stream of image-question-answer tasks, made offline.

Images are cut or rendered at 112x112 from data that PyPI packages ship (see ``assets``). Each
task is one file in ``tasks``. ``python -m data_prep.mini --help`` shows how to write a stream;
``assets/tiny_base/make`` made the base model of the `tiny` recipe.
"""

GENERATOR = "data_prep.mini"
VERSION = "1"


def stream_name(size: str) -> str:
    """The name of a stream of a size, as its manifest says it."""
    return f"mini-strcvit-{size}"
