"""What all routed tuners share. PEFT comes first: see strlora_tuner/register.py.

Once PEFT is imported every method's configuration is, and those import modules of this folder.
Importing PEFT here, before any of them, keeps them from being met half imported.
"""

import peft as _peft  # noqa: F401
