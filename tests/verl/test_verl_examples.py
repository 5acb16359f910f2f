"""What docs/verl.md tells a new user to type."""

import signal
import subprocess
import sys

import httpx
import pytest

from rlbridge.testing.real_servers import why_unavailable


@pytest.mark.nemo_gym
@pytest.mark.skipif(bool(why_unavailable()), reason=why_unavailable())
def test_the_example_server_prints_its_url_and_ends_on_ctrl_c() -> None:
    command = [sys.executable, "examples/verl/gym_server.py", "example_session_state_mgmt"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        assert httpx.get(url, timeout=60).status_code == 200
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=60) == 0
