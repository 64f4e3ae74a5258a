"""
scikit-learn: a network among the estimators
============================================

``BNNRegressor`` and ``BNNClassifier`` are scikit-learn estimators: use them in pipelines and grid
searches. The question: how does a patient's diabetes progress in a year, and how certain is the
prediction? The network is compared with a Gaussian process, Bayesian ridge regression, and a guess
that ignores the measurements of the patient.
"""

import matplotlib.pyplot as plt
import numpy as np
from helpers import few, save, table
from scipy.stats import norm
from sklearn.datasets import load_diabetes
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import BayesianRidge
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PowerTransformer

from pyro_bnn.priors import Normal
from pyro_bnn.sklearn import BNNRegressor

X, y = load_diabetes(return_X_y=True)
X, X_new, y, y_new = train_test_split(X, y, test_size=0.25, random_state=0)

# %%
# Cross-validation chooses the prior: the default, whose scales are learned, or N(0, 1). It scores
# them by the log density of the patients left out, which needs the right uncertainty, too. The
# estimator standardises features and targets itself.


def log_density(estimator, features, y):
    return norm(*estimator.predict(features, return_std=True)).logpdf(y).mean()


priors = {"learned scales": None, "N(0, 1)": Normal(0, 1)}
network = BNNRegressor(num_steps=few(1000, 5), num_samples=few(200, 5), random_state=0)
search = GridSearchCV(
    make_pipeline(PowerTransformer(), network),
    {"bnnregressor__prior": list(priors.values())},
    scoring=log_density,
    cv=2,
).fit(X, y)
scores = zip(priors, search.cv_results_["mean_test_score"], strict=True)
print(table({name: {"log density, left out": score} for name, score in scores}))

kernel = ConstantKernel(1.0) * RBF(np.full(10, 1.0), (0.1, 1e6)) + WhiteKernel(0.5)
process = GaussianProcessRegressor(kernel, normalize_y=True, optimizer=few("fmin_l_bfgs_b", None))
estimators = {
    "BNNRegressor": search.best_estimator_,
    "Gaussian process": make_pipeline(PowerTransformer(), process).fit(X, y),
    "Bayesian ridge": make_pipeline(PowerTransformer(), BayesianRidge()).fit(X, y),
}

# %%
# All of them return standard deviations by ``predict(X, return_std=True)``.

predictions = {e: estimators[e].predict(X_new, return_std=True) for e in estimators}
predictions["guess"] = np.full(len(y_new), y.mean()), np.full(len(y_new), y.std())
rows = {}
for name, (mean, std) in predictions.items():
    rows[name] = {
        "RMSE": np.sqrt(np.mean((mean - y_new) ** 2)),
        "log density": norm(mean, std).logpdf(y_new).mean(),
        "in 90%": np.mean(abs(mean - y_new) < 1.645 * std),
    }
print(table(rows))

# %%
# Each line is the 90% interval of a patient, each point the observed progression. With so few data,
# a linear method is hard to beat. What matters for the others is that they are not overconfident.

figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharey=True, layout="constrained")
for axis, (name, (mean, std)) in zip(axes, predictions.items(), strict=False):
    place = np.argsort(np.argsort(mean))
    axis.vlines(place, mean - 1.645 * std, mean + 1.645 * std, color="C0", alpha=0.4)
    inside = abs(mean - y_new) < 1.645 * std
    axis.plot(place[inside], y_new[inside], ".", color="black", label="inside")
    axis.plot(place[~inside], y_new[~inside], ".", color="C3", label="outside")
    axis.set(title=f"{name}: RMSE {rows[name]['RMSE']:.1f}", xlabel="patients, by prediction")
axes[0].set_ylabel("progression of the disease")
axes[0].legend()
save(figure, "scikit_learn")
