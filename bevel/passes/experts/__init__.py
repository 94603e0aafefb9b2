"""Dense feed-forward layers as mixtures of experts: who is in which, which ones a token takes, and how that runs.

evidence.py    what a layer reads and gives on the calibration data
splitters.py   which hidden entries an expert has
routers.py     what scores the experts for a row, as nodes of the graph
fits.py        routers from weights and cached activations; trained.py, those that are trained on them
mixture.py     all of that together: what a layer becomes
trial.py       a mixture beside its bound and beside plain pruning
budget.py      how many experts each layer runs
routing.py     the nodes that say who is taken, and with what weight
emission.py    the mask: what a mixture means
blocks.py      each expert under a condition, in floats or in 8 bits
gather.py      the weights of the experts taken, copied
kernel.py      ONNX Runtime's MoE; packed.py, its QMoE; form.py, what layers they can be
emissions.py   all of these by name, checked against the mask, and which is fastest
account.py     what is said of it
"""
