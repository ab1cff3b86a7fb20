import pytest
import torch

from verl_search.platform.log_probs import PLACES, log_probs_and_entropies

VOCABULARY = 50


def asked(places: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of the places, and labels in any order, of which a place has none or several."""
    torch.manual_seed(0)
    place = torch.randint(places, (2 * places,)) if places else torch.empty(0, dtype=torch.long)
    return (3 * torch.randn(places, VOCABULARY)).requires_grad_(), place, torch.randint(VOCABULARY, (len(place),))


@pytest.mark.parametrize("places", [0, 1, PLACES, 2 * PLACES + 1])
@pytest.mark.parametrize("of_each", [False, True])
def test_the_values_and_gradients_are_those_of_the_whole(places: int, of_each: bool) -> None:
    logits, place, labels = asked(places)
    temperature = torch.rand(len(place)) + 0.5 if of_each else 0.7
    scaled = logits[place] / (temperature[:, None] if isinstance(temperature, torch.Tensor) else temperature)
    log_softmax = scaled.log_softmax(-1)
    expected = (log_softmax.gather(-1, labels[:, None])[:, 0], -(log_softmax.exp() * log_softmax).sum(-1))
    both = log_probs_and_entropies(logits, place, labels, temperature, True)
    found = (both["log_probs"], both["entropy"])
    weights = torch.randn(2, len(place))
    gradients = []
    for values in (expected, found):
        torch.testing.assert_close(values, expected)
        (weights * torch.stack(values)).sum().backward()
        assert logits.grad is not None
        gradients.append(logits.grad)
        logits.grad = None
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-4)
    alone = log_probs_and_entropies(logits, place, labels, temperature, False)
    assert [*alone] == ["log_probs"]
    torch.testing.assert_close(alone["log_probs"], expected[0])


def test_of_logits_in_bfloat16_nothing_as_large_is_kept() -> None:
    logits, place, labels = asked(4 * PLACES)
    kept = 0

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept += tensor.untyped_storage().nbytes() if tensor.dtype == torch.float32 else 0
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = log_probs_and_entropies(logits.bfloat16(), place, labels, 1.0, True)
    assert found["log_probs"].dtype == torch.float32
    assert kept < len(logits) * VOCABULARY
