"""What :func:`diagnose` finds, in numbers and in words."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Diagnosis:
    r"""The result of :func:`diagnose`; ``print`` explains it.

    All bounds are in nats, of all data.

    Attributes:
        num_data: number of data, by which ``print`` divides.
        elbo: the evidence lower bound, and its standard error ``elbo_error``.
        objective: what training maximises: the ELBO with the noise that the estimators of the
            guide give each example, and its standard error ``objective_error``. It is the ELBO
            where each example has one weight, and its likelihood depends on no other one's.
        trivial: the bound of a posterior that has learned nothing: the expected log-likelihood
            under the prior, or that of the best constant prediction if it is greater. The latter
            is known of observed sites that are Normals, Student's t, Bernoullis, Categoricals,
            Poissons or negative binomials.
        likelihood: expected log-likelihood by observed site.
        kl: KL divergence by latent site.
        collapsed: fraction of the entries of each site with a Normal prior whose posterior equals
            the prior, up to 0.01 nats.
        signal_to_noise: quantiles of :math:`|\mu| / \sigma` by site, at 0.05, 0.25, 0.5, 0.75
            and 0.95, for posteriors that have it.
        importance_bound: the importance-weighted bound from ``num_samples`` samples, which lies
            between the ELBO and the evidence.
        khat: tail index of the importance weights: above 0.7, the posterior is far from the exact
            one, though its predictions may be good.
        moved: how far the last 1,000 steps moved the bound, if ``losses`` were given.
        num_samples: number of samples.
    """

    num_data: int
    elbo: float
    elbo_error: float
    objective: float
    objective_error: float
    trivial: float
    likelihood: dict[str, float]
    kl: dict[str, float]
    collapsed: dict[str, float]
    signal_to_noise: dict[str, list[float]]
    importance_bound: float
    khat: float
    moved: float | None
    num_samples: int
    _sizes: dict[str, int] = field(repr=False)

    @property
    def collapsed_fraction(self) -> float:
        """The fraction of all entries with Normal priors whose posterior equals the prior."""
        size = sum(self._sizes[name] for name in self.collapsed)
        count = sum(f * self._sizes[name] for name, f in self.collapsed.items())
        return count / size if size else 0.0

    def findings(self) -> list[str]:
        """Problems in words, the worst first; an empty list if there are none."""
        found = []
        n = self.num_data
        error = math.hypot(self.elbo_error, self.objective_error)
        if self.objective - self.elbo > max(5 * error, 0.1 * n):
            found.append(
                f"Training maximises {self.objective / n:.3f} nats a datum, above the ELBO "
                f"({self.elbo / n:.3f}), since independent noise averages out. If it is that of "
                "the steps of a sequence or the pixels of an image, which local "
                "reparameterization has, give each example one weight: `AutoFlipout(model)`. If "
                "it is that of rows that depend on each other, give all rows one: "
                "`AutoReparameterization(model)`."
            )
        # A constant prediction is learned, too: its mean and its noise cost half of log(n) each.
        if self.elbo < self.trivial - math.log(n):
            found.append(
                f"The ELBO ({self.elbo / n:.3f} nats a datum) is below the trivial bound "
                f"({self.trivial / n:.3f}) of a posterior that has learned nothing: training has "
                "not converged. Warm the KL up (`KLWarmup`), give scales a rate of their own "
                "(`parameter_groups`), train longer."
            )
        elif self.elbo - self.trivial < 0.02 * n and self.collapsed_fraction > 0.9:
            found.append(
                f"The network has learned nothing: {self.collapsed_fraction:.0%} of the weights "
                "equal their prior. Warm the KL up from 0 (`KLWarmup`), or give more data or a "
                "narrower prior."
            )
        elif self.collapsed_fraction > 0.5:
            found.append(
                f"{self.collapsed_fraction:.0%} of the weights equal their prior: the network "
                "uses few of its units. With a warm-up of the KL from 0 this is what the data "
                "support; without, units may have collapsed early."
            )
        if self.moved is not None and abs(self.moved) > 0.01 * n:
            found.append(
                f"The last steps moved the bound by {self.moved / n:.3f} nats a datum: train "
                "longer."
            )
        if self.khat > 0.7:
            found.append(
                f"The importance weights have the tail index k = {self.khat:.2f} > 0.7: the "
                "posterior is far from the exact one, as mean-field posteriors of networks most "
                "often are. Judge the predictions on held-out data."
            )
        return found

    def __str__(self) -> str:
        n = self.num_data
        error = self.objective_error / n
        lines = [
            f"nats a datum, of {n} data, {self.num_samples} draws",
            f"  ELBO                       {self.elbo / n:10.4f} ± {self.elbo_error / n:.4f}",
            f"  objective of training      {self.objective / n:10.4f} ± {error:.4f}",
            f"  trivial bound              {self.trivial / n:10.4f}",
            f"  importance-weighted bound  {self.importance_bound / n:10.4f}",
            f"  Pareto tail index k        {self.khat:10.2f}",
        ]
        lines += [f"  log-likelihood {name:12}{v / n:10.4f}" for name, v in self.likelihood.items()]
        lines.append(
            f"  {'site':24}{'entries':>9}{'KL':>9}{'collapsed':>11}  signal to noise, quantiles"
        )
        for name, kl in self.kl.items():
            collapsed = f"{self.collapsed[name]:11.1%}" if name in self.collapsed else f"{'-':>11}"
            ratios = " ".join(f"{r:.2g}" for r in self.signal_to_noise.get(name, []))
            lines.append(f"  {name:24}{self._sizes[name]:9}{kl / n:9.4f}{collapsed}  {ratios}")
        return "\n".join([*lines, "", *self.findings()]).rstrip()
