"""What is measured: networks, their data, and steps of training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUM_DATA = 50_000


class First(nn.Module):
    """The output of a recurrent network, without its state; of its last step, if asked for."""

    def __init__(self, *, last_step: bool = False) -> None:
        super().__init__()
        self.last_step = last_step

    def forward(self, result: tuple[Tensor, ...]) -> Tensor:
        return result[0][:, -1] if self.last_step else result[0]


class Block(nn.Module):
    """Two convolutions with batch normalisation, and a way around them."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(num_out)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut.append(nn.Conv2d(num_in, num_out, 1, stride, bias=False))
            self.shortcut.append(nn.BatchNorm2d(num_out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for num_in, num_out in itertools.pairwise(sizes):
        layers += [nn.ReLU(), nn.Linear(num_in, num_out)]
    return nn.Sequential(*layers[1:])


def lstm(num_in: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.LSTM(num_in, hidden, batch_first=True), First())


def convolutional(channels: int, size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * channels * (size // 2) ** 2, 10),
    )


def resnet(channels: Iterable[int], blocks: int) -> nn.Sequential:
    """A residual network for small images: a stage for each number of channels."""
    stages = list(channels)
    layers: list[nn.Module] = [
        nn.Conv2d(3, stages[0], 3, padding=1, bias=False),
        nn.BatchNorm2d(stages[0]),
        nn.ReLU(),
    ]
    for num_in, num_out in itertools.pairwise([stages[0], *stages]):
        layers.append(Block(num_in, num_out, stride=1 if num_in == num_out else 2))
        layers += [Block(num_out, num_out, stride=1) for _ in range(blocks - 1)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(stages[-1], 10)]
    return nn.Sequential(*layers)


@dataclass(frozen=True)
class Workload:
    """A network, its input, and who takes part.

    Args:
        shape: of the input, examples first.
        num_classes: the loss is a cross entropy; without classes, the mean square of the output.
        has_optimizer: whether a step ends with one of Adam, or with the gradients.
        num_samples: of the posterior predictive distribution; none for training.
        contenders: a regular expression of names.
        needs_gpu: whether it would take too long on a CPU.
    """

    name: str
    title: str
    net: Callable[[], nn.Module]
    shape: tuple[int, ...]
    num_classes: int = 10
    has_optimizer: bool = True
    num_samples: int = 0
    contenders: str = ""
    needs_gpu: bool = False

    def data(self, device: str) -> tuple[Tensor, Tensor]:
        x = torch.randn(self.shape, device=device)
        if self.num_classes:
            return x, torch.randint(self.num_classes, self.shape[:1], device=device)
        with torch.no_grad():
            return x, torch.zeros_like(self.net().to(device)(x))

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        if self.num_classes:
            return F.cross_entropy(output, target)
        return output.square().mean()


# Deterministic, the other libraries, and the fastest forms of ours, for sweeps.
_FEW = (
    r"deterministic$|(reparameterization|flipout|LRT) standalone$|^bayesian|^bensemble"
    r"|AutoNormal SVI"
)
# More of them; but mixtures, whose steps take seconds here.
_MORE = _FEW + r"|radial standalone$|(reparameterization|LRT) (ELBO|SVI)|^torch-unc|fused|compiled"
_MLP = "MLP 100-{0}-{0}-10, batch {1}"


def _sweep(name: str, width: int, batch: int) -> Workload:
    net = lambda: mlp(100, width, width, 10)
    return Workload(name, _MLP.format(width, batch), net, (batch, 100), contenders=_FEW)


WORKLOADS = [
    Workload("mlp", _MLP.format(400, 128), lambda: mlp(100, 400, 400, 10), (128, 100)),
    Workload(
        "lstm",
        "LSTM 64 to 128, batch 32, 64 steps, no optimizer",
        lambda: lstm(64, 128),
        (32, 64, 64),
        num_classes=0,
        has_optimizer=False,
    ),
    Workload(
        "conv",
        "Conv2d 32 to 64, 3x3, images 16x16, batch 32, no optimizer",
        lambda: nn.Sequential(nn.Conv2d(32, 64, 3, padding=1)),
        (32, 32, 16, 16),
        num_classes=0,
        has_optimizer=False,
    ),
    Workload(
        "resnet",
        "ResNet of 3 blocks, 16 to 64 channels, images 32x32, batch 32",
        lambda: resnet((16, 32, 64), 1),
        (32, 3, 32, 32),
    ),
    Workload(
        "wide",
        "MLP 1000-3000-2300-10, 10 million weights, batch 32",
        lambda: mlp(1000, 3000, 2300, 10),
        (32, 1000),
        contenders=_MORE,
    ),
    Workload(
        "deep",
        "MLP of 100 layers, width 16, batch 32",
        lambda: mlp(*100 * [16], 10),
        (32, 16),
        contenders=_MORE,
    ),
    _sweep("batch-16", 400, 16),
    _sweep("batch-1024", 400, 1024),
    _sweep("width-50", 50, 128),
    _sweep("width-1600", 1600, 128),
    Workload(
        "predict",
        "1000 predictive samples, MLP 8-50-50-1, 100 rows",
        lambda: mlp(8, 50, 50, 1),
        (100, 8),
        num_samples=1000,
    ),
    Workload(
        "predict-conv",
        "100 predictive samples, 2 convolutions of 8 and 16 channels, 16 images 16x16",
        lambda: convolutional(8, 16),
        (16, 1, 16, 16),
        num_samples=100,
    ),
    Workload(
        "resnet18",
        "ResNet-18, images 32x32, batch 128",
        lambda: resnet((64, 128, 256, 512), 2),
        (128, 3, 32, 32),
        contenders=r"deterministic|standalone|^bayesian",
        needs_gpu=True,
    ),
]
