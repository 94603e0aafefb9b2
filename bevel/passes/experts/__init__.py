"""Dense feed-forward layers as mixtures of experts: who is in which, which ones a token takes, and how that runs.

splitters.py   which hidden entries an expert has
routers.py     what scores the experts for a row, as nodes of the graph
fits.py        routers from weights and cached activations
emission.py    the nodes that run a mixture: blocks under a condition, or everything with a mask
evidence.py    what a layer reads and gives on the calibration data
"""
