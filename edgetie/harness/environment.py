"""The machine, the versions and the date that a report was measured with."""

import logging
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import edgetie

logger = logging.getLogger(__name__)


def describe_environment(onnxruntime_version: str) -> dict[str, str]:
    """Describe where a report is made: processor, system, edgetie, onnxruntime, date (UTC)."""
    return {
        "processor": processor_name(),
        "system": f"{platform.system()} {platform.machine()}",
        "edgetie": edgetie.__version__,
        "onnxruntime": onnxruntime_version,
        "date": datetime.now(UTC).date().isoformat(),
    }


def environment_line(environment: Mapping[str, str]) -> str:
    """Compose one line of :func:`describe_environment`'s description."""
    line = "{processor}, {system} · edgetie {edgetie}, onnxruntime {onnxruntime}, {date}"
    return line.format_map(environment)


def processor_name() -> str:
    """Return the processor's model name, or the kind of machine if the system has none."""
    try:
        if sys.platform == "darwin":
            command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
            return subprocess.check_output(command, text=True).strip()
        if sys.platform == "linux":
            for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
                field, _, value = line.partition(":")
                if field.strip() in ("model name", "Model", "Hardware"):
                    return " ".join(value.split())
    except (OSError, UnicodeDecodeError, subprocess.SubprocessError):
        logger.debug("the processor's name cannot be read", exc_info=True)
    return platform.processor() or platform.machine()
