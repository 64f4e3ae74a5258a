"""Which dimensions of a weight count its inputs, and which its outputs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ._torch import ConvNd, ConvTransposeNd

_EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass(frozen=True)
class Axes:
    """The dimensions of a weight by what they count.

    Attributes:
        view: the shape of the weight, or one of as many entries where a dimension counts two
            things: the blocks of a grouped convolution, the gates of a recurrent layer.
        inputs: the dimensions of ``view`` whose indices together tell an input.
        outputs: those that tell an output.
    """

    view: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @classmethod
    def of_shape(cls, shape: tuple[int, ...]) -> Axes:
        """Those of a linear layer; a vector or a scalar has neither inputs nor outputs."""
        return cls(tuple(shape), (1,), (0,)) if len(shape) > 1 else cls(tuple(shape), (), ())

    @classmethod
    def of(cls, module: nn.Module, key: str, shape: tuple[int, ...]) -> Axes:
        """Those of a parameter of a module; for other modules than torch's, by its shape.

        The outputs of a recurrent layer are its units, each with all of its gates; the inputs of
        an embedding are its rows, and its outputs the columns.
        """
        shape = tuple(shape)
        if len(shape) < 2:
            return cls.of_shape(shape)
        if isinstance(module, ConvNd):
            is_transposed = isinstance(module, ConvTransposeNd)
            split = (module.groups, shape[0] // module.groups, *shape[1:])
            first, second = (0, 1), (0, 2)
            return cls(split, first, second) if is_transposed else cls(split, second, first)
        if isinstance(module, _RECURRENT) and key.startswith(("weight_ih", "weight_hh")):
            gates = shape[0] // module.hidden_size
            return cls((gates, module.hidden_size, *shape[1:]), (2,), (1,))
        if isinstance(module, _EMBEDDINGS):
            return cls(shape, (0,), (1,))
        return cls.of_shape(shape)
