"""`python -m bloomery.worlds.installed_docs --port 8000 --packages stdlib numpy`: serve the site until interrupted."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys

from bloomery.core.errors import BloomeryError
from bloomery.worlds.installed_docs.server import listen
from bloomery.worlds.installed_docs.site import InstalledDocs


def main() -> int:
    """Parse the arguments, scan, serve in the foreground."""
    parser = argparse.ArgumentParser(prog="python -m bloomery.worlds.installed_docs", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port")
    parser.add_argument("--packages", nargs="*", help="stdlib, package names or folders (default: all installed)")
    options = parser.parse_args()

    async def run() -> None:
        docs = InstalledDocs(options.packages or None)
        server, site = await listen(docs, options.host, options.port)
        print(f"{site.base}/  {len(docs):,} pages, {len(docs.skipped)} files skipped; stop with Ctrl-C", flush=True)
        await server.serve_forever()

    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(run())
    except BloomeryError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
