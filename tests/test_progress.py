"""Progress: times of steps."""

import time

from edgetie.progress import Stages


def test_steps_with_one_name_are_added_up() -> None:
    stages = Stages()
    for name in ("read", "write", "read"):
        stages.stage(name)
        time.sleep(0.001)
    stages.finish()
    stages.finish()
    assert list(stages.seconds) == ["read", "write"]
    assert stages.seconds["read"] >= 0.002
