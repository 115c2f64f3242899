"""A shrunk ticket in ONNX Runtime and in OpenVINO: `pip install 'ticketry[onnx,openvino,digits]'`."""

from __future__ import annotations

import numpy as np
import onnxruntime
import openvino
import torch
from digits import accuracy, data, network, train

import ticketry as tk
from ticketry.engine.export import export

model = network()
train(model, 4)
images = data()[1].tensors[0]
mask = tk.structure.channels(model, images[:2], density=0.3)
with tk.hold(model, mask):
    train(model, 4)
model.eval()
made = export(model, mask, images[:2], "digits.onnx")  # shrunk automatically, because whole channels are zero
print(
    f"{sum(p.numel() for p in model.parameters()):,} parameters before, {accuracy(model):.1f} %; {made.bytes:,} bytes"
)

with torch.no_grad():
    wanted = model(images).numpy()

session = onnxruntime.InferenceSession("digits.onnx", providers=["CPUExecutionProvider"])
(outputs,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
print("ONNX Runtime: largest difference", np.abs(outputs - wanted).max())

compiled = openvino.Core().compile_model("digits.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
print("OpenVINO: largest difference", np.abs(compiled(images.numpy())[0] - wanted).max())
