"""Reinforcement learning: networks learn to act in an environment, by deep Q-learning.

`environments` are copies of an environment that are stepped together, `q_learning` is a training with its replay
memory, `task` has the metric and the data of scores, and puts it together with a network and a
recipe. `facts` lists the environments, and needs no torch.
"""
