"""Which execution providers are available, tried by starting them."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from edgetie.errors import EdgetieError
from edgetie.kernels import instruction_set
from edgetie.providers.environments import find_environment
from edgetie.providers.json_worker import ask_worker
from edgetie.providers.registry import OWN, PROVIDERS, Provider

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Availability:
    """Whether a provider is available.

    Attributes:
        row: the provider.
        where: where it starts: ``here`` or ``in its environment``; empty if it does not.
        problem: why it does not start; empty if it does.
        instruction_set: of the processor, which its kernels use; empty if it does not say.
    """

    row: Provider
    where: str
    problem: str
    instruction_set: str = ""


def list_availability() -> list[Availability]:
    """Try every provider that is installed."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_probe, PROVIDERS.values()))


def _probe(row: Provider) -> Availability:
    try:
        environment = find_environment(row)
        ask_worker(row.name, "edgetie.runtime.start_probe", {}, row.name)
    except EdgetieError as error:
        logger.debug("%s does not start", row.name, exc_info=True)
        problem = error.message if error.parameter == "provider" else str(error)
        return Availability(row, "", problem)
    where = "here" if environment is None else "in its environment"
    return Availability(row, where, "", instruction_set() if row.name == OWN else "")
