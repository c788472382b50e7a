"""The page: runs are read, compared, written as HTML and put in place. Torch-free.

Everything that comes from a run is escaped by the templates; a policy without `unsafe-inline`
lets the browser run and style nothing but the two texts whose hashes it names.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import flowalign
from flowalign.errors import DataError, warn
from flowalign.gallery import curves
from flowalign.gallery.collect import read_runs
from flowalign.gallery.columns import (
    Column,
    PromptRow,
    align,
    choose_columns,
    notes_on,
    series_of,
)
from flowalign.gallery.compare import (
    ScoreKind,
    Table,
    differing_settings,
    score_kinds,
    tables,
)
from flowalign.gallery.media import MAX_INLINE_BYTES, MediaShelf
from flowalign.gallery.output import GENERATOR, check_output, write_gallery
from flowalign.gallery.records import Run, Steps
from flowalign.gallery.spending import spending
from flowalign.gallery.view import RowView, headlines, reward_ranges, row_view, table_view
from flowalign.gallery.wording import listed, number, signed

MAX_PAGE_BYTES = 5_000_000
MAX_LISTED = 20
MAX_SETTINGS = 60  # rows of the table of differing settings
PICTURE_PIXELS = 152  # about the width of a picture on the page
WHOLE_UP_TO = 128  # smaller pictures are enlarged by whole factors


@dataclass(frozen=True, kw_only=True, slots=True)
class Content:
    """All that the pages of one gallery share."""

    title: str
    runs: Sequence[Run]
    columns: Sequence[Column]
    kinds: Sequence[ScoreKind]
    tables: Sequence[Table]
    aligned: Sequence[PromptRow]  # all prompts
    rows: Sequence[RowView]  # those with pictures
    notes: Sequence[str]
    categories: Sequence[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class PageInfo:
    title: str
    number: int  # from 1
    pages: int
    count: int  # prompts on this page
    pictured: int  # prompts on all pages
    total: int


def build_gallery(
    runs: Sequence[str | Path],
    output: str | Path,
    *,
    title: str | None = None,
    names: Sequence[str] | None = None,
    steps: Steps | Sequence[int] = "auto",
    strict: bool = False,
) -> Path:
    """Write the gallery of `runs` into directory `output` and return its first page.

    `names` are shown instead of the folders' names. `steps` chooses the columns: "auto" (one run:
    base and up to four more; several runs: base and last of each; all of a steering job), "ends",
    "all", or steps. With
    `strict` a missing or unreadable picture is an error, otherwise it is counted on the page.

    Raises DataError, ConfigError, SecurityError, ResourceError; then nothing was written.
    """
    target = Path(output)
    check_output(target)
    found = read_runs(runs, names)
    columns = choose_columns(found, steps if isinstance(steps, str) else tuple(steps))
    rows = align(columns)
    kinds = score_kinds(found, columns)
    shelf = MediaShelf(inline_bytes=min(MAX_INLINE_BYTES, 2_500_000 // len(columns)))
    categories = sorted({row.category for row in rows})
    ranges = reward_ranges(columns)
    views = [row_view(row, columns, kinds, categories, shelf, ranges) for row in rows]
    if shelf.missing:
        _tell_missing(shelf, strict)
    content = Content(
        title=title or listed([run.name for run in found]),
        runs=found,
        columns=columns,
        kinds=kinds,
        tables=tables(kinds, columns, rows),
        rows=[view for view in views if view is not None],
        aligned=rows,
        notes=_notes(found, columns, rows, shelf, views),
        categories=categories,
    )
    write_gallery(target, render(content), shelf.assets)
    return target / "index.html"


def render(content: Content) -> dict[str, str]:
    """The pages by file name, each at most MAX_PAGE_BYTES."""
    environment = _environment()
    row_template = environment.get_template("row.html")
    rows = [Markup(row_template.render(row=row)) for row in content.rows]
    shell = _shell(environment, content)
    # Room for a first page without rows, and for the numbers of the pages below it.
    empty = len(shell([], 1, 1, True).encode()) + 20_000
    chunks = paged(rows, MAX_PAGE_BYTES - empty)
    return {
        page_file(number): shell(chunk, number, len(chunks), number == 1)
        for number, chunk in enumerate(chunks, start=1)
    }


def page_file(number: int) -> str:
    """`index.html`, `page-2.html`, ..."""
    return "index.html" if number == 1 else f"page-{number}.html"


def paged(rows: Sequence[Markup], room: int) -> list[list[Markup]]:
    """The rows in order, in the fewest chunks of at most `room` bytes; at least one chunk."""
    chunks: list[list[Markup]] = [[]]
    used = 0
    for row in rows:
        size = len(row.encode())
        if used + size > room and chunks[-1]:
            chunks.append([])
            used = 0
        chunks[-1].append(row)
        used += size
    return chunks


Shell = Callable[[Sequence[Markup], int, int, bool], str]


def _shell(environment: jinja2.Environment, content: Content) -> Shell:
    """A function (rows, number, pages, with overview) -> HTML."""
    style = _style(content)
    script = _resource("page.js")
    template = environment.get_template("page.html")
    overview = _overview(content)
    tuned = [column for column in content.columns if column.base is not None]

    def shell(rows: Sequence[Markup], number: int, pages: int, first: bool) -> str:
        info = PageInfo(
            title=content.title,
            number=number,
            pages=pages,
            count=len(rows),
            pictured=len(content.rows),
            total=len(content.aligned),
        )
        return template.render(
            page=info,
            overview=overview if first else None,
            columns=content.columns,
            kinds=content.kinds,
            categories=content.categories,
            tuned=tuned,
            main_column=_main_column(tuned),
            rows=rows,
            page_file=page_file,
            generator=GENERATOR,
            footer=f"flowalign {flowalign.__version__}",
            style=Markup(style),
            style_hash=csp_hash(style),
            script=Markup(script),
            script_hash=csp_hash(script),
        )

    return shell


def _overview(content: Content) -> dict[str, Any]:
    series = series_of(content.runs)
    trained = [(series[k, ""], run) for k, run in enumerate(content.runs) if not run.steered]
    panels = curves.panels(
        [run for _, run in trained], content.kinds, [number for number, _ in trained]
    )
    return {
        "headlines": headlines(content.tables, content.columns),
        "subtitle": _subtitle(content),
        "notes": content.notes,
        "run_names": [run.name for run in content.runs],
        "run_series": [None if r.steered else series[k, ""] for k, r in enumerate(content.runs)],
        "legend": [(number, run.name) for number, run in trained],
        "panels": panels,
        "spending": spending(content.runs, content.columns, content.tables),
        "has_time": any(panel.axis == "time" for panel in panels),
        "has_training": any(row.rewards for run in content.runs for row in run.training),
        "tables": [table_view(table, content.columns) for table in content.tables],
        "runs": content.runs,
        "differing": differing_settings(content.runs)[:MAX_SETTINGS],
    }


def _main_column(tuned: Sequence[Column]) -> int | None:
    """The last column of the first run or method: what gains are sorted by at first."""
    return max((c.index for c in tuned if c.series == tuned[0].series), default=None)


def _subtitle(content: Content) -> str:
    """What is compared, in a line."""
    count = len(content.aligned)
    prompts = f"{count} prompt" + ("s" if count != 1 else "")
    models = list(dict.fromkeys(column.name for column in content.columns))
    seeds = "" if notes_on(content.columns, content.aligned) else ", equal seeds"
    return f"{prompts}{seeds}: {listed(models)}" + (" side by side." if len(models) > 1 else ".")


def _style(content: Content) -> str:
    """The style sheet with what depends on the content: columns, and whole enlargement factors."""
    sides = [
        max(cell.medium.width or 0, cell.medium.height or 0)
        for row in content.rows[:50]
        for line in row.lines
        for cell in line.cells
        if cell.medium is not None
    ]
    side = max(sides, default=0)
    sizes = [
        side * max(1, round(wanted / side)) if 0 < side <= WHOLE_UP_TO else wanted
        for wanted in (PICTURE_PIXELS * 2 // 3, PICTURE_PIXELS, PICTURE_PIXELS * 5 // 3)
    ]
    small, middle, large = sizes
    head = f":root{{--n:{len(content.columns)};--s:{small}px;--m:{middle}px;--l:{large}px}}\n"
    widths = "".join(f".w{k}{{width:{k}%}}" for k in range(101))
    return head + _resource("page.css") + widths


def csp_hash(text: str) -> str:
    """The source expression that allows exactly this inline text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flowalign.gallery", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(number=number, signed=signed)
    return environment


