"""Every test starts from the same random numbers and an empty parameter store."""

import pyro
import pytest
import torch

torch.set_num_threads(1)  # the networks are tiny


@pytest.fixture(autouse=True)
def _fresh():
    torch.manual_seed(0)
    pyro.clear_param_store()
    pyro.enable_validation(True)
    yield
    pyro.clear_param_store()
