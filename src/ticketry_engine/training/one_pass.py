"""Working memory that a call holds for one way back."""

from __future__ import annotations

from ticketry_engine.errors import EngineError
from ticketry_engine.kernels.program import Session


class OnePass:
    """What a call holds between its forward and its backward pass: a session, given back after one way back."""

    session: Session
    closed = False

    def require_open(self, what: str) -> None:
        """Raises `EngineError` on a second way back through `what`."""
        if self.closed:
            raise EngineError(
                f"backward runs a second time through {what} of sparse training, which keeps its values for one:"
                " add losses up before, instead of retain_graph=True"
            )

    def close(self) -> None:
        """Give the working memory back."""
        if not self.closed:
            self.closed = True
            self.session.close()

    def __del__(self) -> None:
        self.close()
