"""The five guides."""

from __future__ import annotations

from ..estimators import Flipout, LocalReparameterization
from ..posteriors import MixturePosterior, NormalPosterior, RadialPosterior
from ._guide import AutoPosterior


class AutoReparameterization(AutoPosterior):
    """Mean-field Normal weights, with one shared sample for all examples (Bayes by backprop).

    See :class:`AutoPosterior` for arguments and errors.

    References:
        Blundell, Cornebise, Kavukcuoglu and Wierstra (2015), "Weight uncertainty in neural
        networks", arXiv:1505.05424.

    Example:
        >>> net = BayesianLinear(3, 2)
        >>> sorted(AutoReparameterization(net).median())
        ['bias', 'weight']
    """

    posterior = NormalPosterior


class AutoFlipout(AutoPosterior):
    """Mean-field Normal weights, another sample for each example by flipout.

    See :class:`AutoPosterior` for arguments and errors, and
    :class:`~pyro_bnn.estimators.Flipout` for the estimator.

    References:
        Wen, Vicol, Ba, Tran and Grosse (2018), "Flipout: efficient pseudo-independent weight
        perturbations on mini-batches", arXiv:1803.04386.
    """

    posterior = NormalPosterior
    estimator = Flipout()


class AutoLRT(AutoPosterior):
    """Mean-field Normal weights, by local reparameterization.

    See :class:`AutoPosterior` for arguments and errors, and
    :class:`~pyro_bnn.estimators.LocalReparameterization` for the estimator. The tied weight of an
    embedding and a decoder in a converted network is used in both directions, for which local
    reparameterization has no rule: it gets flipout.

    References:
        Kingma, Salimans and Welling (2015), "Variational dropout and the local
        reparameterization trick", arXiv:1506.02557.
    """

    posterior = NormalPosterior
    estimator = LocalReparameterization()


class AutoRadial(AutoPosterior):
    """Radial weights, one radius for each weight tensor.

    See :class:`AutoPosterior` for arguments and errors, and
    :class:`~pyro_bnn.distributions.Radial` for the distribution. ``estimator=Flipout()`` gives each
    example other signs.

    References:
        Farquhar, Osborne and Gal (2020), "Radial Bayesian neural networks", arXiv:1907.00865.
    """

    posterior = RadialPosterior


class AutoMixture(AutoPosterior):
    """An independent mixture of two Normals for each weight.

    See :class:`AutoPosterior` for arguments and errors, and
    :class:`~pyro_bnn.posteriors.MixturePosterior` for the posterior. Its analytic KL divergence
    is an upper bound (:func:`~pyro_bnn.distributions.mixture_kl_bound`).
    """

    posterior = MixturePosterior
