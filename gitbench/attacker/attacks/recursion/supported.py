"""Which layers the attack can differentiate, image by image; the others are named."""

from __future__ import annotations

from torch import nn

from gitbench.core.errors import AttackError


def check_layers(model: nn.Module) -> None:
    """Refuse layers that the recursion cannot walk through.

    Raises:
        AttackError: naming all of them, and why.
    """
    wrong = []
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and (module.training or module.running_mean is None):
            wrong.append(f"{name!r} ({type(module).__name__}: its output depends on the whole batch)")
        elif isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p > 0:
            wrong.append(f"{name!r} ({type(module).__name__}: it drops at random)")
    if wrong:
        raise AttackError(
            f"The attack recursion cannot walk through {', '.join(wrong)}. Use ig or dlg for this model, or mode='eval' of the model."
        )
