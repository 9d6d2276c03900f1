"""NEFTune: uniform noise on the embeddings of a batch. Knows neither loss nor layers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from tunesmith.models.joined import Joined


@contextmanager
def embedding_noise(
    model: Any, alpha: float | None, mask: torch.Tensor, joined: Joined | None = None
) -> Iterator[None]:
    """While it lasts, embeddings get uniform noise of at most alpha / sqrt(L d), L the tokens of their row, d their width.

    (arXiv 2310.05914, algorithm 1.) `mask` (B, T) is 1 for real tokens; `joined` are the rows in one sequence,
    nothing of them shared. An alpha of None adds nothing.
    """
    import torch

    if alpha is None:
        yield
        return
    limits = alpha / mask.sum(dim=1).float().sqrt()  # (B,)
    each = limits[:, None, None].expand(*mask.shape, 1)  # (B, T, 1)
    limits = joined.in_line(each[0, :0], each)[None] if joined else each

    def add(_module: Any, _words: Any, embeddings: torch.Tensor) -> torch.Tensor:
        drawn = torch.empty_like(embeddings).uniform_(-1, 1)
        return embeddings + drawn * (limits / embeddings.shape[-1] ** 0.5).to(embeddings.dtype)

    hook = model.get_input_embeddings().register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()
