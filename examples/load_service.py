"""Makes the models of `service.py`, starts it, and counts requests a second: `python examples/load_service.py`.

Needs `pip install 'ticketry[engine,onnx,digits]' fastapi uvicorn httpx`. Requests follow each other on one connection,
to the two models alternately; prints the medians of the rounds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
from digits import accuracy, data, network, train

import ticketry as tk
from ticketry.engine.export import export

HERE = Path(__file__).resolve().parent
PORT = int(os.environ.get("PORT", "8765"))


def make() -> None:
    """The dense network as ONNX, and a ticket of a tenth of its weights as a file of ours."""
    model, images = network(), data()[1].tensors[0]
    train(model, 6)
    export(model.eval(), None, images[:2], "dense.onnx")
    mask = tk.prune(model, density=0.1)
    with tk.hold(model, mask):
        train(model, 6)
    print(f"ticket: {accuracy(model):.1f} %")
    tk.compile(model.eval(), mask, images[:2]).save("digits.tk")


def main(seconds: float = 2.0, rounds: int = 5, batch: int = 64) -> None:
    """Requests a second of both."""
    make()
    body = data()[1].tensors[0][:batch].numpy().tobytes()
    command = [sys.executable, "-m", "uvicorn", "--app-dir", str(HERE), "service:app", "--port", str(PORT)]
    server = subprocess.Popen([*command, "--log-level", "warning"])
    found: dict[str, list[float]] = {"/ticket": [], "/dense": []}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", transport=httpx.HTTPTransport(retries=60)) as client:
            answers = [client.post(path, content=body).json() for path in found]
            print(f"{100 * sum(map(int.__eq__, *answers)) / batch:.0f} % of the answers are the same")
            for _ in range(rounds):
                for path, rates in found.items():
                    count, began = 0, time.perf_counter()
                    while time.perf_counter() - began < seconds / rounds:
                        client.post(path, content=body).raise_for_status()
                        count += 1
                    rates.append(count / (time.perf_counter() - began))
    finally:
        server.terminate()
        server.wait()
    for path, rates in found.items():
        print(f"{path:<8} {statistics.median(rates):8.0f} requests a second of {batch} images")


if __name__ == "__main__":
    main()
