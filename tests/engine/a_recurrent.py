"""A small language model with an LSTM, which returns a dict."""

from __future__ import annotations

from torch import Tensor, nn


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.recurrent = nn.LSTM(8, 6, num_layers=2, batch_first=True)
        self.decoder = nn.Linear(6, 11)

    def forward(self, words: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
        found, (last, _) = self.recurrent(self.embedding(words))
        return {"words": self.decoder(found) * scale, "last": last}
