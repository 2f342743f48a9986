"""An archive behind nginx on the loopback interface, which logs what it sends."""

import os
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

NGINX_CONF = """
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
  sendfile on;
  log_format sent "$request_method $body_bytes_sent";
  access_log {folder}/access.log sent;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; root {archive}; autoindex on; keepalive_requests 100000; }}
}}
"""


class Sent(NamedTuple):
    """The number of requests that nginx answered, and of bytes in the bodies."""

    requests: int
    bytes: int


class Nginx:
    """A running nginx that serves an archive on the loopback interface.

    Attributes:
        url: The URL of the archive.
    """

    def __init__(self, archive: Path, folder: Path, port: int = 8765) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / "access.log"
        conf = folder / "nginx.conf"
        conf.write_text(NGINX_CONF.format(folder=folder, archive=archive, port=port))
        self._process = subprocess.Popen(["nginx", "-c", str(conf), "-g", "daemon off;"])
        time.sleep(0.5)
        assert self._process.poll() is None, (folder / "error.log").read_text()

    def sent(self) -> Sent:
        """Return what was sent since the last call."""
        time.sleep(0.2)
        lines = [line.split() for line in self._log.read_text().splitlines()]
        os.truncate(self._log, 0)
        return Sent(len(lines), sum(int(size) for _, size in lines))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
