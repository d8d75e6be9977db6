"""`potluck node --api`: one process serves blocks, answers OpenAI's clients, and shows the page."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import openai

from .ground import POTLUCK

KEY = "secret"


def test_one_process_is_a_swarm_with_an_api_and_a_page(tmp_path: Path) -> None:
    command = [*POTLUCK, "node", "-m", "demo", "--api", "--api-port", "0", "--json",
               "--home", str(tmp_path), "--drain-s", "5"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "POTLUCK_API_KEY": KEY}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["api"]
            asked: Any = {"model": "demo", "prompt": "The function returns", "max_tokens": 8}
            with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=60) as client:
                assert client.completions.create(**asked, temperature=0).choices[0].text
            page = httpx.get(url.removesuffix("v1"), timeout=20)
            assert "Potluck" in page.text and "default-src 'none'" in str(page.headers)
            events = f"{url.removesuffix('v1')}dashboard/events"
            keyed = {"authorization": f"Bearer {KEY}"}
            with httpx.stream("GET", events, headers=keyed, timeout=20) as told:
                lines = (one for one in told.iter_lines() if '"part":"counts"' in one)
                assert json.loads(next(lines).removeprefix("data: "))["facts"]["node"]
                process.send_signal(signal.SIGTERM)  # with the page open
                assert process.wait(20) == 0
        finally:
            process.kill()
