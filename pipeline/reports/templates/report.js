"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const root = document.documentElement;

  // Theme: the system's, until the button chooses one.
  const themes = ["auto", "light", "dark"];
  const store = {
    get: () => { try { return localStorage.getItem("restyle-theme"); } catch { return null; } },
    set: (value) => { try { localStorage.setItem("restyle-theme", value); } catch { /* private mode */ } },
  };
  const showTheme = (name) => {
    if (name === "auto") root.removeAttribute("data-theme");
    else root.setAttribute("data-theme", name);
    byId("theme").textContent = `Theme: ${name}`;
  };
  let theme = themes.includes(store.get()) ? store.get() : "auto";
  showTheme(theme);
  byId("theme").addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    store.set(theme);
    showTheme(theme);
  });

  const table = byId("table");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);
  const heads = Array.from(table.tHead.rows[0].cells);
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if (column === 0) return cell.title.toLowerCase();
    return "v" in cell.dataset ? Number(cell.dataset.v) : null;
  };

  // Table: filter, sort, one page at a time.
  const size = 50;
  let order = rows.slice();
  let shown = rows;
  let page = 0;
  let picked = null;
  const controls = { text: byId("text"), column: byId("column"), from: byId("from"), to: byId("to") };

  const matches = (row) => {
    const text = controls.text.value.trim().toLowerCase();
    if (text && !row.cells[0].title.toLowerCase().includes(text)) return false;
    const [from, to] = [controls.from.value, controls.to.value];
    if (from === "" && to === "") return true;
    const value = valueOf(row, Number(controls.column.value) + 1);
    return value !== null && (from === "" || value >= Number(from)) && (to === "" || value <= Number(to));
  };
  const draw = () => {
    const last = Math.max(0, Math.ceil(shown.length / size) - 1);
    page = Math.min(Math.max(page, 0), last);
    const first = page * size;
    body.replaceChildren(...shown.slice(first, first + size));
    const end = Math.min(first + size, shown.length);
    const all = shown.length === rows.length ? "" : `, of ${rows.length} in this file`;
    byId("page").textContent = shown.length ? `${first + 1}–${end} of ${shown.length}${all}` : `no face${all}`;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page === last;
  };
  const filter = () => {
    shown = order.filter(matches);
    page = 0;
    draw();
    const visible = new Set(shown);
    points.forEach((point, i) => point.setAttribute("opacity", visible.has(rows[i]) ? 1 : 0.12));
  };
  const sortBy = (column) => {
    const head = heads[column];
    const direction = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    heads.forEach((each) => each.setAttribute("aria-sort", "none"));
    head.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    order = rows.slice().sort((one, other) => {
      const [a, b] = [valueOf(one, column), valueOf(other, column)];
      if (a === null || b === null) return (a === null) - (b === null); // rows without a value last
      return sign * (a < b ? -1 : a > b ? 1 : 0);
    });
    filter();
  };
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => sortBy(column)));
  byId("filters").addEventListener("input", filter);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("reset", () => setTimeout(filter));
  byId("previous").addEventListener("click", () => { page -= 1; draw(); });
  byId("next").addEventListener("click", () => { page += 1; draw(); });

  // Map: each point is a row of the table.
  const map = byId("map");
  const points = map ? Array.from(map.querySelectorAll(".point")) : [];
  const pick = (index, scroll) => {
    if (picked !== null) {
      rows[picked].classList.remove("picked");
      if (points[picked]) points[picked].classList.remove("picked");
    }
    picked = index;
    const row = rows[index];
    row.classList.add("picked");
    if (points[index]) {
      points[index].classList.add("picked");
      const column = Number(byId("colour").value) + 1;
      const name = heads[column].textContent;
      byId("point").textContent = `${row.cells[0].title}: ${name} ${row.cells[column].textContent}`;
    }
    if (!scroll) return;
    if (!shown.includes(row)) {
      controls.text.value = controls.from.value = controls.to.value = "";
      filter();
    }
    page = Math.floor(shown.indexOf(row) / size);
    draw();
    row.scrollIntoView({ block: "center" });
  };
  body.addEventListener("click", (event) => {
    const row = event.target.closest("tr");
    if (row) pick(Number(row.dataset.i), false);
  });
  if (map) {
    const place = (point) => Number(point.getAttribute("cx"));
    const sequence = points.map((_, i) => i).sort((a, b) => place(points[a]) - place(points[b]));
    const colour = () => {
      const column = Number(byId("colour").value) + 1;
      const values = rows.map((row) => valueOf(row, column));
      const ranked = values.map((_, i) => i).filter((i) => values[i] !== null);
      ranked.sort((a, b) => values[a] - values[b]);
      points.forEach((point) => point.setAttribute("class", "point c-none"));
      ranked.forEach((i, rank) => points[i].setAttribute("class", `point c${Math.floor((rank * 7) / ranked.length)}`));
      if (picked !== null) points[picked].classList.add("picked");
      const text = (i) => (i === undefined ? "–" : rows[i].cells[column].textContent);
      byId("legend-low").textContent = text(ranked[0]);
      byId("legend-high").textContent = text(ranked[ranked.length - 1]);
    };
    byId("colour").addEventListener("change", colour);
    const indexOf = (event) => {
      const point = event.target.closest(".point");
      return point ? Number(point.dataset.i) : null;
    };
    map.addEventListener("pointerover", (event) => { const i = indexOf(event); if (i !== null) pick(i, false); });
    map.addEventListener("click", (event) => { const i = indexOf(event); if (i !== null) pick(i, true); });
    map.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
      if (step) {
        const at = picked === null ? (step > 0 ? -1 : 0) : sequence.indexOf(picked);
        pick(sequence[(at + step + sequence.length) % sequence.length], false);
        event.preventDefault();
      } else if (event.key === "Enter" && picked !== null) {
        pick(picked, true);
        event.preventDefault();
      }
    });
    colour();
  }
  draw();
})();
