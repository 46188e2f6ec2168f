"""Every decoder has the members of the protocol."""

from __future__ import annotations

import inspect
from pathlib import Path

import bag_models as bag
import pytest
import runtime_models as tiny

from edgetie.runtime.decoding.decoder import Decoder
from edgetie.runtime.decoding.fixed_shape_decoder import FixedShapeDecoder
from edgetie.runtime.decoding.generation import make_decoder
from edgetie.runtime.decoding.seq2seq_decoder import Seq2SeqDecoder
from edgetie.runtime.decoding.token_decoder import TokenDecoder
from edgetie.runtime.session import open_session

WRITERS = {
    Decoder: tiny.write_packed,
    FixedShapeDecoder: bag.write_fixed,
    Seq2SeqDecoder: bag.write_seq2seq,
}


@pytest.mark.parametrize("kind", WRITERS)
def test_decoders_satisfy_the_protocol(kind: type[TokenDecoder], tmp_path: Path) -> None:
    decoder = make_decoder(open_session(WRITERS[kind](tmp_path)), 1, 3, 2)
    assert type(decoder) is kind
    for name in TokenDecoder.__annotations__:
        assert hasattr(decoder, name)
    for name in ("reset", "prefill", "step"):
        expected = inspect.signature(getattr(TokenDecoder, name))
        assert inspect.signature(getattr(kind, name)).parameters == expected.parameters
