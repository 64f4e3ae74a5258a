"""Rules that give a weight its prior.

A rule is a function of the weight's shape and its number of inputs that returns a distribution
which broadcasts to the shape, so ``lambda shape, fan_in: dist.StudentT(3.0)`` is one too (a named
function pickles). Layers turn its parameters into buffers; those that a rule names in an attribute
``learnable`` become parameters of the layer, learned by maximizing the ELBO (empirical Bayes).
A rule that treats the inputs and the outputs of a weight differently has a method ``by_axes(shape,
fan_in, axes)``, which layers call instead; ``axes.view``, ``axes.inputs`` and ``axes.outputs`` are
the weight's shape and the dimensions that count its inputs and its outputs.

Inputs and outputs are, of linear layers, features; of convolutions, also grouped and transposed
ones, channels; of recurrent layers, the inputs of a unit, and units with all their gates; of
embeddings, rows and columns; of other parameters, dimensions 1 and 0. A parameter with fewer than
two dimensions, such as a bias, has neither and is one group.
"""

from ._hierarchical import HierarchicalNormal
from ._independent import FanInNormal, Laplace, Normal, ScaleMixture
from ._pretrained import Pretrained

__all__ = ["FanInNormal", "HierarchicalNormal", "Laplace", "Normal", "Pretrained", "ScaleMixture"]
