"""What bayesian-torch has besides Bayesian layers, under its paths and under its name."""

from __future__ import annotations

import copy
import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pyro_bnn.compat import bayesian_torch, to_pyro
from pyro_bnn.compat.bayesian_torch import (
    MOPED,
    AUAvULoss,
    AvULoss,
    BatchNorm2dLayer,
    Conv2dFlipout,
    Dropout,
    EaCLoss,
    EaULoss,
    LinearFlipout,
    LinearReparameterization,
    ReLU,
    dnn_to_bnn,
    get_rho,
    install,
    uninstall,
)
from pyro_bnn.conversion import to_deterministic

HERE = "pyro_bnn.compat.bayesian_torch"

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import bayesian_torch.layers as theirs
    import bayesian_torch.models.bayesian.resnet_flipout as their_resnet_flipout
    import bayesian_torch.models.bayesian.resnet_flipout_large as their_large_flipout
    import bayesian_torch.models.bayesian.resnet_variational as their_resnet
    import bayesian_torch.models.bayesian.resnet_variational_large as their_large
    import bayesian_torch.models.bayesian.simple_cnn_variational as their_cnn
    import bayesian_torch.models.dnn_to_bnn as their_conversion
    import bayesian_torch.utils.avuc_loss as their_loss
    import bayesian_torch.utils.util as their_util

PATHS = [
    "layers",
    "layers.base_variational_layer",
    "layers.variational_layers",
    "layers.variational_layers.linear_variational",
    "layers.variational_layers.conv_variational",
    "layers.variational_layers.rnn_variational",
    "layers.flipout_layers",
    "layers.flipout_layers.linear_flipout",
    "layers.flipout_layers.conv_flipout",
    "layers.flipout_layers.rnn_flipout",
    "layers.batchnorm",
    "layers.dropout",
    "layers.relu",
    "models.dnn_to_bnn",
    "utils.util",
    "utils.avuc_loss",
]


def defined(module):
    """What a module of theirs defines, but for quantised layers."""
    return {
        name
        for name, value in vars(module).items()
        if getattr(value, "__module__", "").startswith(module.__name__) and "Quantized" not in name
    }


@pytest.mark.parametrize("path", PATHS)
def test_paths(path):
    their = importlib.import_module(f"bayesian_torch.{path}")
    ours = importlib.import_module(f"{HERE}.{path}")
    assert defined(their) <= set(ours.__all__) <= set(vars(ours))
    assert ours.__name__ == f"{HERE}.{path}"
    for name in ours.__all__:
        value = getattr(ours, name)
        assert value.__module__.startswith(HERE)
        if hasattr(bayesian_torch, name):
            assert value is getattr(bayesian_torch, name)


# Under bayesian-torch's own name.


@pytest.fixture
def alias():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of bayesian-torch's own modules
        install()
        yield
    uninstall()


def test_alias_and_back():
    before = {n: m for n, m in sys.modules.items() if n.split(".")[0] == "bayesian_torch"}
    install()
    install()
    for path in PATHS:
        module = importlib.import_module(f"bayesian_torch.{path}")
        assert module.__all__ == importlib.import_module(f"{HERE}.{path}").__all__
    assert importlib.import_module("bayesian_torch").layers.LinearFlipout is LinearFlipout
    with pytest.raises(ImportError, match="QuantizedLinearFlipout"):
        from bayesian_torch.layers import QuantizedLinearFlipout  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match=r"bayesian_torch\.ao"):
        importlib.import_module("bayesian_torch.ao.quantization")
    uninstall()
    uninstall()
    after = {n: m for n, m in sys.modules.items() if n.split(".")[0] == "bayesian_torch"}
    assert before == after
    assert not hasattr(bayesian_torch.models, "bayesian")
    assert theirs.LinearFlipout.__module__.startswith("bayesian_torch")


