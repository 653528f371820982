"""`bloomery curate`: documents in, a clean corpus and a survival table out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from bloomery.cli.options import parse, print_json, print_rich
from bloomery.core.config import decode, load_yaml
from bloomery.core.errors import ConfigError, nearest

DEFAULT = ("Language", "Length", "Symbols", "Repetition", "ExactDedup", "NearDedup")

ABOUT = """Filter, deduplicate and select documents. Every drop has a reason; the survival table counts them.

Reads WARC, ARC, HTML, PDF, LaTeX, Parquet, Arrow, JSONL(.gz) and folders of text; writes one Parquet file per input
file. The same command continues a run that was stopped.

Example:
  bloomery curate crawl/ corpus/
  bloomery curate a.jsonl b.warc.gz corpus/ --use Length ExactDedup --workers 8
  bloomery curate crawl/ corpus/ --recipe dclm --model classifier.bin --keep 0.1
  bloomery curate crawl/ corpus/ --steps steps.yaml
  bloomery curate crawl/ corpus/ --steps dclm_baseline_refinedweb.yaml --language-model lid.176.bin
  bloomery curate crawl/ papers/ corpus/ --recipe mint1t --image-cache images/
  bloomery curate crawl/ corpus/ --plan
  bloomery curate crawl/ corpus/ --recipe fineweb --strict-reference
  bloomery curate crawl/ corpus/ --plan --like sample/

`--steps` takes a file of ours, or DCLM's and OBELICS' own configurations, unchanged:

steps.yaml:
  steps:
    - Language: {keep: en}
    - Length
    - Repetition
    - ExactDedup
    - NearDedup: {threshold: 0.8}
    - Score: {model: classifier.bin}        # a fastText .bin or .ftz, or the folder of a trained scorer
    - Select: {column: score_quality, fraction: 0.5}
    - Split: {validation: 0.01}
