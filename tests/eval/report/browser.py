"""A real headless Chromium for the tests, driven over its debugging pipe (no driver needed)."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BINARY = shutil.which("chromium") or shutil.which("google-chrome") or ""
_SWITCHES = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
]


class Browser:
    """One page in a browser: width and colour scheme set, messages collected."""

    def __init__(self, profile: Path) -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()

        def connect() -> None:  # the protocol reads descriptor 3 and writes descriptor 4
            read, write = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(read, 3)
            os.dup2(write, 4)
            os.set_inheritable(3, True)
            os.set_inheritable(4, True)

        self._process = subprocess.Popen(
            [BINARY, *_SWITCHES, f"--user-data-dir={profile}", "about:blank"],
            preexec_fn=connect,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._read = os.fdopen(ours_in, "rb", buffering=0)
        self._write = os.fdopen(ours_out, "wb", buffering=0)
        self._buffer, self._count, self._session = b"", 0, None
        self.messages: list[str] = []
        self._loaded = False
        page = next(
            t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page"
        )
        attach = {"targetId": page["targetId"], "flatten": True}
        self._session = self._call("Target.attachToTarget", attach)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._read.close()
        self._write.close()

    def open(self, page: Path, width: int, dark: bool = False, height: int = 900) -> None:
        """Loads a file at a width in CSS pixels; waits until it is laid out."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", {"features": [scheme]})
        self._loaded = False
        self._call("Page.navigate", {"url": page.resolve().as_uri()})
        limit = time.monotonic() + 60
        while not self._loaded and time.monotonic() < limit:
            self._receive()
        assert self._loaded, f"{page} did not load in a minute"

    def evaluate(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression in the page."""
        arguments = {"expression": expression, "returnByValue": True}
        result = self._call("Runtime.evaluate", arguments)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def screenshot(self, path: Path, clip: Sequence[float] | None = None) -> Path:
        """Writes a PNG of the whole page, or of (x, y, width, height)."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        x, y, width, height = clip or (0, 0, size["width"], size["height"])
        area = {"x": x, "y": y, "width": width, "height": height, "scale": 1}
        arguments = {"captureBeyondViewport": True, "clip": area}
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", arguments)["data"]))
        return path

    def _call(self, method: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": arguments or {}}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        wanted = self._count
        while True:
            answer = self._receive()
            if answer.get("id") == wanted:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            piece = self._read.read(1 << 20)
            assert piece, "the browser closed its pipe"
            self._buffer += piece
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        method, details = message.get("method"), message.get("params", {})
        self._loaded |= method == "Page.loadEventFired"
        if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.messages.append(json.dumps(details)[:500])
        return message
