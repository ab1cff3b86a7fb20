"""Log-probabilities and entropies from the logits of a row, in float32, some places at a time.

A place of a vocabulary of 150,000 takes 600 KB in float32, and a loss and its gradient several times that. So only the
logits themselves are kept for a whole micro-batch; the backward pass computes what followed from them again.
"""

import torch
from torch.utils.checkpoint import checkpoint
from verl.utils.torch_functional import entropy_from_logits

PLACES = 64  # at a time


def log_probs_and_entropies(
    logits: torch.Tensor,
    place: torch.Tensor,
    labels: torch.Tensor,
    temperature: float | torch.Tensor,
    with_entropy: bool,
) -> tuple[torch.Tensor, ...]:
    """Log-probabilities of `labels`, and on request the entropies of their distributions, each of shape (labels,).

    `logits` are those of the places, (places, vocabulary); `place` says for each label which of them it is of. The
    temperature is one for all, or one for each label.
    """
    in_order = place.argsort(stable=True)
    of_parts = [int(labelled.sum()) for labelled in place.bincount(minlength=len(logits)).split(PLACES)]
    parts = []
    for number, (part, its) in enumerate(zip(logits.split(PLACES), in_order.split(of_parts), strict=True)):
        its_temperature = temperature[its] if isinstance(temperature, torch.Tensor) else temperature
        asked = (place[its] - number * PLACES, labels[its], its_temperature, with_entropy)
        parts.append(checkpoint(_of_part, part, *asked, use_reentrant=False, preserve_rng_state=False))
    return tuple(torch.cat(values)[in_order.argsort()] for values in zip(*parts, strict=True))


def _of_part(
    logits: torch.Tensor,
    place: torch.Tensor,
    labels: torch.Tensor,
    temperature: float | torch.Tensor,
    with_entropy: bool,
) -> tuple[torch.Tensor, ...]:
    logits = logits.float()
    if isinstance(temperature, torch.Tensor):  # a place may have several
        logits, place = logits[place] / temperature[:, None], torch.arange(len(place))
    else:
        logits = logits / temperature
    log_probs = logits[place, labels] - logits.logsumexp(-1)[place]
    return (log_probs, entropy_from_logits(logits)[place]) if with_entropy else (log_probs,)
