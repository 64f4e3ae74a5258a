"""All that is used of torch beyond its public interface, and why.

No other module imports a private name of torch; what subclasses of its classes cannot do without is
listed in :data:`INTERNALS`. With each name goes the public call that would replace it.
"""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.autograd import Variable, forward_ad
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.utils import _ntuple
from torch.utils import checkpoint
from torch.utils._python_dispatch import _disable_current_modes, _get_current_dispatch_mode

# Convolutions of any number of dimensions, and normalizations of batches and instances: torch has
# public classes for each number only, as `(nn.Conv1d, nn.Conv2d, nn.Conv3d)` and their lazy ones.
ConvNd = _ConvNd
ConvTransposeNd = _ConvTransposeNd
NormBase = _NormBase

# A number, or a tuple of as many as there are dimensions: `bayesian_torch` exports it.
ntuple = _ntuple

# The vector of all entries of some tensors, and back, in one call each. `torch.cat` and `reshape`
# replace the first, `split` and `view` the second, at several times the cost for small tensors.
flatten_dense_tensors = _flatten_dense_tensors
unflatten_dense_tensors = _unflatten_dense_tensors

# A tensor without entries, by which `torch.export` and `torch.compile` trace. A public test for
# one, and fake tensors of other subclasses, would replace these; a draw is made outside of modes.
disable_current_modes = _disable_current_modes

# The modes of `create_selective_checkpoint_contexts`, which count the operations of each kind, of
# which a recomputation must have as many. A public context outside of the count would replace them;
# a torch without them has no selective checkpoints.
_NAMES = ("_CachingTorchDispatchMode", "_CachedTorchDispatchMode")
_SELECTIVE = tuple(getattr(checkpoint, name) for name in _NAMES if hasattr(checkpoint, name))

# Lets a subclass of tensors read what is stored in itself. `Tensor.__torch_function__` does so in a
# call of a function, at twice the cost.
DisableTorchFunctionSubclass = torch._C.DisableTorchFunctionSubclass

# Runs a function at the end of a backward pass, as DDP and FSDP do. The public way, a hook on every
# parameter by `register_post_accumulate_grad_hook`, costs more than all else there.
at_end_of_backward = Variable._execution_engine.queue_callback

# The number of the backward pass that is running, or -1; no public function tells of it.
backward_id = torch._C._current_graph_task_id

# Public since torch 2.7. Before that, what is exported is compiled.
is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)

# What a ``torch.func`` transform makes of a tensor, and of what it made it; public is neither.
_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
_unwrapped = torch._C._functorch.get_unwrapped

_is_functorch_active = torch._C._are_functorch_transforms_active
_is_tracing = torch._C._is_tracing
_num_dispatch_modes = torch._C._len_torch_dispatch_stack
_hooks_of_saves = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)


def is_transformed() -> bool:
    """Whether torch traces or transforms what runs now, and differentiates formulas itself.

    It compiles, exports or traces, is inside a ``torch.func`` transform or a level of forward-mode
    differentiation, or a dispatch mode takes the operations, as that of fake tensors does. Public
    are ``torch.compiler.is_compiling`` and ``torch.jit.is_tracing`` alone.
    """
    return (
        torch.compiler.is_compiling()  # first, since a compiler understands no more of this
        or _is_functorch_active()
        or _is_tracing()
        or _num_dispatch_modes() > 0
        or forward_ad._current_level >= 0
    )


def is_func_leaf(x: torch.Tensor) -> bool:
    """Whether a ``torch.func`` transform differentiates by ``x``, which is no parameter."""
    if not _is_functorch_active() or not _is_wrapped(x) or not (x.is_leaf and x.requires_grad):
        return False
    while _is_wrapped(x):
        x = _unwrapped(x)
    return not isinstance(x, torch.nn.Parameter)


def saves_are_watched() -> bool:
    """Whether hooks see what is saved for backward passes, as those of a recomputation do.

    ``torch.autograd.graph`` has the context that sets them, and no way to ask. Torch 2.4 has none
    at all, so that they may always be there.
    """
    if _hooks_of_saves is None:
        return not _is_functorch_active()  # whose transforms take no such hooks
    return _hooks_of_saves(False) is not None


def operations_are_counted() -> bool:
    """Whether a selective checkpoint takes the operations, or its recomputation."""
    return isinstance(_get_current_dispatch_mode(), _SELECTIVE)


#: Attributes of torch's classes that a subclass reads or defines, and what would replace each.
INTERNALS = {
    # Registries of a module. `named_parameters()` and so on leave out what is None, return each
    # tensor once, and take several times longer; `register_parameter` refuses what is there.
    "_parameters": "`named_parameters(recurse=False)`, if it had entries of None and assignment",
    "_buffers": "`named_buffers(recurse=False)`, likewise",
    "_modules": "`named_children()`, likewise",
    # What a second body of a module has in common with it; `copy.copy` would copy the registries.
    "_non_persistent_buffers_set": "a public view of a module on other attributes",
    "_backward_pre_hooks": "the same",
    "_backward_hooks": "the same",
    "_is_full_backward_hook": "the same",
    "_forward_hooks": "the same",
    "_forward_hooks_with_kwargs": "the same",
    "_forward_hooks_always_called": "the same",
    "_forward_pre_hooks": "the same",
    "_forward_pre_hooks_with_kwargs": "the same",
    "_state_dict_hooks": "the same",
    "_state_dict_pre_hooks": "the same",
    "_load_state_dict_pre_hooks": "the same",
    "_load_state_dict_post_hooks": "the same",
    # Methods that torch's documentation names for subclasses, if with an underscore.
    "_apply": "a hook of `Module.to`, which does not reach tensors outside of the registries",
    "_load_from_state_dict": "`register_load_state_dict_pre_hook` of torch 2.5, which 2.4 has not",
    "_replicate_for_data_parallel": "a hook of `nn.DataParallel`",
    # The versions of modules, in what `state_dict` returns and a checkpoint has to keep.
    "_metadata": "a public attribute of a state",
    # Recurrent layers of torch have their weights in a list, too, which draws must replace.
    "_flat_weights": "a recurrent layer that reads its weights as attributes",
    "_flat_weight_refs": "the same",
    "_flat_weights_names": "`all_weights`, if it had names",
    "_init_flat_weights": "the same",
    "_update_flat_weights": "the same",
    # The part of a distribution's interface that subclasses are written with, as torch's own are.
    "_extended_shape": "`sample_shape + batch_shape + event_shape`",
    "_get_checked_instance": "a constructor without checks",
    "_validate_args": "a public property",
    "_validate_sample": "`support.check(value)` and an error of our own",
    # Of a Categorical that is made without checks, whose log weights are normalized already.
    "_num_events": "a constructor that takes normalized logits as they are",
    "_param": "the same",
}
