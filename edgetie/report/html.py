"""A latency report as one self-contained page of HTML, pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from edgetie.bundle.atomic import atomic_files
from edgetie.harness.environment import environment_line
from edgetie.report import tables
from edgetie.report.plots import plot_latency, plot_sweep

if TYPE_CHECKING:
    from edgetie.harness.accuracy.check import AccuracyReport
    from edgetie.harness.latency.bench import LatencyReport

_PAGE = """
{%- macro picture(name) -%}
<img alt='{{ name }}' src='data:image/png;base64,{{ pictures[name] }}'>
{%- endmacro -%}
{%- macro row(cells, columns, tag) -%}
<tr>{% for cell in cells -%}
<{{ tag }}{{ ' class=right' if columns[loop.index0].startswith('>') }}>{{ cell }}</{{ tag }}>
{%- endfor %}</tr>
{%- endmacro -%}
{%- macro draw(table) -%}
<div class=scroll><table>{{ row(table.names, table.columns, 'th') }}
{%- for cells in table.rows %}{{ row(cells, table.columns, 'td') }}{% endfor %}</table></div>
{%- endmacro -%}
<!doctype html><html lang=en><meta charset=utf-8>
<meta name=viewport content='width=device-width'>
<title>{{ tables.short_name(report.model) }}: edgetie bench</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 75rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
p { color: #52606d; } img { width: 100%; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.8rem; border-bottom: 1px solid #e3e7eb; text-align: left;
  white-space: nowrap; }
th { background: #f5f7fa; } .right { text-align: right; font-variant-numeric: tabular-nums; }
</style>
<h1>{{ tables.short_name(report.model) }}</h1>
<p>{{ report.repeat }} runs in separate processes, in turn; a warm-up does not count. Prompt of
{{ report.prompt_tokens }} tokens{% if report.new_tokens %}, {{ report.new_tokens }} new ones
{%- endif %}, batch {{ report.batch }},
{{ report.threads }} threads. Medians; memory over what a process has after imports.</p>
{% for line in lines %}<p>{{ line }}</p>{% endfor %}
<h2>Latency, memory, size</h2>{{ picture('latency') }}{{ draw(tables.resource_table(report)) }}
<h2>Tokens per second</h2>
{% if report.sweep %}{{ picture('sweep') }}{% endif %}{{ draw(tables.speed_table(report)) }}
{% if accuracy %}<h2>Accuracy against {{ tables.short_name(accuracy[0].reference) }}</h2>
<p>on {{ accuracy[0].data }}, run by {{ tables.ran_by(*accuracy) }};
{{ tables.verdict(*accuracy) }}</p>
{{ draw(tables.accuracy_table(*accuracy)) }}{% endif %}
</html>
"""


def write_html(report: LatencyReport, accuracy: Sequence[AccuracyReport], path: Path) -> None:
    """Write a report, and the accuracy measured along with it, into ``path``.

    Raises:
        EdgetieError: if matplotlib is not installed, or the file cannot be written.
    """
    import jinja2

    plots = {"latency": plot_latency} | ({"sweep": plot_sweep} if report.sweep else {})
    pictures = {}
    for name, plot in plots.items():
        plot(report, picture := BytesIO())
        pictures[name] = base64.b64encode(picture.getvalue()).decode("ascii")
    lines = [environment_line(report.environment), *tables.remarks(report)]
    page = jinja2.Environment(autoescape=True).from_string(_PAGE)
    text = page.render(
        tables=tables, report=report, lines=lines, pictures=pictures, accuracy=accuracy
    )
    path = path.resolve()
    with atomic_files(path, force=True) as folder:
        (folder / path.name).write_text(text, encoding="utf-8")
