"""Random decoders of every family, rows for them, and what they give: losses and gradients."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SHAPE = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def random_model(family: str, **more) -> torch.nn.Module:
    torch.manual_seed(3)
    windowless = {"sliding_window": None} if family in {"mistral", "phi3"} else {}
    config = AutoConfig.for_model(family, **{**SHAPE, **windowless, **more})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight.mul_(8)  # sharp attention: a wrong mask or position shows
    return model


def some_rows(rows: int = 4, width: int = 40) -> dict[str, torch.Tensor]:
    """Rows that share 17 tokens and part at the next, one of them padded."""
    torch.manual_seed(1)
    ids = torch.randint(3, 250, (rows, width))
    ids[:, :17] = ids[0, :17].clone()
    ids[:, 17] = torch.arange(rows) + 3
    mask = torch.ones_like(ids)
    mask[rows // 2, 30:] = 0
    labels = torch.full_like(ids, -100)
    labels[:, 20:35] = ids[:, 20:35]
    labels[0, 25] = -100
    labels[mask == 0] = -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def losses_and_gradients(model, batch, how) -> tuple[torch.Tensor, torch.Tensor]:
    """Every row weighs differently, as in preference objectives."""
    model.zero_grad()
    losses = how(model, batch)
    (losses.sum(dim=1) * torch.arange(1, len(losses) + 1)).sum().backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return losses.detach(), torch.cat(gradients)