def test_alias_in_a_fresh_process_without_bayesian_torch():
    code = f"""
import importlib.util
import sys
import {HERE} as ours
assert "bayesian_torch" not in sys.modules
importlib.util.find_spec = lambda name: None
ours.install()
from bayesian_torch.layers import LinearFlipout
from bayesian_torch.layers.flipout_layers.linear_flipout import LinearFlipout as Other
import bayesian_torch.models.dnn_to_bnn as conversion
assert LinearFlipout is Other is ours.LinearFlipout
assert conversion.get_kl_loss is ours.get_kl_loss
ours.uninstall()
assert not [name for name in sys.modules if name.startswith("bayesian_torch")]
"""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True)


def small(module, block):
    return lambda: module.ResNet(getattr(module, block), [1, 1, 1, 1], num_classes=3)


NETWORKS = {
    "SCNN": (their_cnn, lambda module: module.SCNN(), (2, 1, 28, 28)),
    "ResNet-20": (their_resnet, lambda module: module.resnet20(), (2, 3, 16, 16)),
    "ResNet-20 by flipout": (
        their_resnet_flipout,
        lambda module: module.resnet20(),
        (2, 3, 16, 16),
    ),
    # ResNet-18 and -50 with one block where they have several.
    "ResNet-18": (their_large, lambda module: small(module, "BasicBlock")(), (1, 3, 224, 224)),
    "ResNet-50": (
        their_large_flipout,
        lambda module: small(module, "Bottleneck")(),
        (1, 3, 224, 224),
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_of_bayesian_torch_run_as_they_are(alias, name):
    their_module, make, shape = NETWORKS[name]
    module = importlib.import_module(their_module.__name__)
    assert module is not their_module
    net, x = make(module), torch.randn(shape)
    assert type(net.conv1).__module__.startswith(HERE)
    # Loops over torch's layers in their constructors pass the Bayesian ones by.
    assert net.conv1.mu_kernel.std().item() == pytest.approx(0.1, rel=0.2)
    out, kl = net(x)
    torch.testing.assert_close(kl, bayesian_torch.get_kl_loss(net), rtol=1e-5, atol=0.0)
    (out.square().sum() + kl / 1000).backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in net.parameters())
    # Their numbers, on the same parameters.
    their = make(their_module)
    their.load_state_dict(net.state_dict(), strict=True)
    for layer in net.modules():
        if isinstance(layer, bayesian_torch.BaseVariationalLayer_):
            layer.kl_reduction = "mean"
            for key, buffer in layer.named_buffers():
                if "sigma" in key:  # there, `prior_variance` is no variance
                    buffer.square_()
    torch.testing.assert_close(
        bayesian_torch.get_kl_loss(net), their_conversion.get_kl_loss(their), rtol=1e-4, atol=1e-4
    )
    for each in (net.eval(), their.eval()):
        with torch.no_grad():
            for key, parameter in each.named_parameters():
                if "rho" in key:
                    parameter.fill_(-40.0)
    with torch.no_grad():
        torch.testing.assert_close(net(x)[0], their(x)[0], rtol=1e-3, atol=1e-3)


# Layers that pass on what the KL divergence is so far.


@pytest.mark.parametrize("name", ["BatchNorm1dLayer", "BatchNorm2dLayer", "BatchNorm3dLayer"])
@pytest.mark.parametrize("affine", [True, False])
def test_normalisation_passes_the_kl_on(name, affine):
    their = getattr(theirs, name)(3, 1e-4, 0.2, affine)
    layer = getattr(bayesian_torch, name)(3, 1e-4, 0.2, affine)
    layer.load_state_dict(their.state_dict(), strict=True)
    x = torch.randn(4, 3, *[5] * int(name[9]))
    kl = torch.tensor(7.0)
    for each in (layer, their):
        each((x, kl))
    out, total = layer((x, kl))
    assert total is kl
    torch.testing.assert_close(out, their((x, kl))[0])
    torch.testing.assert_close(layer.state_dict(), their.state_dict())
    torch.testing.assert_close(layer.eval()((x, kl))[0], their.eval()((x, kl))[0])
    torch.testing.assert_close(layer(x), layer((x, kl))[0])
    # A batch of two is no pair.
    assert layer(x[:2]).shape == x[:2].shape


def test_networks_in_sequence_keep_the_kl():
    net = nn.Sequential(
        Conv2dFlipout(1, 2, 3), BatchNorm2dLayer(2), ReLU(inplace=True), Dropout(0.5)
    )
    out, kl = net(torch.randn(4, 1, 5, 5))
    torch.testing.assert_close(kl, net[0].kl_loss())
    assert (out >= 0).all()
    assert 0.3 < (out == 0).float().mean() < 0.9
    out, _ = net.eval()(torch.randn(4, 1, 5, 5))
    assert ReLU()(torch.tensor([-1.0, 2.0])).tolist() == [0.0, 2.0]
    assert Dropout(0.0)((torch.ones(3), 5))[1] == 5
    with pytest.raises(ValueError, match="dropout probability"):
        Dropout(1.5)


# Uncertainty.


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_uncertainties_are_theirs(dtype):
    samples = np.random.default_rng(0).dirichlet([0.3] * 4, (6, 5)).astype(dtype)
    for name in ("entropy", "predictive_entropy", "mutual_information"):
        function = getattr(bayesian_torch, name)
        for module in (their_util, their_loss):
            expected = getattr(module, name)(samples)
            result = function(samples)
            assert result.dtype == dtype
            np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)
        found = function(torch.tensor(samples))
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-6)
    certain = np.eye(3)
    assert (bayesian_torch.entropy(certain) == 0).all()
    assert bayesian_torch.entropy(np.full(4, 0.25)) == pytest.approx(np.log(4))


