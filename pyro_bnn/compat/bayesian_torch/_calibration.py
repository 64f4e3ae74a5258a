"""Losses that align uncertainty with errors, beside the loss of a classifier or a regression."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..._validation import check_positive
from .._checks import check_finite
from ._agreement import EPS, accuracy_vs_uncertainty, part, soft_agreement, thresholds_between


class _Loss(nn.Module):
    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        check_positive(beta=beta)
        self.beta = beta

    def _of(self, agreement: Tensor) -> Tensor:
        return -self.beta * torch.log(agreement + EPS)


class _OfClasses(_Loss):
    """What the losses of classifiers share."""

    def entropy(self, prob: Tensor) -> Tensor:
        """The entropy of probabilities along the last dimension, in nats."""
        return -(prob * torch.log(prob + EPS)).sum(-1)

    def expected_entropy(self, mc_preds: Tensor) -> Tensor:
        """The mean of the entropies of sampled probabilities, ``(samples, batch, classes)``."""
        return self.entropy(mc_preds).mean(0)

    def predictive_uncertainty(self, mc_preds: Tensor) -> Tensor:
        """The entropy of the mean of sampled probabilities."""
        return self.entropy(mc_preds.mean(0))

    def model_uncertainty(self, mc_preds: Tensor) -> Tensor:
        """The mutual information of prediction and weights: the difference of these two."""
        return self.predictive_uncertainty(mc_preds) - self.expected_entropy(mc_preds)

    def accuracy_vs_uncertainty(
        self,
        prediction: Tensor,
        true_label: Tensor,
        uncertainty: Tensor,
        optimal_threshold: float | Tensor,
    ) -> Tensor:
        """The fraction of predictions that are accurate and certain or neither, shape ``(1,)``."""
        avu = accuracy_vs_uncertainty(prediction, true_label, uncertainty, optimal_threshold)
        return avu.float().reshape(1)

    def _assessed(self, logits: Tensor, labels: Tensor, type: int) -> tuple[Tensor, ...]:
        """Which predictions are right, how much each counts for it, and how uncertain each is."""
        if type not in (0, 1):
            raise ValueError(
                f"`type` (={type!r}) must be 0, the entropy, or 1, the mutual information"
            )
        if logits.dim() not in (2, 3) or logits.shape[-2:-1] != labels.shape:
            raise ValueError(
                f"`logits` has shape {tuple(logits.shape)}, and must have (batch, classes) or "
                f"(samples, batch, classes) for `labels` of shape {tuple(labels.shape)}"
            )
        if type == 1 and logits.dim() == 2:
            raise ValueError(
                "`type=1` needs `logits` of several samples, shape (samples, batch, classes): "
                "one says nothing about the mutual information"
            )
        samples = logits.softmax(-1)
        samples = samples if logits.dim() == 3 else samples.unsqueeze(0)
        unc = self.model_uncertainty(samples) if type else self.predictive_uncertainty(samples)
        confidence, prediction = samples.mean(0).max(-1)
        right = prediction == labels
        return right, torch.where(right, confidence, 1 - confidence), unc


class AvULoss(_OfClasses):
    r"""Accuracy versus uncertainty, a loss that is small if errors are uncertain and others not.

    .. math:: -\beta \log\frac{n_{AC} + n_{IU}}{n_{AC} + n_{AU} + n_{IC} + n_{IU}}

    where accurate (A) predictions count by their confidence :math:`p` and inaccurate (I) ones by
    :math:`1 - p`; certain (C) ones, with an uncertainty :math:`u` of at most a threshold, by
    :math:`1 - \tanh u`, and uncertain (U) ones by :math:`\tanh u`.

    Args:
        beta: weight of the loss, positive.

    Returns:
        From a call with ``(logits, labels, optimal_uncertainty_threshold, type=0)``: the loss,
        shape ``(1,)``. ``logits`` have shape ``(batch, classes)``, or ``(samples, batch,
        classes)``, of which the mean of the probabilities counts; ``type`` is 0 for the entropy as
        uncertainty, 1 for the mutual information, which needs samples.

    Raises:
        ValueError: in the call, if shapes do not fit or ``type`` is neither.

    References:
        Krishnan and Tickoo (2020), "Improving model calibration with accuracy versus uncertainty
        optimization", arXiv:2012.07923.

    Example:
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.1, 0.0]]), torch.tensor([0, 1])
        >>> AvULoss()(logits, labels, 0.5), AvULoss()(logits, labels, 0.9)
        (tensor([-0.]), tensor([0.2871]))
    """

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        optimal_uncertainty_threshold: float | Tensor,
        type: int = 0,
    ) -> Tensor:
        check_finite(optimal_uncertainty_threshold=optimal_uncertainty_threshold)
        right, weight, unc = self._assessed(logits, labels, type)
        return self._of(soft_agreement(right, weight, unc, optimal_uncertainty_threshold)).reshape(
            1
        )


class AUAvULoss(_OfClasses):
    r"""The area under the curve of accuracy versus uncertainty, without a threshold to choose.

    :math:`-\beta \log` of the mean of what :class:`AvULoss` takes the logarithm of, over 21
    thresholds from the smallest to the largest uncertainty of the batch (by trapezoids).

    Args:
        beta: weight of the loss, positive.

    Returns:
        From a call with ``(logits, labels, type=0)``, as for :class:`AvULoss`: the loss and the
        area, both scalars.

    References:
        Krishnan and Tickoo (2020), arXiv:2012.07923.
    """

    def forward(self, logits: Tensor, labels: Tensor, type: int = 0) -> tuple[Tensor, Tensor]:
        area = self._area(*self._assessed(logits, labels, type))
        return self._of(area), area

    def auc_avu(self, logits: Tensor, labels: Tensor, unc: Tensor) -> Tensor:
        """The area for given uncertainties, a scalar."""
        right, weight, _ = self._assessed(logits, labels, 0)
        return self._area(right, weight, unc)

    def _area(self, right: Tensor, weight: Tensor, unc: Tensor) -> Tensor:
        levels, thresholds = thresholds_between(unc.detach())
        curve = soft_agreement(right, weight, unc, thresholds.unsqueeze(-1))
        return torch.trapezoid(curve, levels.to(curve))


class EaULoss(_Loss):
    r"""Error-aligned uncertainty: :class:`AvULoss` for a regression.

    Predictions of low error :math:`e`, at most a threshold, count by :math:`1 - \tanh e`, others by
    :math:`\tanh e`; certain ones by :math:`1 - \tanh u`, others by :math:`\tanh u`. The loss is
    :math:`-\beta \log` of the part that is of low error and certain, or neither.

    Args:
        beta: weight of the loss, positive.

    Returns:
        From a call with ``(error, unc, error_th, unc_th)``, errors and uncertainties of shape
        ``(batch,)``, not negative: the loss, shape ``(1,)``.

    References:
        Krishnan and Tickoo (2020), arXiv:2012.07923; bayesian-torch's
        ``uncertainty_calibration_loss``.
    """

    def forward(
        self, error: Tensor, unc: Tensor, error_th: float | Tensor, unc_th: float | Tensor
    ) -> Tensor:
        low, weight = _of_error(error, unc, error_th)
        return self._of(soft_agreement(low, weight, unc, unc_th)).reshape(1)


class EaCLoss(_Loss):
    r"""Error-aligned confidence: :class:`EaULoss` with confidences in :math:`[0, 1]`.

    Predictions of a confidence :math:`c` above its threshold count by :math:`c`, others by
    :math:`1 - c`.

    Returns:
        From a call with ``(error, conf, error_th, conf_th)``: the loss, shape ``(1,)``.
    """

    def forward(
        self, error: Tensor, conf: Tensor, error_th: float | Tensor, conf_th: float | Tensor
    ) -> Tensor:
        low, weight = _of_error(error, conf, error_th)
        certain = conf > conf_th
        weight = weight * torch.where(certain, conf, 1 - conf)
        return self._of(part(weight, low == certain)).reshape(1)


def _of_error(error: Tensor, unc: Tensor, threshold: float | Tensor) -> tuple[Tensor, Tensor]:
    if error.dim() != 1 or error.shape != unc.shape:
        raise ValueError(
            f"`error` has shape {tuple(error.shape)}, uncertainty or confidence "
            f"{tuple(unc.shape)}: both must be (batch,)"
        )
    low = error <= threshold
    return low, torch.where(low, 1 - error.tanh(), error.tanh())
