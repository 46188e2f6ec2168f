"""Whether the tied weights of a model file are stored once."""

from __future__ import annotations

from dataclasses import dataclass

from edgetie.bundle.bundle import Bundle
from edgetie.errors import TieError
from edgetie.graph.model_files import load_model
from edgetie.ties.groups import equal_initializers, find_ties, ties_of_file, verify_ties


@dataclass(frozen=True)
class TieStatus:
    """The state of a file's tied weights.

    Attributes:
        groups: number of tied weights.
        intact: whether each is one initializer; ``None`` if the model has none.
        detail: names, uses and sizes, or the ties that are broken.
    """

    groups: int
    intact: bool | None
    detail: str


def tie_status(bundle: Bundle) -> TieStatus:
    """Compare a file with its manifest; in a bare ONNX file, search for equal weights.

    Weights are read from the file only if two of equal size must be compared.
    """
    if not bundle.is_bare:
        groups = bundle.manifest.ties
        try:
            for path in bundle.model_paths:
                verify_ties(load_model(path), ties_of_file(groups, path.name), path.name)
        except TieError as error:
            return TieStatus(len(groups), False, str(error))
    else:
        model = load_model(bundle.model_path)
        groups = find_ties(model)
        copies = equal_initializers(model)
        if copies:
            detail = "; ".join(f"{' = '.join(names)} stored {len(names)} times" for names in copies)
            return TieStatus(len(groups) + len(copies), False, detail)
    if not groups:
        return TieStatus(0, None, "no tied weights")
    detail = "; ".join(
        f"{group.name}: {len(group.uses)} uses, {group.bytes / 1e6:.1f} MB once" for group in groups
    )
    return TieStatus(len(groups), True, detail)
