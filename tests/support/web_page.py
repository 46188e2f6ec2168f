"""The page of the starter for the web, in headless Chromium."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from starters import SUPPORT, run


@contextmanager
def served(app: Path) -> Iterator[str]:
    with subprocess.Popen(
        ["node", "serve.mjs", "0"], cwd=app, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()


def drive(
    app: Path,
    modules: Path,
    query: str,
    prompts: tuple[str, ...] = (),
    *,
    stop: str = "",
    pictures: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Ask the page in headless Chromium.

    Args:
        app: folder of the starter.
        modules: a ``node_modules`` with Playwright.
        query: of the address.
        prompts: in order.
        stop: whether the first answer is stopped.
        pictures: for each prompt a file, ``camera``, or nothing.
    """
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("needs Chromium")
    script = SUPPORT / "drive_page.mjs"
    with served(app) as url:
        listed = json.dumps(prompts)
        out = run(
            ["node", script, modules, chromium, url + query, listed, stop, json.dumps(pictures)],
            app,
        )
    found: dict[str, Any] = json.loads(out)
    return found