def _resource(name: str) -> str:
    return (Path(__file__).parent / "templates" / name).read_text("utf-8")


def _notes(
    runs: Sequence[Run],
    columns: Sequence[Column],
    rows: Sequence[PromptRow],
    shelf: MediaShelf,
    views: Sequence[RowView | None],
) -> list[str]:
    notes = [f"{run.name}: {note}" for run in runs for note in run.notes]
    notes += notes_on(columns, rows)
    for run in runs:
        if run.base is None:
            notes.append(f"{run.name}: no evaluation at step 0, so no base")
    undrawn = sum(view.not_drawn for view in views if view is not None)
    if undrawn:
        notes.append(f"{undrawn} family trees are too large and not drawn")
    if shelf.missing:
        count = len(shelf.missing)
        notes.append(f"{count} {'picture is' if count == 1 else 'pictures are'} missing")
    if shelf.previews:
        notes.append(f"{shelf.previews} large pictures are shown as smaller WebP previews")
    return notes


def _tell_missing(shelf: MediaShelf, strict: bool) -> None:
    """DataError with `strict`, else a warning; at most MAX_LISTED files are named."""
    count = len(shelf.missing)
    where = shelf.missing[0].where
    what = f"{shelf.missing[0].what} ({count} in all)" if count > 1 else shelf.missing[0].what
    fix = "evaluate the run again, or build without strict"
    if not strict:
        warn(where, what, "the page shows placeholders")
        return
    earlier = [f"{m.where}: {m.what}" for m in shelf.missing[:MAX_LISTED]]
    raise DataError("GAL-MISSING", where, what, fix, earlier if count > 1 else ())