def outputs():
    torch.manual_seed(3)
    return 2 * torch.randn(60, 4), torch.randint(4, (60,))


def test_avu_loss_is_theirs():
    logits, labels = outputs()
    for threshold in (0.01, 0.7, 1.2, 9.0):
        results = []
        for module in (bayesian_torch, their_loss):
            x = logits.clone().requires_grad_()
            loss = module.AvULoss(beta=3)(x, labels, threshold)
            loss.backward()
            results.append((loss.detach(), x.grad))
        assert results[0][0].shape == (1,)
        torch.testing.assert_close(*results)
    unc = AvULoss().entropy(logits.softmax(-1))
    prediction = logits.argmax(-1)
    metric = AvULoss().accuracy_vs_uncertainty(prediction, labels, unc, 0.7)
    assert metric.item() == pytest.approx(
        their_loss.accuracy_vs_uncertainty(prediction, labels, unc, 0.7)
    )
    arrays = [t.numpy() for t in (prediction, labels, unc)]
    assert bayesian_torch.accuracy_vs_uncertainty(*arrays, 0.7) == pytest.approx(
        their_loss.accuracy_vs_uncertainty(*arrays, 0.7)
    )
    for ours, their in zip(
        bayesian_torch.eval_avu(*arrays), their_loss.eval_avu(*arrays), strict=True
    ):
        np.testing.assert_allclose(ours, their)


def test_area_under_avu_is_theirs():
    logits, labels = outputs()
    unc = AUAvULoss().entropy(logits.softmax(-1))
    expected = their_loss.AUAvULoss().auc_avu(logits, labels, unc)
    assert AUAvULoss().auc_avu(logits, labels, unc).item() == pytest.approx(expected, rel=1e-5)
    x = logits.double().requires_grad_()
    loss, area = AUAvULoss(beta=2)(x, labels)  # which theirs cannot
    assert area.item() == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(loss, -2 * area.log())
    loss.backward()
    moved = x.detach().clone()
    moved[0, 1] += 1e-6
    difference = (AUAvULoss(beta=2)(moved, labels)[0] - loss).item() / 1e-6
    assert difference == pytest.approx(x.grad[0, 1].item(), rel=1e-3)


