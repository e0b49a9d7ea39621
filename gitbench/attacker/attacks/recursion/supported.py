"""Which layers the attack can differentiate twice and read a gradient of; the others are named."""

from __future__ import annotations

from torch import nn

from gitbench.clients.model import Normalize
from gitbench.core.errors import AttackError

_READ = (
    nn.Linear, nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm,
    nn.PReLU, Normalize,
)  # fmt: skip


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
        elif not any(module.children()) and any(True for _ in module.parameters()) and not isinstance(module, _READ):
            wrong.append(f"{name!r} ({type(module).__name__}: its gradient is none of a linear layer, a convolution or a norm)")
    if wrong:
        raise AttackError(
            f"The attack recursion cannot walk through {', '.join(wrong)}. Expected linear layers, convolutions, norms and "
            "layers without parameters, all in eval mode. Use ig or dlg for this model."
        )
