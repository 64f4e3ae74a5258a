"""Every test starts from the same random numbers and an empty parameter store."""

import gc
import inspect

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import pyro_bnn

collect_ignore_glob = ["docs/examples/*", "docs/_build/*", "docs/generated/*"]  # made by Sphinx
collect_ignore_glob += ["docs/recipes/*"]  # run by tests of their own
# They register a device for the whole process, and run in processes of their own.
collect_ignore_glob += ["tests/stand_in.py", "tests/steps_on_gpu.py"]

torch.set_num_threads(1)  # the networks are tiny


def pytest_collection_finish():
    """The garbage collector need not look through all modules again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fresh():
    torch.manual_seed(0)
    pyro.clear_param_store()
    pyro.enable_validation(True)
    yield
    pyro.clear_param_store()


@pytest.fixture
def process_group(tmp_path):
    """A group of this process alone, for modules in ``DistributedDataParallel``."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    gc.collect()  # what is left of such a module would wait for the threads of the group forever
    torch.distributed.destroy_process_group()


@pytest.fixture(autouse=True)
def _names_in_examples(request, doctest_namespace):
    """What the examples in docstrings may use without importing it; pages import everything."""
    if request.node.path.suffix == ".rst":
        doctest_namespace.clear()
        return
    modules = [getattr(pyro_bnn, name) for name in pyro_bnn.__all__]
    modules += [pyro_bnn, pyro_bnn.compat.bayesian_torch]
    public = {n: getattr(m, n) for m in modules for n in getattr(m, "__all__", ())}
    classes = {n: v for n, v in public.items() if inspect.isclass(v) or inspect.isfunction(v)}
    del classes["Normal"], classes["Laplace"]  # as priors; in examples they are Pyro's
    doctest_namespace |= classes
    doctest_namespace |= {
        "bensemble": pyro_bnn.compat.bensemble,
        "torch": torch,
        "pyro": pyro,
        "dist": dist,
        "constraints": constraints,
    }
