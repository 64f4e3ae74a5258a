"""What is skipped with torch 2.4 and 2.5, the oldest that the library works with, and why."""

from __future__ import annotations

import pytest
import torch

IS_OLD = torch.__version__ < (2, 6)

_COMPILED = "its compiler cannot make one graph of the network"
_EXPORTED = "it exports no subclass of tensors"
_MAPPED = "its `vmap` cannot run what torch's distributions do"
_MODES = "its dispatch modes have no subclass of tensors"
_EMPTY = "it flattens tensors without entries, and leaves biases of empty convolutions unset"

SKIPPED = {
    "test_a_warmup_does_not_compile_again": _COMPILED,
    "test_compiled_kls_are_summed_in_double_precision": _COMPILED,
    "test_compiled_once_for_all_numbers_of_examples": _COMPILED,
    "test_compiles_around_recurrent_layers": _COMPILED,
    "test_compiles_before_anything_has_run": _COMPILED,
    "test_compiles_in_one_graph": _COMPILED,
    "test_layers_of_other_libraries_compile_for_all_numbers_of_examples": _COMPILED,
    "test_plain_torch_needs_no_pyro": _COMPILED,
    "test_runs_and_draws[plain_torch]": _COMPILED,
    "test_wrapping_leaves_the_network_as_it_is": _COMPILED,
    "test_an_exported_network_draws_its_weights": _EXPORTED,
    "test_export_for_any_number_of_examples": _EXPORTED,
    "test_onnx_export": _EXPORTED,
    "test_functions_that_return_other_distributions": _MAPPED,
    "test_gradients_of_the_bound": _MAPPED,
    "test_new_data_differ_between_samples_and_have_their_moments": _MAPPED,
    "test_other_likelihoods": _MAPPED,
    "test_memory_is_bounded": _MODES,
    "test_sites_of_handwritten_modules": "Pyro 1.9.1 has no PyroSample that returns a tensor",
    "test_joint_has_the_draws_kl_and_gradients_of_its_parts": _EMPTY,
    "test_layers_without_features_are_as_torchs": _EMPTY,
    "test_sharded_steps_are_those_of_whole_parameters": "its `fully_shard` needs a GPU",
    "test_bfloat16_by_autocast_is_close_to_float32": "from 16 on, it draws others in bfloat16",
    "test_every_module_with_parameters_is_here": "its `nn.Unflatten` takes no single size",
}
WARNINGS = [  # of torch itself, and of the scikit-learn that goes with it
    "ignore:`torch.cpu.amp.autocast:FutureWarning",
    "ignore:You are using `torch.load` with `weights_only=False`:FutureWarning",
    "ignore:There is a performance drop:UserWarning",
    "ignore:Passing a non-Collection iterable:Warning",
]


def pytest_configure(config):
    for warning in WARNINGS if IS_OLD else ():
        config.addinivalue_line("filterwarnings", warning)


def pytest_collection_modifyitems(items):
    for item in items if IS_OLD else ():
        reason = SKIPPED.get(item.name) or SKIPPED.get(item.name.split("[")[0])
        if reason is not None:
            item.add_marker(pytest.mark.skip(f"torch {torch.__version__}: {reason}"))
