"""For calls from several threads."""

from __future__ import annotations

import threading

# Held by what puts handlers on Pyro's stack, which is one for all threads, as is the switch of its
# validation. The same thread may take it again.
PYRO = threading.RLock()
