"""Reinforcement learning by deep Q-learning.

`environments` steps several copies of an environment, `q_learning` trains a network with a replay memory, and `task`
defines the task with its metric and the batches of scores.
"""