"""


@dataclass
class Options:
    """What to curate and how."""

    paths: Annotated[tuple[str, ...], Positional]
    """Input files, folders or addresses (s3://…), then the output folder."""
    steps: Path | None = None
    """YAML file with a list of steps."""
    use: tuple[str, ...] = ()
    """Names of steps, with their defaults, instead of a file."""
    recipe: str = ""
    """A whole pipeline by name: refinedweb, dclm, gopher, c4, fineweb; mint1t or obelics for text with images."""
    strict_reference: bool = False
    """Decide in `--recipe` as the reference does, quirks included (see the page on curation)."""
    tokenizer: Literal["whitespace", "spacy"] = "whitespace"
    """What makes words in gopher, c4 and fineweb; datatrove's decisions take spaCy and the strict reference."""
    model: Path | None = None
    """Quality classifier of `--recipe dclm`: a fastText .bin or .ftz, or the folder of a trained scorer."""
    keep: float = 0.1
    """Share of the documents that it keeps."""
    language_model: Path | None = None
    """fastText language model for recipes and DCLM's and OBELICS' own files, such as lid.176.bin; else py3langid."""
    word_lists: Path | None = None
    """JSON file of word lists for the recipe obelics and OBELICS' own file, such as {"common_words": […]}."""
    interleaved: bool = False
    """Read pages as text and images in their order; mint1t and obelics do."""
    image_cache: Path | None = None
    """mint1t and obelics: fetch images from the web and keep them in this folder."""
    image_folder: Path | None = None
    """mint1t and obelics: take images from this folder instead, laid out as HOST/PATH."""
    engine: Literal["inline", "processes", "ray"] = "processes"
    """Run in this process, in a pool, or on Ray; the output is the same."""
    workers: int | None = None
    """Units of work at a time; default: all CPUs."""
    address: str | None = None
    """Of a running Ray cluster; without it `--engine ray` starts a local one."""
    format: Literal["parquet", "jsonl", "jsonl.gz", "jsonl.zst", "obelics.parquet", "tar"] = "parquet"
    """Of the survivors; the last two are the layouts of OBELICS and MINT-1T."""
    plan: bool = False
    """Only say what the run would take: documents, memory, disk, time."""
    like: str | None = None
    """Output folder (or address) of an earlier run, say of a sample: `--plan` takes its rates and survival."""
    force: bool = False
    """Run although the plan says that memory or disk will not do."""
    resume: bool = True
    """Skip input files that are done."""
    quiet: bool = False
    """No progress lines."""
    json: bool = False
    """Machine-readable output."""


def main(argv: Sequence[str]) -> int:
    """Curate and print the survival table."""
    options = parse(Options, argv, prog="bloomery curate", about=ABOUT)
    if len(options.paths) < 2:
        raise ConfigError("needs inputs and an output folder", fix="bloomery curate IN… OUT")
    if sum(map(bool, (options.steps, options.use, options.recipe))) > 1:
        raise ConfigError("--steps, --use and --recipe exclude each other", fix="write the steps into the file")
    if options.like and not options.plan:
        raise ConfigError("--like is an earlier run for --plan", fix="add --plan")
    if options.strict_reference and not options.recipe:
        raise ConfigError("--strict-reference is for --recipe", fix="in a file, the steps have the field")
    from bloomery import corpus

    *inputs, output = options.paths
    steps = _steps(options)
    if options.plan:
        from bloomery.corpus.inspection import load_report

        like = load_report(options.like) if options.like else None
        needs = corpus.plan(steps, inputs, workers=options.workers, like=like)
        if options.json:
            print_json(needs.to_dict())
        else:
            print_rich(needs.table())
        return 0
    report = corpus.run(
        steps,
        inputs,
        output,
        engine=options.engine,
        workers=options.workers,
        address=options.address,
        read=_reader(options),
        format=options.format,
        resume=options.resume,
        force=options.force,
        quiet=options.quiet,
    )
    if options.json:
        print_json(report.to_dict())
    else:
        print_rich(report.table())
    return 0


def _steps(options: Options) -> list[Any]:
    """The steps that the options ask for."""
    if (options.image_cache or options.image_folder) and not _is_interleaved(options):
        raise ConfigError("images belong to --recipe mint1t or obelics", fix="in a file: LoadImages: {cache: FOLDER}")
    if options.recipe:
        from bloomery.corpus.presets import preset

        fields: dict[str, Any] = {"strict_reference": True} if options.strict_reference else {}
        if _is_interleaved(options):
            fields["images"] = _image_source(options)
        if options.tokenizer != "whitespace":
            fields["tokenizer"] = options.tokenizer
        if options.language_model:
            fields["language_model"] = options.language_model
        if options.word_lists:
            fields["lists"] = _word_lists(options.word_lists)
        if options.model:
            fields |= {"scorer": _load_scorer(options.model), "keep": options.keep}
        return preset(options.recipe, **fields)
    if options.steps:
        return load_steps(options.steps, options.language_model, options.word_lists)
    return [make_step(name) for name in options.use or DEFAULT]


def _is_interleaved(options: Options) -> bool:
    from bloomery.corpus.presets import INTERLEAVED as RECIPES

    return options.recipe in RECIPES


def _reader(options: Options) -> Any:
    from bloomery.web import read_documents

    if not (options.interleaved or _is_interleaved(options)):
        return read_documents
    return functools.partial(read_documents, extract="interleaved")


def _image_source(options: Options) -> Any:
    if (options.image_cache is None) == (options.image_folder is None):
        raise ConfigError(
            f"--recipe {options.recipe} needs one place for images",
            fix="--image-cache FOLDER fetches them from the web, --image-folder FOLDER takes what lies there",
        )
    name = "cache" if options.image_cache else "folder"
    return _load_images({name: str(options.image_cache or options.image_folder)}).source


def _load_images(fields: dict[str, Any], where: str = "") -> Any:
    """`LoadImages` with a source: `cache: FOLDER` and fields of `WebImages`, or `folder: FOLDER`; else none."""
    from bloomery.corpus.interleaved.images import FolderImages, LoadImages
    from bloomery.web.image_fetch import WebImages

    own = {f.name for f in dataclasses.fields(LoadImages)} - {"source"}
    rest = {name: value for name, value in fields.items() if name not in own}
    source: Any = None
    if rest:
        source = decode(FolderImages if "folder" in rest else WebImages, rest, where=f"{where} LoadImages".strip())
    step = decode(LoadImages, {"source": None, **{k: v for k, v in fields.items() if k in own}}, where=where)
    return dataclasses.replace(step, source=source)


def load_steps(file: Path, language_model: Path | None = None, word_lists: Path | None = None) -> list[Any]:
    """The steps that a YAML file lists: names, or one-entry mappings from a name to its fields; or a published file."""
    if _is_upstream(file):
        from bloomery.corpus.refinedweb.upstream_yaml import load

        return load(file, language_model=language_model)
    from bloomery.corpus.interleaved import FetchImages

    values = load_yaml(file)
    if any(str(key).startswith("cond_check_") for key in values):  # OBELICS' filters
        from bloomery.corpus.interleaved.filter_yaml import load as load_filters

        lists = _word_lists(word_lists) if word_lists else None
        return load_filters(file, lists=lists, language_model=language_model)
    for key in values:
        if key != "steps":
            raise ConfigError(f"unknown field {key!r}", where=file, fix=nearest(key, ["steps"]))
    steps = values.get("steps")
    if not isinstance(steps, list) or not steps:
        raise ConfigError("needs a list under `steps:`", where=file, fix="see bloomery curate --help")
    made = []
    for i, item in enumerate(steps):
        where = f"{file}: steps[{i}]"
        if isinstance(item, dict) and len(item) == 1:
            ((name, fields),) = item.items()
        else:
            name, fields = item, {}
        if not isinstance(name, str) or not isinstance(fields or {}, dict):
            raise ConfigError(f"expected a name or name: {{field: value}}, got {item!r}", where=where)
        step = make_step(name, fields or {}, where)
        if name == "LoadImages" and "cache" in (fields or {}):
            made.append(FetchImages(step.source))
        made.append(step)
    return made


def _word_lists(file: Path) -> Any:
    from bloomery.corpus.interleaved import WordLists

    return WordLists.load(file)


def _is_upstream(file: Path) -> bool:
    """Whether the file is a list of sources, as DCLM's own configurations are."""
    try:
        return any(line.startswith("- source:") for line in file.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError):
        return False  # `load_yaml` says what is wrong with it


def make_step(name: str, fields: dict[str, Any] | None = None, where: str = "") -> Any:
    """One step by its name, with fields checked like any configuration."""
    step = find_step(name)
    if step is None:
        known = [other for other in _offered() if find_step(other)]
        raise ConfigError(f"unknown step {name!r}", where=where or None, fix=nearest(name, known))
    if name == "Score":
        return step(_scorer(fields or {}, where))
    if name == "LoadImages":
        return _load_images(fields or {}, where)
    return decode(step, fields or {}, where=f"{where} {name}".strip())


def find_step(name: str) -> Any:
    """The class of a step that `corpus`, `corpus.refinedweb` or `corpus.interleaved` offers, or None."""
    from bloomery import corpus

    found = getattr(_offered()[name], name) if name in _offered() else None
    parents = (corpus.Step, corpus.Barrier)
    return found if isinstance(found, type) and issubclass(found, parents) and found not in parents else None


def _offered() -> dict[str, Any]:
    """Every name that the three packages offer, with the package; nothing is loaded for it."""
    from bloomery import corpus
    from bloomery.corpus import interleaved, refinedweb

    return {name: home for home in (interleaved, refinedweb, corpus) for name in home.__all__}


def _scorer(fields: dict[str, Any], where: str) -> Any:
    if set(fields) != {"model"}:
        raise ConfigError(f"Score takes model: PATH, got {sorted(fields)}", where=where or None)
    return _load_scorer(Path(str(fields["model"])))


def _load_scorer(path: Path) -> Any:
    from bloomery import corpus

    return corpus.FastTextScorer.load(path) if path.suffix in (".bin", ".ftz") else corpus.LinearScorer.load(path)
