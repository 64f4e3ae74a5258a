"""For calls from several threads."""

from __future__ import annotations

import threading

# Held by what puts handlers on Pyro's stack, which is one for the whole process. By the same thread
# it may be taken again.
PYRO = threading.RLock()
