"""Feed-forward layers of PyTorch modules as experts: to train by averaging, to grow, and to put checkpoints together.

    averaging = bevel.ExpertWeightAveraging(module, layers, steps=1000)     # each layer is four copies of itself
    for batch in data:
        ...                                                                 # any loop; after each optimizer step:
        averaging.step()
    averaging.convert()                                                     # dense again: the mean of the experts

    grown = bevel.upcycle(module, layers, experts=8, active=2)              # copies and a router; the function stays
    joined = bevel.stack_experts([one, other], layers)                      # checkpoints of one network as experts

`layers` says which: the graph of the module (`bevel.load(module, example)`), in which all of them are found by what is
computed; or names of modules with two or three linear layers; or tuples of the linear layers' names; or a type.

layers.py      which linear layers belong together
rows.py        which rows each expert gets, and in what order they are worked on
linear.py      a linear layer of which each expert has one
averaging.py   experts that become one again
routing.py     a router, its gates and its balance
upcycling.py   a dense layer as copies with a router
stacking.py    several checkpoints as one network
"""

from bevel.backends.torch.experts.averaging import ExpertWeightAveraging
from bevel.backends.torch.experts.stacking import stack_experts
from bevel.backends.torch.experts.upcycling import Experts, upcycle

__all__ = ["ExpertWeightAveraging", "Experts", "stack_experts", "upcycle"]
