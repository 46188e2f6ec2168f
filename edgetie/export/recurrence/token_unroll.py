"""Recurrent layers: a model is traced one token at a time, its states are looped afterwards.

Whatever a recurrent layer does with a whole sequence at once (chunks, scans, Python loops), with
one token and a state it does the plain thing. So every token of a batch is traced as a row of its
own, ``(batch * sequence, 1)``: projections, norms and experts cannot tell rows from sequences,
attention joins a sequence again (:meth:`TokenUnroll.together`), and a state is what the row before
left. That last part no trace can say: two marked nodes stand for it, and
:mod:`scan` puts what lies between them into an ONNX Scan over the sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

DOMAIN, PAST_STATE, PRESENT_STATE = "edgetie", "PastState", "PresentState"
"""The marked nodes: ``state (batch, *sizes), ids (batch, sequence) -> (batch * sequence, *sizes)``,
the state in front of each token; and the state behind each, which becomes that behind the last.
"""
_VERSION = 1


@dataclass(frozen=True)
class TokenUnroll:
    """The tokens ``(batch, sequence)`` of a trace, each a row of its own."""

    ids: torch.Tensor

    def apart(self, tensor: torch.Tensor) -> torch.Tensor:
        """``(batch, sequence, ...)`` to ``(batch * sequence, 1, ...)``."""
        return tensor.reshape(-1, 1, *tensor.shape[2:])

    def together(self, tensor: torch.Tensor) -> torch.Tensor:
        """``(batch * sequence, heads, 1, size)`` to ``(batch, heads, sequence, size)``."""
        _, heads, _, size = tensor.shape
        return tensor.reshape(*self.ids.shape, heads, size).transpose(1, 2)

    def past(self, state: torch.Tensor) -> torch.Tensor:
        """The state in front of each row, of the states ``(batch, *sizes)`` before the first."""
        rows = self.apart(self.ids).shape[0]
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{PAST_STATE}",
            [state, self.ids],
            dtype=state.dtype,
            shape=(rows, *state.shape[1:]),
            version=_VERSION,
        )

    def present(self, state: torch.Tensor, past: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """The states ``(batch, *sizes)`` behind the last row.

        Args:
            state: behind each row, ``(batch * sequence, *sizes)``.
            past: in front of each; it stays where a row is padding.
            valid: ``(batch, sequence)``, false where a row is padding.
        """
        kept = valid.reshape(-1, *[1] * (past.ndim - 1))
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{PRESENT_STATE}",
            [torch.where(kept, state.to(past.dtype), past), past],
            dtype=past.dtype,
            shape=(self.ids.shape[0], *past.shape[1:]),
            version=_VERSION,
        )
