"""Traces of this process, one at a time.

While torch.fx traces a call it changes `nn.Module` itself and marks the whole process as tracing; torch.export minds
both.
"""

from __future__ import annotations

import threading

TRACING = threading.RLock()
"""Held by whoever traces."""