def test_avu_loss_of_samples():
    torch.manual_seed(0)
    logits, labels = torch.randn(7, 20, 3, dtype=torch.double), torch.randint(3, (20,))
    probs = logits.softmax(-1)
    mean = probs.mean(0)
    entropy = lambda p: -(p * p.log()).sum(-1)
    for type, unc in ((0, entropy(mean)), (1, entropy(mean) - entropy(probs).mean(0))):
        n = dict.fromkeys(("ac", "au", "ic", "iu"), 0.0)
        for p, u, label in zip(mean, unc, labels, strict=True):
            right, sure = p.argmax() == label, u <= 0.4
            weight = (p.max() if right else 1 - p.max()) * (1 - u.tanh() if sure else u.tanh())
            n["ai"[int(not right)] + "cu"[int(not sure)]] += weight
        expected = -torch.log((n["ac"] + n["iu"]) / sum(n.values()))
        assert AvULoss()(logits, labels, 0.4, type).item() == pytest.approx(expected.item())
        torch.testing.assert_close(
            AUAvULoss()(logits, labels, type)[1], AUAvULoss()._area(*parts(mean, labels, unc))
        )


def parts(mean, labels, unc):
    confidence, prediction = mean.max(-1)
    right = prediction == labels
    return right, torch.where(right, confidence, 1 - confidence), unc


def test_losses_of_regressions():
    error, unc = torch.tensor([0.1, 2.0, 0.3, 1.0]), torch.tensor([0.2, 1.5, 2.0, 0.1])
    t = torch.tanh
    lc, hu = (1 - t(error[0])) * (1 - t(unc[0])), t(error[1]) * t(unc[1])
    lu, hc = (1 - t(error[2])) * t(unc[2]), t(error[3]) * (1 - t(unc[3]))
    expected = -2 * torch.log((lc + hu) / (lc + lu + hc + hu))
    torch.testing.assert_close(EaULoss(2)(error, unc, 0.5, 0.5), expected.reshape(1))
    conf = torch.tensor([0.9, 0.2, 0.1, 0.8])
    lc, hu = (1 - t(error[0])) * conf[0], t(error[1]) * (1 - conf[1])
    lu, hc = (1 - t(error[2])) * (1 - conf[2]), t(error[3]) * conf[3]
    expected = -torch.log((lc + hu) / (lc + lu + hc + hu))
    torch.testing.assert_close(EaCLoss()(error, conf, 0.5, 0.5), expected.reshape(1))


def test_losses_refuse():
    logits, labels = outputs()
    with pytest.raises(ValueError, match=r"`beta` \(=-1\) must be positive"):
        AvULoss(beta=-1)
    with pytest.raises(ValueError, match="`type=1` needs `logits` of several samples"):
        AvULoss()(logits, labels, 0.5, 1)
    with pytest.raises(ValueError, match=r"`type` \(=2\) must be 0"):
        AUAvULoss()(logits, labels, 2)
    with pytest.raises(ValueError, match=r"`labels` of shape \(59,\)"):
        AvULoss()(logits, labels[1:], 0.5)
    with pytest.raises(ValueError, match=r"`optimal_uncertainty_threshold` \(=nan\)"):
        AvULoss()(logits, labels, float("nan"))
    with pytest.raises(ValueError, match=r"`error` has shape \(2, 1\)"):
        EaULoss()(torch.ones(2, 1), torch.ones(2), 0.5, 0.5)


# MOPED.


def deterministic():
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(27, 2),
    )
    net(torch.randn(5, 1, 5, 5))
    return net


def bayesian(conv=Conv2dFlipout, linear=LinearReparameterization):
    return nn.Sequential(
        conv(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), linear(27, 2)
    )


