"""Pages per second of a whole crawl: `bloomery.web.crawl` against Scrapy, on the same local server.

Both get the same site (the documentation of the installed packages), the same number of requests at once and no delay,
obey robots.txt, extract the links of every page, follow them on the site until the same number of pages is stored, and
write every page to disk (we a gzipped WARC with a resumable state, Scrapy one JSON Lines feed). They take turns; each
crawl is a fresh process, its time is taken inside it, from before the engine starts until everything is on disk.

    python benchmarks/crawl.py --peer-python .venv-peers/bin/python --rounds 3 --json crawl.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bloomery.core.files import write_json
from bloomery.worlds.installed_docs import InstalledDocs, serve

OURS = """
import json, sys, time
from bloomery.web import crawl
url, out, pages, concurrency = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
start = time.perf_counter()
report = crawl([url], out, quiet=True, max_pages=pages, concurrency=concurrency, per_host_concurrency=concurrency,
               per_host_delay=0.0, allow_private=True)
print(json.dumps({"pages": report.pages, "bytes": report.bytes, "seconds": time.perf_counter() - start}))
"""

SCRAPY = """
import json, re, sys, time
import scrapy
from scrapy.crawler import CrawlerProcess
from scrapy.linkextractors import LinkExtractor
url, out, pages, concurrency = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
count = size = 0

class Docs(scrapy.Spider):
    name = "docs"
    start_urls = [url]
    links = LinkExtractor(allow=re.escape(url))

    def parse(self, response):
        global count, size
        if count >= pages or not isinstance(response, scrapy.http.HtmlResponse):
            return
        count += 1
        size += len(response.body)
        yield {"url": response.url, "body": response.text}
        for link in self.links.extract_links(response):
            yield scrapy.Request(link.url)

process = CrawlerProcess({
    "LOG_ENABLED": False, "TELNETCONSOLE_ENABLED": False, "ROBOTSTXT_OBEY": True, "COOKIES_ENABLED": False,
    "CONCURRENT_REQUESTS": concurrency, "CONCURRENT_REQUESTS_PER_DOMAIN": concurrency, "DOWNLOAD_DELAY": 0,
    "CLOSESPIDER_PAGECOUNT": pages, "FEEDS": {out + ".jsonl": {"format": "jsonlines"}},
    # Breadth-first, with the queues Scrapy's documentation recommends for broad crawls.
    "DEPTH_PRIORITY": 1, "SCHEDULER_DISK_QUEUE": "scrapy.squeues.PickleFifoDiskQueue",
    "SCHEDULER_MEMORY_QUEUE": "scrapy.squeues.FifoMemoryQueue",
})
process.crawl(Docs)
start = time.perf_counter()
process.start()
print(json.dumps({"pages": count, "bytes": size, "seconds": time.perf_counter() - start}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pages", type=int, default=1500)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--packages", nargs="+", default=["stdlib", "numpy"])
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has Scrapy")
    parser.add_argument("--json", type=Path, default=None, help="write the results here")
    options = parser.parse_args()
    found = subprocess.run([options.peer_python, "-c", "import scrapy; print(scrapy.__version__)"], capture_output=True)
    if found.returncode:
        print(
            f'{options.peer_python} has no Scrapy: pip install "bloomery[bench]", or name another with --peer-python',
            file=sys.stderr,
        )
        return 2
    version = found.stdout.decode().strip()

    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder, serve(InstalledDocs(options.packages)) as url:
        size = options.pages, options.concurrency
        crawl(sys.executable, OURS, url, f"{folder}/warm", *size)  # the server renders every page once
        for number in range(options.rounds):
            ours.append(crawl(sys.executable, OURS, url, f"{folder}/ours{number}", *size))
            theirs.append(crawl(options.peer_python, SCRAPY, url, f"{folder}/scrapy{number}", *size))
            print(f"round {number + 1}: {speed(ours[-1:]):.0f} and {speed(theirs[-1:]):.0f} pages/s", file=sys.stderr)

    rows = [
        ["pages/s", f"{speed(ours):.0f}", f"{speed(theirs):.0f}", f"{speed(ours) / speed(theirs):.2f}x"],
        ["MB/s", f"{rate(ours):.1f}", f"{rate(theirs):.1f}", f"{rate(ours) / rate(theirs):.2f}x"],
        ["pages stored", f"{ours[0]['pages']:.0f}", f"{theirs[0]['pages']:.0f}", ""],
    ]
    columns = ["", "bloomery", f"Scrapy {version}", "ratio"]
    table = Table(*columns, title="Crawl of a local server")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if options.json:
        setup = (
            f"{options.pages:,} pages of installed documentation from one local server, {options.concurrency} requests "
            f"at once, no delay, robots.txt obeyed, links extracted, pages written to disk; median of {options.rounds}."
        )
        write_json(
            options.json,
            {
                "title": "Crawl",
                "setup": setup,
                "columns": columns,
                "rows": rows,
                "notes": [],
                "ratio": speed(ours) / speed(theirs),
                "rounds": {"ours": ours, "peer": theirs},
            },
        )
    return 0


def crawl(python: str, program: str, url: str, out: str, pages: int, concurrency: int) -> dict[str, float]:
    """One crawl in a process of its own: pages, bytes, seconds."""
    command = [python, "-c", program, url, out, str(pages), str(concurrency)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"a crawl failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if result["pages"] < pages:
        raise SystemExit(f"a crawl stored {result['pages']} pages instead of {pages}:\n{done.stderr[-3000:]}")
    return result


def speed(crawls: list[dict[str, float]]) -> float:
    return statistics.median(c["pages"] / c["seconds"] for c in crawls)


def rate(crawls: list[dict[str, float]]) -> float:
    return statistics.median(c["bytes"] / c["seconds"] / 1e6 for c in crawls)


if __name__ == "__main__":
    sys.exit(main())
