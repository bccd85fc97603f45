"""torch.optim.AdamW, without the compiler."""

from inspect import unwrap

import torch


class AdamW(torch.optim.AdamW):
    """torch.optim.AdamW whose methods do not import torch._dynamo.

    PyTorch wraps these five (2.9 to 2.13 alike) so that torch.compile, should it trace them, leaves them out. The
    wrappers import torch._dynamo at their first call, compiling or not: 800 modules, sympy among them, which take as
    long as torch itself. The optimizer is never compiled here, so the functions inside, which functools.wraps keeps in
    __wrapped__, do the same. Where there is no wrapper, unwrap() returns the method itself."""

    add_param_group = unwrap(torch.optim.AdamW.add_param_group)
    load_state_dict = unwrap(torch.optim.AdamW.load_state_dict)
    state_dict = unwrap(torch.optim.AdamW.state_dict)
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))  # its wrapper also turns gradients off
    zero_grad = unwrap(torch.optim.AdamW.zero_grad)
