"""A web service that answers with a compiled ticket: `uvicorn --app-dir examples service:app`, then `load_service.py`.

It loads `digits.tk` (tk.engine.load: no code of the model is needed) and, to compare with, `dense.onnx`.
"""

from __future__ import annotations

import os

import numpy as np
import onnxruntime
import torch
from fastapi import FastAPI, Request

import ticketry as tk

torch.set_num_threads(1)
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
fast = tk.engine.load(os.environ.get("TICKET", "digits.tk"))
session = onnxruntime.InferenceSession(os.environ.get("DENSE", "dense.onnx"), options)
name = session.get_inputs()[0].name
app = FastAPI()


async def images(request: Request) -> np.ndarray:
    """The body is the pixels of some images, as float32."""
    return np.frombuffer(await request.body(), np.float32).reshape(-1, 1, 8, 8)


@app.post("/ticket")
async def ticket(request: Request) -> list[int]:
    """Digits, by the ticket."""
    with torch.inference_mode():
        return fast(torch.from_numpy((await images(request)).copy())).argmax(1).tolist()


@app.post("/dense")
async def dense(request: Request) -> list[int]:
    """Digits, by the dense network in ONNX Runtime."""
    return session.run(None, {name: await images(request)})[0].argmax(1).tolist()
