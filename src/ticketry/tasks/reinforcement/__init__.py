"""Reinforcement learning: networks learn to act in an environment, by deep Q-learning.

`environments` are copies of an environment that are stepped together, `q_learning` is a training with its replay
memory, `task` tells what networks are measured by and what scores see, and puts it together with a network and a
recipe. `facts` tells what environments there are, and needs no torch.
"""
