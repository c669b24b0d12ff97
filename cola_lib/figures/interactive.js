/* Interactive figures of the book: what figures/interactive.py writes into a page is drawn here, with Plotly.

   Every figure is a <section class="cola-figure"> with its data as JSON. It gets a form of choices, a picture that a
   mouse, a finger and a keyboard can read, a table of what the picture shows, and a button that saves that table.
   Nothing is fetched: pages are read from folders too. */
(() => {
  "use strict";
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star", "pentagon", "hexagon"];
  // seaborn's "colorblind", light and dark enough for a background of either kind
  const COLORS = {
    light: ["#0173b2", "#b35900", "#02795a", "#c43c00", "#a8508e", "#8a5a2b", "#9a4f8a", "#6b6b6b", "#7a6f00", "#5b5ea6"],
    dark: ["#56b4e9", "#ffb000", "#3ddbb0", "#ff7a45", "#e69ad0", "#d3a877", "#fbafe4", "#b0b0b0", "#ece133", "#b3b5f0"],
  };
  const ALL = "";

  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };
  const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const unique = (values) => [...new Set(values)];
  const dark = () => document.documentElement.dataset.theme === "dark";
  const wrapped = (text, width = 64) => {
    const lines = [""];
    for (const word of String(text).split(/\s+/).flatMap((w) => w.match(new RegExp(`.{1,${width}}`, "gu")) || [])) {
      if ((lines.at(-1) + word).length > width) lines.push("");
      lines[lines.length - 1] += `${word} `;
    }
    return lines.map((line) => line.trim());
  };

  class Figure {
    constructor(section) {
      this.section = section;
      this.data = JSON.parse(section.querySelector("script[type='application/json']").textContent);
      this.records = this.data.rows.map((row) => Object.fromEntries(this.data.columns.map((c, i) => [c.name, row[i]])));
      this.current = -1;
      this.build();
    }

    build() {
      const { name, label, choose } = this.data;
      this.selects = choose.map(({ column, label: text }) => {
        const select = element("select", { id: `${name}-${column}` });
        select.addEventListener("change", () => this.update());
        return [element("label", { for: select.id }, text), select];
      });
      const form = element("form", { class: "cola-choices", "aria-label": `Choose what “${label}” shows` });
      form.append(...this.selects.map((pair) => element("div", {}, ...pair)));
      form.addEventListener("submit", (event) => event.preventDefault());
      const help = element("p", { class: "cola-help", id: `${name}-help` });
      help.append("Point at a mark, or go to the picture with Tab and from mark to mark with the arrow keys; a click or Enter shows what is behind it.");
      this.picture = element("div", {
        class: "cola-picture", id: `${name}-picture`, tabindex: "0", role: "application", "aria-label": label,
        "aria-roledescription": "interactive figure", "aria-describedby": help.id,
      });
      this.picture.addEventListener("keydown", (event) => this.key(event));
      this.said = element("p", { class: "cola-said", role: "status" });
      this.behind = element("div", { class: "cola-behind", role: "region", "aria-label": "Behind the mark", tabindex: "0" });
      this.behind.hidden = true;
      this.count = element("summary");
      this.table = element("table");
      const scroll = element("div", { class: "cola-scroll", tabindex: "0", role: "region", "aria-label": `Table: ${label}` });
      scroll.append(this.table);
      const details = element("details", { class: "cola-table" }, this.count, scroll);
      const save = element("button", { type: "button", class: "cola-save" }, "Save the table as CSV");
      save.addEventListener("click", () => this.save());
      this.section.querySelector(".cola-without-script")?.remove();
      this.section.append(form, help, this.picture, this.said, this.behind, details, save);
    }

    /* Of each choice, offer what the ones before it leave. */
    chosen() {
      let left = this.records;
      this.scope = left;
      this.data.choose.forEach(({ column, all }, i) => {
        const select = this.selects[i][1];
        const kept = select.value;
        const values = unique(left.map((record) => record[column]).filter((value) => value !== null));
        select.replaceChildren();
        if (all) select.append(new Option("all", ALL));
        select.append(...values.map((value) => new Option(value, value)));
        select.value = values.map(String).includes(kept) ? kept : all ? ALL : String(values[0]);
        select.parentElement.hidden = values.length === 0;
        select.disabled = select.options.length < (all ? 3 : 2);
        if (!all) this.scope = left.filter((record) => String(record[column]) === select.value);
        if (select.value !== ALL) left = left.filter((record) => String(record[column]) === select.value);
      });
      return left;
    }

    async update() {
      this.shown = this.chosen();
      this.current = -1;
      this.said.textContent = "";
      this.behind.hidden = true;
      this.fillTable();
      await this.draw();
    }

    async draw() {
      const { traces, layout } = this.data.kind === "map" ? this.map() : this.intervals();
      this.order = traces.flatMap((trace, curve) => trace.records.map((record, point) => ({ record, curve, point })));
      if (this.data.kind !== "map") this.order.sort((a, b) => b.record.y - a.record.y);
      const style = getComputedStyle(this.section);
      const ink = style.color, faint = style.getPropertyValue("--cola-faint").trim();
      const axis = { gridcolor: faint, linecolor: faint, zeroline: false, automargin: true, fixedrange: true };
      await Plotly.react(
        this.picture,
        traces.map(({ records, ...trace }) => ({
          ...trace, customdata: records.map((record) => this.records.indexOf(record)),
          hovertext: records.map((record) => this.words(record, this.narrow() ? 34 : 64).map(escaped).join("<br>")), hoverinfo: "text",
        })),
        {
          paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { family: style.fontFamily, size: 13, color: ink },
          hovermode: "closest", dragmode: false, margin: { l: 10, r: 10, t: 10, b: 45 },
          hoverlabel: { bgcolor: style.getPropertyValue("--cola-surface").trim(), bordercolor: ink, font: { color: ink }, align: "left" },
          legend: { orientation: "h", y: 1, yanchor: "bottom", x: 0 }, ...layout,
          xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
        },
        { displayModeBar: false, responsive: true },
      );
      if (!this.listening) {
        this.picture.on("plotly_click", (event) => this.open(this.records[event.points[0].customdata]));
        this.listening = true;
      }
    }

    intervals() {
      const { by, hue, hues: every, reference } = this.data;
      const varying = by.filter((column) => unique(this.shown.map((r) => r[column]).filter((v) => v !== null)).length > 1);
      const name = (r) => (varying.length ? varying : by.slice(0, 1)).map((c) => r[c]).filter((v) => v !== null).join(" · ");
      const groups = Map.groupBy(this.shown, name);
      const mean = (row) => groups.get(row).reduce((sum, r) => sum + r.value, 0) / groups.get(row).length;
      const rows = [...groups.keys()].sort((a, b) => mean(b) - mean(a));
      // a method keeps its colour and shape whatever is left out by the later choices
      const inScope = every.filter((h) => this.scope.some((r) => r[hue] === h));
      const most = Math.max(...rows.map((row) => groups.get(row).length)), step = 0.8 / most;
      rows.forEach((row, i) => {
        const marks = groups.get(row).sort((a, b) => every.indexOf(a[hue]) - every.indexOf(b[hue]));
        marks.forEach((r, k) => { r.y = -i - (k - (marks.length - 1) / 2) * step; });
      });
      const traces = inScope.filter((value) => this.shown.some((r) => r[hue] === value)).map((value) => {
        const records = this.shown.filter((r) => r[hue] === value), i = inScope.indexOf(value);
        return {
          records, name: String(value), type: "scatter", mode: "markers", x: records.map((r) => r.value), y: records.map((r) => r.y),
          marker: { ...this.face(i), size: 9 },
          error_x: { type: "data", symmetric: false, array: records.map((r) => r.high - r.value), arrayminus: records.map((r) => r.value - r.low), thickness: 1.5, width: 0, color: this.face(i).color },
        };
      });
      const measure = this.shown[0]?.measure ?? "", at = reference[measure], narrow = this.narrow();
      return {
        traces,
        layout: {
          showlegend: true, height: 110 + rows.length * Math.max(30, 14 * most + 10),
          xaxis: { title: { text: wrapped(measure, narrow ? 26 : 80).map(escaped).join("<br>"), standoff: 8 } },
          yaxis: {
            tickvals: rows.map((_, i) => -i), ticktext: rows.map((row) => (narrow ? wrapped(row, 20) : wrapped(row, 34)).map(escaped).join("<br>")),
            range: [-rows.length + 0.4, 0.6],
          },
          shapes: at === undefined ? [] : [{ type: "line", x0: at, x1: at, y0: 0, y1: 1, yref: "paper", line: { dash: "dash", width: 1, color: getComputedStyle(this.section).color } }],
        },
      };
    }

    narrow() {
      return this.picture.clientWidth < 500;
    }

    /* The i-th colour and shape; where colours begin again, shapes are others. */
    face(i) {
      const colors = COLORS[dark() ? "dark" : "light"];
      return { color: colors[i % colors.length], symbol: SYMBOLS[(i + Math.floor(i / colors.length)) % SYMBOLS.length] };
    }

    map() {
      const { hue, picked } = this.data;
      const every = unique(this.records.map((r) => r[hue]));
      const traces = every.filter((value) => this.shown.some((r) => r[hue] === value)).map((value) => {
        const records = this.shown.filter((r) => r[hue] === value), i = every.indexOf(value);
        return {
          records, name: String(value), type: "scatter", mode: "markers", x: records.map((r) => r.x), y: records.map((r) => r.y),
          marker: {
            ...this.face(i), size: records.map((r) => (r[picked] === "yes" ? 13 : 8)),
            line: { width: records.map((r) => (r[picked] === "yes" ? 2.5 : 0)), color: getComputedStyle(this.section).color },
          },
        };
      });
      const title = (text) => ({ title: { text, standoff: 8 }, showticklabels: false });
      return { traces, layout: { showlegend: true, height: 460, xaxis: title(this.data.xlabel), yaxis: title(this.data.ylabel) } };
    }

    /* What a mark says: its labels, its numbers, and the text that it stands for. */
    words(record, width = 64) {
      const lines = [];
      for (const { name, label, hover, digits } of this.data.columns) {
        if (!hover || record[name] === null) continue;
        const text = digits === undefined ? record[name] : record[name].toFixed(digits);
        lines.push(...wrapped(label ? `${label}: ${text}` : text, width));
      }
      return lines;
    }

    key(event) {
      const steps = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 };
      const n = this.order.length;
      if (!n) return;
      if (event.key in steps) this.current = this.current < 0 ? (steps[event.key] > 0 ? 0 : n - 1) : (this.current + steps[event.key] + n) % n;
      else if (event.key === "Home") this.current = 0;
      else if (event.key === "End") this.current = n - 1;
      else if (event.key === "Escape") { this.current = -1; this.behind.hidden = true; Plotly.Fx.unhover(this.picture); }
      else if ((event.key === "Enter" || event.key === " ") && this.current >= 0) this.open(this.order[this.current].record);
      else return;
      event.preventDefault();
      if (this.current < 0) return;
      const { record, curve, point } = this.order[this.current];
      Plotly.Fx.hover(this.picture, [{ curveNumber: curve, pointNumber: point }]);
      this.said.textContent = `${this.current + 1} of ${n}. ${this.words(record).join(" ")}`;
    }

    /* Everything that is known of a mark, below the picture. */
    open(record) {
      const known = element("dl");
      for (const { name, label, digits } of this.data.columns) {
        if (record[name] === null || !label || name === this.data.cells) continue;
        known.append(element("dt", {}, label), element("dd", {}, digits === undefined ? String(record[name]) : record[name].toFixed(digits)));
      }
      this.behind.replaceChildren(known);
      const cells = this.data.cells && record[this.data.cells];
      if (cells) {
        const table = element("table", {}, element("caption", {}, "The cells behind it"));
        table.append(element("thead", {}, element("tr", {}, ...["draw", "cell", "alone"].map((head) => element("th", { scope: "col" }, head)))));
        table.append(element("tbody", {}, ...cells.map(([draw, cell, alone]) => element("tr", {}, ...[draw, cell, alone === null ? "" : alone.toFixed(1)].map((text) => element("td", {}, String(text ?? "")))))));
        this.behind.append(table);
      }
      this.behind.hidden = false;
    }

    cell(record, { name, digits }) {
      const value = record[name];
      if (value === null || value === undefined) return "";
      if (Array.isArray(value)) return value.map(([, cell]) => cell).join(" ");
      return digits === undefined ? String(value) : value.toFixed(digits);
    }

    tabled() {
      return this.data.columns.filter(({ label }) => label);
    }

    fillTable() {
      const columns = this.tabled(), n = this.shown.length;
      this.count.textContent = `The same as a table: ${n} ${n === 1 ? "row" : "rows"}`;
      const head = element("tr", {}, ...columns.map((column) => element("th", { scope: "col" }, column.label)));
      const body = this.shown.map((record) => element("tr", {}, ...columns.map((column) => element("td", {}, this.cell(record, column)))));
      this.table.replaceChildren(element("caption", {}, this.data.label), element("thead", {}, head), element("tbody", {}, ...body));
    }

    save() {
      const quoted = (text) => (/[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text);
      const columns = this.tabled();
      const lines = [columns.map((column) => column.label), ...this.shown.map((record) => columns.map((column) => this.cell(record, column)))];
      const url = URL.createObjectURL(new Blob([lines.map((line) => line.map(quoted).join(",")).join("\r\n") + "\r\n"], { type: "text/csv" }));
      element("a", { href: url, download: `${this.data.name}.csv` }).click();
      setTimeout(() => URL.revokeObjectURL(url), 1000);
    }
  }

  window.colaFigures = new Promise((ready, failed) => {
    const start = async () => {
      const figures = [...document.querySelectorAll(".cola-figure")].map((section) => new Figure(section));
      await Promise.all(figures.map((figure) => figure.update()));
      new MutationObserver(() => figures.forEach((figure) => figure.draw())).observe(document.documentElement, { attributeFilter: ["data-theme"] });
      return figures.length;
    };
    const run = () => start().then(ready, failed);
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", run);
    else run();
  });
})();
