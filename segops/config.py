"""What this installation of segops runs on, and why."""

from __future__ import annotations

import platform

import torch

from segops import _library, backends


def show_config() -> str:
    """A few lines that tell the versions, the instruction set of the CPU kernels, and the state of each backend.

    Put them into a bug report. Nothing is probed that would initialise a device.
    """
    from segops import __version__

    native = _library.native
    lines = [
        f"segops {__version__}, torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}",
        f"threads: {torch.get_num_threads()}",
    ]
    if native is not None:
        lines.append(
            f"CPU kernels: {native.cpu_isa()} (this processor runs {', '.join(native.cpu_isas())}; SEGOPS_CPU_ISA "
            f"chooses), {native.compiler}, built against torch {native.torch_built_with}"
        )
    cuda = _library.cuda_unavailable
    lines.append(f"CUDA library: {'loaded' if cuda is None else f'not loaded: {cuda}'}")
    wanted = backends.requested()
    if wanted is not None:
        lines.append(f"backend asked for by name: {wanted}")
    for device_type in ("cpu", "cuda"):
        lines.append(f"backends for {device_type} tensors:")
        chosen = backends.resolve(None, torch.device(device_type)) if wanted is None else None
        for name in backends.NAMES:
            reason = backends.reason_unavailable(name, device_type)
            state = "can run" if reason is None else f"cannot run: {reason}"
            lines.append(f"  {name}: {state}{' (automatic choice)' if name == chosen else ''}")
    return "\n".join(lines)
