"""A process that fetches, so that tests can kill it and measure it: `python -m tests.contract.fetching SOURCE TARGET`.

SOURCE is a Source as JSON; the keys of a Secret come as JSON in $SECRET. Prints the digest, the bytes that came over
the network, how long it took, and the largest resident memory in MB.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

from tuneyard.api.sources import Source
from tuneyard.systems.artifacts import download
from tuneyard.systems.artifacts.progress import Progress
from tuneyard.systems.artifacts.remote import Credentials, remote_of


def start(source: Source, target: Path, secret: dict[str, str] | None = None, chunk: int = 0) -> subprocess.Popen[str]:
    """Start such a process."""
    text = source.model_dump_json(by_alias=True, exclude_none=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["operator", "."])}
    environment |= {"SECRET": json.dumps(secret or {}), "CHUNK": str(chunk or download.CHUNK)}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.contract.fetching", text, str(target)],
        env=environment,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )


def main() -> None:
    """Fetch, and print what came of it."""
    download.CHUNK = int(os.environ["CHUNK"])
    secret = json.loads(os.environ["SECRET"])
    given = Credentials("Secret test", secret) if secret else None
    progress = Progress()
    begun = time.perf_counter()
    found = download.fetch(
        remote_of(Source.model_validate_json(sys.argv[1]), given), Path(sys.argv[2]), progress=progress
    )
    seconds = time.perf_counter() - begun
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"digest": found.digest, "fetched": progress.fetched, "seconds": seconds, "rss_mb": most}))


if __name__ == "__main__":
    main()
