"""Azurite, Microsoft's emulator of Azure Blob Storage, as a separate process on a loopback port.

It is an npm package: `npm install azurite` in any folder, whose node_modules/.bin is put on the PATH or named by
$TICKETRY_AZURITE (the executable azurite-blob). Without it tests are skipped.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import importlib.util
import os
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.utils import formatdate

import pytest

from buckets import free_port

ACCOUNT, KEY = "tests", base64.b64encode(b"of a test, and of nothing else").decode()
_VERSION = "2021-08-06"


@contextlib.contextmanager
def azurite_server() -> Iterator[str]:
    """The address of its one account, started here; a test without it is skipped."""
    program = os.environ.get("TICKETRY_AZURITE") or shutil.which("azurite-blob")
    if not program:
        pytest.skip("stores in Azure are tested with azurite: npm install azurite, and name azurite-blob on the PATH")
    if importlib.util.find_spec("obstore") is None:
        pytest.skip("stores in Azure are tested with obstore")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        words = ["--blobPort", str(port), "--silent", "--location", folder, "--disableTelemetry"]
        known = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
        server = subprocess.Popen([program, *words, "--skipApiVersionCheck"], env=known, stdout=subprocess.DEVNULL)
        try:
            limit = time.monotonic() + 120
            while not _answers(port):
                assert server.poll() is None, "azurite has ended"
                assert time.monotonic() < limit, "azurite does not answer"
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/{ACCOUNT}"
        finally:
            server.kill()
            server.wait()


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
    except urllib.error.HTTPError:  # it answers: that the request is none
        return True
    except (urllib.error.URLError, OSError):
        return False
    return True


def made_container(endpoint: str, name: str) -> str:
    """A new, empty container; its name. Signed as Azure's documentation of shared keys says."""
    headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": _VERSION}
    signed = "\n".join(
        [
            *("PUT", *[""] * 11),
            *(f"{header}:{value}" for header, value in sorted(headers.items())),
            f"/{ACCOUNT}/{ACCOUNT}/{name}",
            "restype:container",
        ]
    )
    digest = hmac.new(base64.b64decode(KEY), signed.encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    headers["Content-Length"] = "0"
    asked = urllib.request.Request(f"{endpoint}/{name}?restype=container", method="PUT", headers=headers)
    urllib.request.urlopen(asked, timeout=60).close()
    return name


def environment(endpoint: str) -> dict[str, str]:
    """Return the options with which obstore finds that account."""
    return {
        "AZURE_STORAGE_ENDPOINT": endpoint,
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": KEY,
        "AZURE_ALLOW_HTTP": "true",
    }
