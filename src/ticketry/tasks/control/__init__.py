"""Control: networks learn to act in an environment, by deep Q-learning.

`worlds` are copies of an environment that are stepped together, `memory` remembers what happened in them, `learner` is
a training, `course` what networks are measured by and what scores see; `task` puts it together with a network and a
recipe.
`facts` tells what environments there are, and needs no torch.
"""
