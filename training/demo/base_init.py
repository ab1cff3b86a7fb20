"""The prior that the demo's base model starts from: a copying circuit, put in by hand before pretraining.

A transformer of this size needs far more than ten CPU minutes to discover copying ("induction") by itself, so the
initialisation plants the two parts of it and pretraining only refines them:

- layer 0, head 0 attends to the previous token and writes what it finds into a part of the residual stream that the
  token embeddings leave almost empty;
- head 0 of every later layer looks for positions whose previous token is the current one, and every head starts as a
  copy (its output projection is the transpose of its value projection).

Nothing in it knows a tag, a name, a question or a fact. The idea is that of induction heads (Olsson et al. 2022,
arXiv 2209.11895).
"""

import math

import torch
from transformers import Qwen2ForCausalLM

EMBEDDING_STD = 0.12
PREVIOUS_TOKEN_SHARPNESS = 8.0
MATCH_GAIN = 1.5
COPY_GAIN = 0.3


@torch.no_grad()
def plant_copying(model: Qwen2ForCausalLM, generator: torch.Generator) -> None:
    """Overwrite embeddings and attention weights of `model` in place."""
    config = model.config
    hidden, head_dim = config.hidden_size, config.hidden_size // config.num_attention_heads
    free = hidden - head_dim  # the last head_dim dimensions carry the previous token
    embedding = model.model.embed_tokens.weight
    embedding.normal_(0, EMBEDDING_STD, generator=generator)
    embedding[:, free:] *= 0.1
    basis, _ = torch.linalg.qr(torch.randn(free, head_dim, generator=generator))
    read_token = torch.cat([basis.T, torch.zeros(head_dim, head_dim)], dim=1)
    read_previous = torch.cat([torch.zeros(head_dim, free), torch.eye(head_dim)], dim=1)
    head_0 = slice(0, head_dim)
    for number, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        rotation, _ = torch.linalg.qr(torch.randn(hidden, hidden, generator=generator))
        attention.v_proj.weight.copy_(rotation * math.sqrt(COPY_GAIN))
        attention.o_proj.weight.copy_(rotation.T * math.sqrt(COPY_GAIN))
        attention.v_proj.bias.zero_()
        if number == 0:
            _attend_to_previous(attention, head_dim, float(config.rope_parameters["rope_theta"]))
            attention.v_proj.weight[head_0] = read_token
            attention.o_proj.weight[:, head_0] = read_previous.T * 0.5
        else:
            attention.q_proj.weight[head_0] = read_token * MATCH_GAIN
            attention.k_proj.weight[head_0] = read_previous * MATCH_GAIN


def _attend_to_previous(attention: torch.nn.Module, head_dim: int, rope_theta: float) -> None:
    """Head 0: constant query and key whose rotary product peaks at distance one."""
    head_0 = slice(0, head_dim)
    angles = rope_theta ** (-torch.arange(0, head_dim, 2).float() / head_dim)
    sharp = PREVIOUS_TOKEN_SHARPNESS
    attention.q_proj.weight[head_0] = 0
    attention.k_proj.weight[head_0] = 0
    attention.k_proj.bias[head_0] = torch.cat([torch.full((head_dim // 2,), sharp), torch.zeros(head_dim // 2)])
    attention.q_proj.bias[head_0] = torch.cat([sharp * torch.cos(angles), -sharp * torch.sin(angles)])
