"""nginx as a plain proxy: what the kernel and a program written in C need to pass the same bytes on."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

from benchmarks.processes import free_port, stop, wait_for

# Debian keeps it where only administrators look.
PROGRAM: Final = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
_START_SECONDS: Final = 10
_CONFIG: Final = """\
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{ worker_connections 16384; }}
http {{
    access_log off;
    client_body_temp_path {directory}/bodies;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    upstream bench {{ server 127.0.0.1:{upstream_port}; keepalive 1024; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port};
        keepalive_requests 1000000000;
        client_max_body_size 0;
        location / {{
            proxy_pass http://bench;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            proxy_request_buffering off;
        }}
    }}
}}
"""


def say_if_missing() -> None:
    """Tell whoever measures that there is no nginx to measure, and what to do."""
    if PROGRAM is None:
        print("nginx is not there and is left out; `tools/system_parts nginx:nginx-light` installs it on Debian.\n")


@contextmanager
def nginx(upstream_port: int) -> Iterator[tuple[psutil.Process, int]]:
    """One process of it with everything off: the process, and its port. Raises RuntimeError when it does not start."""
    with tempfile.TemporaryDirectory(prefix="llmproxy-benchmarks-") as place:
        port, config = free_port(), Path(place) / "nginx.conf"
        config.write_text(_CONFIG.format(directory=place, upstream_port=upstream_port, port=port))
        command = [str(PROGRAM), "-p", place, "-c", str(config), "-e", f"{place}/error.log"]
        with subprocess.Popen(command, text=True) as process:
            try:
                wait_for(process, port, _START_SECONDS)
                yield psutil.Process(process.pid), port
            finally:
                stop(process)
