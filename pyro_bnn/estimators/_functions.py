"""Functions of torch that a draw of a weight tells from others."""

from __future__ import annotations

import torch

#: What they return is known without the weight.
METADATA = {
    *(getattr(torch.Tensor, name).__get__ for name in ("shape", "dtype", "ndim")),
    *(getattr(torch.Tensor, name) for name in ("size", "dim", "numel", "__len__")),
    torch.Tensor.is_floating_point,
    torch.is_floating_point,
}
PLACES = {getattr(torch.Tensor, name).__get__ for name in ("device", "is_cuda", "is_cpu")}
TRANSPOSES = {
    *(getattr(torch.Tensor, name).__get__ for name in ("T", "mT", "H", "mH")),
    *(
        getattr(where, name)
        for where in (torch, torch.Tensor)
        for name in ("t", "adjoint", "transpose", "swapaxes", "swapdims")
    ),
}
PRODUCTS = {
    *(getattr(torch.Tensor, name) for name in ("matmul", "__matmul__", "__rmatmul__", "mm")),
    *(torch.matmul, torch.mm),
}
RECURRENT = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