@pytest.mark.parametrize("function", [MOPED, their_util.MOPED])
def test_moped(tmp_path, function):
    trained = deterministic()
    torch.save(trained.state_dict(), tmp_path / "trained.pt")
    net = bayesian()
    assert function(net, deterministic(), tmp_path / "trained.pt", 0.2) is net
    for mu, rho, prior, w in [
        (net[0].mu_kernel, net[0].rho_kernel, net[0].prior_weight_mu, trained[0].weight),
        (net[4].mu_weight, net[4].rho_weight, net[4].prior_weight_mu, trained[4].weight),
        (net[4].mu_bias, net[4].rho_bias, net[4].prior_bias_mu, trained[4].bias),
    ]:
        torch.testing.assert_close(mu, w)
        torch.testing.assert_close(prior, w.detach())
        torch.testing.assert_close(rho.detach(), their_util.get_rho(w.detach(), 0.2))
        torch.testing.assert_close(get_rho(w, 0.2), their_util.get_rho(w, 0.2))
    torch.testing.assert_close(net[1].state_dict(), trained[1].state_dict())
    sigma = 0.2 * torch.cat([p.detach().abs().flatten() for p in layers_of(trained)])
    expected = (-sigma.log() + sigma.square() / 2 - 0.5).sum()
    torch.testing.assert_close(bayesian_torch.get_kl_loss(net), expected, rtol=1e-4, atol=1e-3)
    if function is MOPED:  # theirs has priors that move with the posteriors
        with torch.no_grad():
            net[0].mu_kernel.add_(1.0)
        torch.testing.assert_close(net[0].prior_weight_mu, trained[0].weight.detach())


def layers_of(net):
    return [*net[0].parameters(), *net[4].parameters()]


def test_moped_refuses(tmp_path):
    path = tmp_path / "trained.pt"
    torch.save(deterministic().state_dict(), path)
    net = bayesian()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=r"`model` has 3 layers \['0', '1', '4'\], `det_model` 2"):
        MOPED(net, deterministic()[:2], path, 0.2)
    other = deterministic()
    other[4] = nn.Linear(27, 3)
    with pytest.raises(ValueError, match=r"`4` of `model` has .* the corresponding `4`"):
        MOPED(net, other, path, 0.2)
    with pytest.raises(ValueError, match=r"`delta` \(=0\) must be positive"):
        MOPED(net, deterministic(), path, 0)
    with pytest.raises(TypeError, match=r"`0`, a Conv2dRadial, cannot have"):
        MOPED(bayesian(bayesian_torch.Conv2dRadial), deterministic(), path, 0.2)
    torch.testing.assert_close(net.state_dict(), before)


def test_single_layers_are_converted_as_copies():
    conversion = importlib.import_module(f"{HERE}.models.dnn_to_bnn")
    parameters = {"prior_mu": 0.0, "prior_sigma": 1.0, "posterior_mu_init": 0.0}
    parameters |= {"posterior_rho_init": -3.0, "type": "Flipout", "moped_enable": False}
    layer = nn.Linear(3, 2)
    made = conversion.bnn_linear_layer(parameters, layer)
    assert type(made) is LinearFlipout
    assert made.dnn_to_bnn_flag
    assert type(layer) is nn.Linear
    base = importlib.import_module(f"{HERE}.layers.base_variational_layer")
    assert base.get_kernel_size(3, 2) == (3, 3)
    assert base.get_kernel_size([2, 1], 2) == (2, 1)


@pytest.mark.parametrize("estimator", ["Reparameterization", "Flipout", "Radial", "Mixture"])
def test_deterministic_networks_have_layers_of_torch(estimator):
    net = deterministic()
    parameters = {"prior_mu": 0.0, "prior_sigma": 1.0, "posterior_mu_init": 0.0}
    dnn_to_bnn(net, parameters | {"posterior_rho_init": -3.0, "type": estimator})
    plain = to_deterministic(*to_pyro(net.eval()))
    assert [type(m) for m in plain] == [type(m) for m in deterministic()]
    fresh = deterministic()
    assert set(vars(plain[4])) == set(vars(fresh[4]))
    assert set(vars(plain[0])) == set(vars(fresh[0]))
    fresh.load_state_dict(plain.state_dict(), strict=True)
    x = torch.randn(5, 1, 5, 5)
    torch.testing.assert_close(fresh.eval()(x), plain(x))
    q = net[4]._posteriors["weight"].distribution()
    torch.testing.assert_close(plain[4].weight.detach(), q.mean.detach())
    # A layer that returns its KL divergence, too, goes on to do so.
    layer = LinearFlipout(3, 2)
    plain = to_deterministic(*to_pyro(layer))
    out, kl = plain(torch.ones(4, 3))
    assert kl == 0
    torch.testing.assert_close(
        out, nn.functional.linear(torch.ones(4, 3), layer.mu_weight, layer.mu_bias)
    )
