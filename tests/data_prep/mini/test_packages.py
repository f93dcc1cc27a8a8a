"""Asset packages: pinned, checked, read without running anything, clear when they are missing."""

from __future__ import annotations

import io
import pickle
import shutil

import numpy as np
import pytest

from data_prep.errors import DataError
from data_prep.mini import __main__ as command
from data_prep.mini.assets import PACKAGES, Assets, fetch, fetch_all
from data_prep.mini.tasks.imagenet import ArrayUnpickler


@pytest.fixture
def offline(monkeypatch):
    """Let pip find nothing: no configured index, no network."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)


def test_offline_message_says_what_to_do(offline, tmp_path):
    with pytest.raises(DataError) as caught:
        fetch("easy-vqa", tmp_path)
    message = str(caught.value)
    assert "cannot fetch easy-vqa==1.0 with pip" in message
    assert PACKAGES["easy-vqa"].sha256 in message
    assert str(tmp_path) in message


def test_command_ends_with_the_message(offline, tmp_path, capsys):
    out = tmp_path / "stream"
    arguments = ["--out", str(out), "--size", "smoke", "--assets", str(tmp_path / "empty")]
    assert command.main(arguments) == 1
    assert "error: cannot fetch" in capsys.readouterr().err
    assert not out.exists()


def test_other_file_under_the_pin_is_refused(tmp_path):
    (tmp_path / PACKAGES["easy-vqa"].wheel).write_bytes(b"something else")
    with pytest.raises(DataError, match=r"sha256 is .*, expected fcb51b30"):
        fetch("easy-vqa", tmp_path)


def test_cached_wheels_need_no_network(offline, tmp_path):
    for wheel in fetch_all().values():
        shutil.copy(wheel, tmp_path)
    assert set(fetch_all(tmp_path)) == set(PACKAGES)
    assert Assets(tmp_path).read("easy-vqa", "easy_vqa/data/answers.txt").startswith(b"circle")


def test_unpickler_reads_arrays_and_nothing_else():
    array = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert (ArrayUnpickler(io.BytesIO(pickle.dumps(array, protocol=4))).load() == array).all()
    with pytest.raises(pickle.UnpicklingError, match=r"is not a part of a numpy array"):
        ArrayUnpickler(io.BytesIO(pickle.dumps(print))).load()
