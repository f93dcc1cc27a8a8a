"""Loaded by `swift deploy`: the key comes from the environment, not from the command line.

Every user of a machine can read the command lines of its processes. SWIFT_MEDIA_ALLOWED_DIRS, which
recipes/use/serve.py sets, keeps the host from opening files of this machine that a client names.
"""

from __future__ import annotations

import os
from typing import Any

from swift.pipelines.infer.deploy import SwiftDeploy

from strlora_tuner import host_api
from strlora_tuner.options import SERVE_KEY

host_api.check("serving")
install_by_host = SwiftDeploy._install_auth_middleware


def install_with_key(self: Any) -> None:
    """Have the host ask its clients for the key, if there is one."""
    self.args.api_key = os.environ.get(SERVE_KEY) or None
    install_by_host(self)


host_api.replace(
    "swift.pipelines.infer.deploy:SwiftDeploy._install_auth_middleware", install_with_key
)
