"""Iterative magnitude pruning with rewinding in a custom training loop: `python examples/own_loop.py`."""

from __future__ import annotations

from digits import accuracy, network, train

import ticketry as tk

model = network()
train(model, 1)
early = {name: value.clone() for name, value in model.state_dict().items()}
train(model, 7)
print(f"dense: {accuracy(model):.1f} %")

density = 1.0
for level in range(1, 6):
    density *= 0.6
    mask = tk.prune(model, density=density)  # what the level before removed is 0, and so is removed again
    tk.Ticket(mask, early, {"method": "iterative"}).apply(model, "start")
    with tk.hold(model, mask):
        train(model, 7)
    print(f"level {level}: {100 * mask.density:.1f} % of the weights, {accuracy(model):.1f} %")

ticket = tk.Ticket(mask, early, {"method": "iterative", "level": level}, trained=model.state_dict())
ticket.save("ticket-of-my-own-loop")
