"""`serve`, as a user starts and stops it, for tests with a real client."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipes import REPO


@contextmanager
def served(run: Path, key: str = "") -> Iterator[tuple[str, str]]:
    """Serve a run; give what it said of its adapter, and its address. It must stop when told to."""
    server = subprocess.Popen(
        [sys.executable, "-m", "recipes.cli", "serve", str(run), "--port", "0"],
        cwd=REPO,
        env={**os.environ, **({"STRLORA_SERVE_KEY": key} if key else {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        said = server.stdout.readline()
        url = server.stdout.readline().partition(" ")[0].strip()
        assert url.startswith("http://127.0.0.1:"), (said, url)
        yield said, url
    finally:
        server.terminate()
        _, err = server.communicate(timeout=60)
    assert server.returncode == 0, err
    assert "server stopped by SIGTERM" in err


def seen(picture: Path, question: str) -> Any:
    """The turns of a request about a picture."""
    data = base64.b64encode(picture.read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": question},
    ]
    return [{"role": "user", "content": content}]
