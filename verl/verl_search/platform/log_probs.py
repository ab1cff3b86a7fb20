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
) -> dict[str, torch.Tensor]:
    """The `log_probs` of labels, and on request the `entropy` of their distributions, each of shape (labels,).

    `logits` are those of the places, (places, vocabulary); `place` says for each label which of them it is of. The
    temperature is one for all, or one for each label.
    """

    def of_part(logits: torch.Tensor, first: int, labelled: torch.Tensor) -> dict[str, torch.Tensor]:
        """The same of some places, from the number `first` on, and of the labels whose places they are."""
        logits, its_place = logits.float(), place[labelled] - first
        if isinstance(temperature, torch.Tensor):  # a place may have several
            logits, its_place = logits[its_place] / temperature[labelled, None], torch.arange(len(labelled))
        else:
            logits = logits / temperature
        found = {"log_probs": logits[its_place, labels[labelled]] - logits.logsumexp(-1)[its_place]}
        return {**found, "entropy": entropy_from_logits(logits)[its_place]} if with_entropy else found

    in_order = place.argsort(stable=True)
    of_parts = [int(counts.sum()) for counts in place.bincount(minlength=len(logits)).split(PLACES)]
    parts = [
        checkpoint(of_part, part, number * PLACES, labelled, use_reentrant=False, preserve_rng_state=False)
        for number, (part, labelled) in enumerate(zip(logits.split(PLACES), in_order.split(of_parts), strict=True))
    ]
    return {name: torch.cat([part[name] for part in parts])[in_order.argsort()] for name in parts[0]}
