"""Tour of a table in Python: query, edit, neighbours, report. A notebook of `# %%` cells.

    python jobs/tour.py [TABLE]

TABLE is what `make demo` leaves, demo-output/table, by default; the tour's files go beside it.
`make tour` takes the same way by commands.
"""

# %% A table: one row per face
import sys
from pathlib import Path

from pipeline import load_model, open_table
from pipeline.editing.directions import built_in_names, read_direction
from pipeline.editing.edit import edits_of
from pipeline.editing.edit_pictures import edit_grid
from pipeline.editing.w_space import w_space_of
from pipeline.errors import PipelineError
from pipeline.reports.report_extras import report_extras
from pipeline.reports.table_report import read_report_data, report_html
from pipeline.table.selection import Selection

TABLE = sys.argv[1] if len(sys.argv) > 1 else "demo-output/table"
PLACE = Path(TABLE).resolve().parent

try:
    table = open_table(TABLE)
except PipelineError as error:
    sys.exit(f"{error}; `make demo` makes a table")
print(table)

# %% Query: SQL over faces, rejects, shards and runs gives a pandas frame
faces = table.sql("SELECT image_id, l2, lpips, yaw FROM latents ORDER BY lpips")
print(faces.to_string(index=False))
print(table.sql("SELECT reason, count(*) AS images FROM rejects GROUP BY reason"))
best = str(faces.image_id[0])

# %% Edit: code + strength * direction, drawn beside the target and the unedited code
model = load_model("demo")
names = built_in_names()  # age, pose, smile
directions = [read_direction(name) for name in names]
strengths = [[0.0, *(3.0 * (name == other) for other in names)] for name in names]
edits = edits_of(directions, strengths, [""], w_space_of(model), model.n_styles)
grid = edit_grid(Selection(table, order="lpips", limit=4), model, edits)
(PLACE / "tour_edits.png").write_bytes(grid.picture)

# %% An edited code is an array: what the direction changes, and how far
code = table.w_plus([best])  # float32 [1, n_styles, 512]
edited = edits.apply(code)[0]  # [1 + directions, n_styles, 512], the first one unedited
print({name: float(abs(edited[1 + place] - code[0]).max()) for place, name in enumerate(names)})

# %% Neighbours: by identity, where the table has it, else by code
print(table.nearest(best, k=3).to_string(index=False))

# %% Report: one web page; pictures of people only on request
everything = Selection(table)
data = read_report_data(everything)
extras = report_extras(everything, data.numbers.faces, data.pictured_ids, pictures=True)
(PLACE / "tour_report.html").write_text(report_html(data, extras), encoding="utf-8")

# %% What to open
for name in ("tour_edits.png", "tour_report.html"):
    print(PLACE / name)
