"""Trace recurrent layers one token at a time, their states as marked nodes.

With one token and a state, every recurrent layer computes the plain recurrence. So every token is
traced as a batch item, and :mod:`scan` moves the nodes between marked ones into an ONNX Scan.
"""

from dataclasses import dataclass

import torch

DOMAIN, PAST_STATE, PRESENT_STATE = "edgetie", "PastState", "PresentState"
"""The marked nodes. ``PastState(state (batch, *sizes), ids (batch, sequence))`` is the state before
each token, ``(batch * sequence, *sizes)``. ``PresentState(state, past)`` reads the state after each
token and is the state after the last, ``(batch, *sizes)``.
"""
_VERSION = 1


@dataclass(frozen=True)
class TokenUnroll:
    """The token ids ``(batch, sequence)`` of a trace, each traced as a batch item."""

    ids: torch.Tensor

    def split(self, tensor: torch.Tensor) -> torch.Tensor:
        """Reshape ``(batch, sequence, ...)`` to ``(batch * sequence, 1, ...)``."""
        return tensor.reshape(-1, 1, *tensor.shape[2:])

    def merge(self, tensor: torch.Tensor) -> torch.Tensor:
        """Turn ``(batch * sequence, heads, 1, size)`` into ``(batch, heads, sequence, size)``."""
        _, heads, _, size = tensor.shape
        return tensor.reshape(*self.ids.shape, heads, size).transpose(1, 2)

    def past_state(self, state: torch.Tensor) -> torch.Tensor:
        """Emit the state before each token; ``state (batch, *sizes)`` is before the first."""
        tokens = self.split(self.ids).shape[0]
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{PAST_STATE}",
            [state, self.ids],
            dtype=state.dtype,
            shape=(tokens, *state.shape[1:]),
            version=_VERSION,
        )

    def present_state(
        self, state: torch.Tensor, past: torch.Tensor, valid: torch.Tensor
    ) -> torch.Tensor:
        """Emit the states ``(batch, *sizes)`` after the last token.

        ``state`` is after each token and ``past`` before each, ``(batch * sequence, *sizes)``.
        Padding, for which ``valid (batch, sequence)`` is false, does not change it.
        """
        is_token = valid.reshape(-1, *[1] * (past.ndim - 1))
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{PRESENT_STATE}",
            [torch.where(is_token, state.to(past.dtype), past), past],
            dtype=past.dtype,
            shape=(self.ids.shape[0], *past.shape[1:]),
            version=_VERSION,
        )
