"""One batch out of the batches of several processes, so that contrast sees every negative."""

import torch
from torch import Tensor


def gather_rows(features: Tensor) -> Tensor:
    """Stack the rows of all processes, in rank order.

    The gradient is summed over the processes. So when each computes the loss of the whole batch and
    ``DistributedDataParallel`` averages, parameters get the gradient of one process with the whole batch. The official
    gather keeps the local slice only, and encoders get 1 / W of it (FIDELITY.md, row 22).

    Args:
        features: ``[B, D]``, the same ``B`` in every process.

    Returns:
        ``[W B, D]``; ``features`` itself in a single process.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return features
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(features))
