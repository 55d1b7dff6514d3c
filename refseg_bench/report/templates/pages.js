// Overview, tables, list of samples, comparison of two runs, sweeps.
"use strict";
refseg.pages = {};

// As tables are printed: what lies half way goes to the even digit, what rounds to nothing has no sign (|| 0).
function number(value, digits = 1) {
  if (value === null || value === undefined) return "–";
  const half = Math.abs(value * 2 ** (digits + 1)) % 2 === 1;
  const near = half ? (2 * Math.round((value * 10 ** digits) / 2)) / 10 ** digits : value;
  return (Number(near.toFixed(digits)) || 0).toFixed(digits);
}
const amount = (value) => number(value, value >= 100 || value === 0 ? 0 : 2);
function signed(value, digits = 2) {
  if (value === null) return "–";
  const text = number(Math.abs(value), digits);
  return (Number(text) === 0 ? "" : value > 0 ? "+" : "−") + text;
}
// A name as a shell takes it: one that comes from elsewhere may hold anything.
const quoted = (text) => (/^[\w./][\w./-]*$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
const runLabel = (index) => refseg.meta.runs[index].label;
function runName(index) {
  return h("span", { class: "run", title: refseg.meta.runs[index].name },
    h("span", { class: "key", style: { background: runColour(index) } }), runLabel(index));
}
// A table that scrolls sideways by itself, under a caption that doesn't.
function wide(caption, ...rows) {
  return h("div", {}, caption ? h("p", { class: "soft" }, caption) : null,
    h("div", { class: "wide", tabindex: 0, role: "region", "aria-label": caption || "table" }, h("table", {}, rows)));
}
function tableOf(table) {
  return h("div", {}, wide(table.caption,
    h("thead", {}, h("tr", {}, table.header.map((title) => h("th", { scope: "col" }, title)))),
    h("tbody", {}, table.rows.map((row) => h("tr", {}, row.map((cell, column) =>
      h(column ? "td" : "th", { class: cell.best ? "best" : null, scope: column ? null : "row" }, cell.text,
        cell.interval ? h("span", { class: "interval" }, cell.interval) : null)))))),
    table.notes.map((note) => h("p", { class: "soft" }, note)));
}

// ── overview ──
refseg.pages.overview = async (params) => {
  const { meta } = refseg;
  const set = (changes) => {
    replaceState("overview", new URLSearchParams(address("overview", params, changes).split("?")[1] || ""));
    return refseg.pages.overview(route().params);
  };
  const sections = await Promise.all(meta.groups.map(async (group, g) => groupSection(group, g, await loadGroup(g), params, set)));
  const focused = document.activeElement && document.activeElement.dataset.stays;
  page().replaceChildren(h("h1", {}, meta.title), ...sections.flat(9).filter(Boolean),
    h("h2", {}, meta.runs.length === 1 ? "The run" : "Runs"), ...meta.runs.map(runCard),
    h("p", { class: "soft" }, `Made on ${meta.made} by refseg_bench ${meta.version}. Everything shown lies in this folder.`));
  const again = focused && page().querySelector(`[data-stays="${focused}"]`);
  if (again) again.focus({ preventScroll: true });
};
function groupSection(group, g, data, params, set) {
  const { meta } = refseg;
  const scores = group.scores.find((one) => one.protocol === params.get("p")) || group.scores[0];
  const wanted = params.has("base") ? Number(params.get("base")) : NaN;
  const base = scores && (scores.rows.find((row) => row.run === wanted) || scores.rows[0]).run;
  const choose = (name, title, pairs, current) => h("label", {}, title, h("select", { name, "data-stays": `${name}${g}`,
    onchange: (event) => set({ [name]: event.target.value }) }, options(pairs, current)));
  const hidden = new Set((params.get("hist") ?? meta.runs.map((run, i) => (run.bound ? i : "")).join()).split(",").filter(Boolean).map(Number));
  const toggle = (run) => {
    const next = new Set(hidden);
    if (!next.delete(run)) next.add(run);
    return set({ hist: [...next].join() || "," });
  };
  const broken = meta.breakdowns.filter((one) => one.group === g && scores && one.protocol === scores.protocol);
  const byType = broken.find((one) => one.attribute === "type") || broken[0];
  return [
    h("h2", {}, `${group.name} · ${group.split}`), h("p", { class: "soft" }, `${group.n} samples of ${group.clips} clips`),
    group.note ? h("p", { class: "note" }, group.note) : null,
    scores ? [
      h("form", { class: "filters", onsubmit: (event) => event.preventDefault() },
        group.scores.length > 1 ? choose("p", "protocol", group.scores.map((one) => [one.protocol, one.protocol]), scores.protocol) : null,
        scores.rows.length > 1 ? choose("base", "difference to", scores.rows.map((row) => [row.run, runLabel(row.run)]), base) : null)]
      : h("p", {}, "None of the runs is scored yet: refseg score RUN"),
    h("div", { class: "two" },
      scores ? scoreTable(scores, base) : null,
      scores ? h("section", {}, h("h3", {}, `${scores.metrics[0]} with ${meta.level} intervals`),
        intervalChart(scores.rows.filter((row) => row.cells[0]).map((row) => ({ name: runLabel(row.run), colour: runColour(row.run), ...row.cells[0] })))) : null,
      byType ? h("section", {}, h("h3", {}, byType.caption.split(" · ").slice(2).join(" · ")), heatTable(byType)) : null,
      group.runs.some((run) => meta.runs[run].seconds !== null) ? h("section", {}, h("h3", {}, "Cost"), costTable(group)) : null,
      group.measures.length ? h("section", {}, h("h3", {}, `Samples by ${group.measures[0].name}`),
        group.runs.length > 1 ? h("div", { class: "tools" }, group.runs.map((run) => h("button", { type: "button", "data-stays": `hist${run}`,
          "aria-pressed": String(!hidden.has(run)), onclick: () => toggle(run) }, runName(run)))) : null,
        histograms(group.runs.map((run, r) => ({ run, name: runLabel(run), colour: runColour(run), values: data.score[0][r] }))
          .filter((column) => !hidden.has(column.run)))) : null)];
}
function valueCell(cell, lead) {
  return h("td", { class: lead ? "lead" : null }, number(cell && cell.value),
    cell && cell.low !== null ? h("span", { class: "interval" }, `${number(cell.low)}–${number(cell.high)}`) : null);
}
function scoreTable(scores, base) {
  const { meta } = refseg, several = scores.rows.length > 1;
  const gap = (run) => {
    const found = scores.pairs.find(([a, b]) => (a === base && b === run) || (a === run && b === base));
    if (!found) return h("td", { class: "soft" }, run === base ? "baseline" : "–");
    const [a, , value, low, high] = found;
    const [d, lo, hi] = a === base ? [value, low, high] : [value, high, low].map((v) => (v === null ? null : -v));
    const decided = lo === null ? "" : lo > 0 ? "good" : hi < 0 ? "bad" : "";
    return h("td", {}, h("span", { class: decided || null }, signed(d, 1), decided ? (lo > 0 ? " ▲" : " ▼") : ""),
      lo === null ? null : h("span", { class: "interval" }, `${signed(lo, 1)} … ${signed(hi, 1)}`));
  };
  const absent = scores.rows.some((row) => row.absent) ? ["absent"] : [];
  const titles = [scores.metrics[0], ...(several ? ["difference"] : []), ...scores.metrics.slice(1), "n", "failed", "missing", ...absent];
  const linked = (row, status) => (row[status] ? h("a", { class: status === "failed" ? "bad" : null, href: address("samples", "", {
    g: meta.runs[row.run].group, a: meta.runs[row.run].place, status }) }, String(row[status])) : "0");
  return wide(`${scores.protocol} · percent · ${meta.level} intervals clustered by clip` +
      (several ? " · differences paired by sample, ▲ ▼ where the interval leaves out 0" : "") +
      (scores.open ? ` · not settled by the publication: ${scores.open}` : ""),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "run"), titles.map((title) => h("th", { scope: "col" }, title)))),
    h("tbody", {}, scores.rows.map((row) => h("tr", {},
      h("th", { scope: "row" }, h("a", { href: address("samples", "", { g: meta.runs[row.run].group, a: meta.runs[row.run].place, order: "worst" }) }, runName(row.run))),
      valueCell(row.cells[0], true), several ? gap(row.run) : null, row.cells.slice(1).map((cell) => valueCell(cell)),
      h("td", {}, String(row.n)), h("td", {}, linked(row, "failed")), h("td", {}, String(row.missing)),
      absent.map((status) => h("td", {}, linked(row, status)))))));
}
// A breakdown with its values as shades; runs as rows, for there are often more types than runs.
function heatTable(table) {
  const shade = (cell) => {
    const node = h("td", { class: "heat" }, cell.text);
    node.style.setProperty("--share", `${Math.max(0, Math.min(100, Number(cell.text) || 0)) * 0.45}%`);
    return node;
  };
  return wide("",
    h("thead", {}, h("tr", {}, h("th", {}, ""), table.rows.map((row) => h("th", { scope: "col" }, row[0].text, h("span", { class: "interval" }, `n ${row[1].text}`))))),
    h("tbody", {}, table.header.slice(2).map((title, column) => h("tr", {}, h("th", { scope: "row" }, title), table.rows.map((row) => shade(row[column + 2]))))));
}
function costTable(group) {
  const { meta } = refseg, runs = group.runs.map((run) => ({ run, ...meta.runs[run] }));
  const most = Math.max(...runs.map((run) => run.seconds || 0));
  const costs = Object.keys(meta.costs).filter((name) => name !== "seconds" && runs.some((run) => name in run.cost));
  const told = (stages) => Object.entries(stages).filter(([, seconds]) => seconds >= 0.001).map(([name, seconds]) => `${name} ${number(seconds, 3)}`).join(" · ");
  return wide("",
    h("thead", {}, h("tr", {}, ["", "s per sample", ...costs.map((name) => meta.costs[name]), "peak MiB", "s of the stages"].map((title) => h("th", { scope: "col" }, title)))),
    h("tbody", {}, runs.map((run) => h("tr", {}, h("th", { scope: "row" }, runName(run.run)),
      h("td", {}, run.seconds === null ? "–" : bar(run.seconds, most, runColour(run.run), 2)),
      costs.map((name) => h("td", {}, amount(run.cost[name]))), h("td", {}, number(run.peak_mb, 0)),
      h("td", { class: "text soft" }, told(run.stages))))));
}
function bar(value, top, colour, digits = 3) {
  return h("span", { class: "meter" }, h("i", {}, h("b", { style: {
    width: `${Math.max(0, Math.min(1, value / (top || 1))) * 100}%`, background: colour } })), h("span", {}, number(value, digits)));
}
function runCard(run, index) {
  const links = { g: run.group, a: run.place };
  const facts = [["folder", run.name], ["method", run.method], ["data", `${run.dataset} · ${run.split}`],
    ["predicted", `${run.ok} of ${run.ok + run.failed + run.missing}`],
    ["failed", run.failed ? h("a", { class: "bad", href: address("samples", "", { ...links, status: "failed" }) }, String(run.failed)) : "0"],
    ["missing", String(run.missing)], ["made with", run.made], ["config digest", run.digest], ["date", run.created]];
  return h("details", { class: "box" },
    h("summary", {}, runName(index), h("span", { class: "soft" }, ` · ${run.ok} of ${run.ok + run.failed + run.missing} samples` +
      (run.seconds === null ? "" : ` · ${number(run.seconds, 2)} s each`))),
    h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    h("p", {}, h("a", { href: address("samples", "", { ...links, order: "worst" }) }, "worst first"), " · ",
      h("a", { href: address("samples", "", { ...links, order: "random" }) }, "random")),
    h("details", {}, h("summary", {}, "whole config"), h("pre", {}, run.config)));
}

// ── tables ──
refseg.pages.tables = async () => {
  const { meta } = refseg;
  page().replaceChildren(h("h1", {}, "Tables"),
    ...(meta.tables.length ? meta.tables.map(tableOf) : [h("p", {}, "None of the runs is scored yet: refseg score RUN")]),
    meta.breakdowns.length ? h("h2", {}, "By attribute") : "", ...meta.breakdowns.map(tableOf));
};

// ── list of samples ──
function options(pairs, current) {
  return pairs.map(([value, title]) => h("option", { value, selected: String(value) === String(current) }, title));
}
refseg.pages.samples = async (params) => {
  const { meta } = refseg;
  if (!meta.groups.length) {
    page().replaceChildren(h("h1", {}, "Samples"), h("p", {}, "There are none."));
    return;
  }
  const g = Math.min(meta.groups.length - 1, Math.max(0, Number(params.get("g") || 0) || 0));
  const data = await loadGroup(g), head = data.head;
  const set = (changes) => {
    params = new URLSearchParams(address("samples", params, changes).split("?")[1] || "");
    replaceState("samples", params);
    fill();
  };
  const pick = (name, title, pairs, current) => h("label", {}, title,
    h("select", { name, onchange: (event) => set({ [name]: event.target.value }) }, options(pairs, current)));
  const state = filterOf(params, head);
  const runs = head.runs.map((run, r) => [r, runLabel(run)]);
  let waiting = 0;
  const search = h("input", { type: "search", size: 14, name: "q", value: params.get("q") || "", oninput: (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => set({ q: event.target.value }), 120);
  } });
  const bound = (name, title) => h("label", {}, title, h("input", { type: "number", name, min: 0, max: 100, step: "any",
    value: params.get(name) || "", oninput: (event) => set({ [name]: event.target.value }) }));
  const form = h("form", { class: "filters", onsubmit: (event) => event.preventDefault() },
    meta.groups.length > 1 ? h("label", {}, "data set", h("select", { name: "g", onchange: (event) => {
      location.hash = address("samples", "", { g: event.target.value });
    } }, options(meta.groups.map((group, i) => [i, `${group.name} · ${group.split}`]), g))) : null,
    h("label", {}, "search", search),
    pick("order", "order", [["dataset", "as in the data set"], ["worst", "worst first"], ["best", "best first"],
      ["random", "random"], ...(runs.length > 1 ? [["moved", "most moved"], ["gained", "most gained"], ["lost", "most lost"]] : [])], state.order),
    h("label", {}, " ", h("button", { type: "button", name: "again", onclick: () =>
      set({ order: "random", seed: String(1 + Math.floor(Math.random() * 1e6)) }) }, "shuffle")),
    pick("a", "run", runs, state.a),
    runs.length > 1 ? pick("b", "moved to", runs, state.b) : null,
    head.measures.length > 1 ? pick("m", "score", head.measures.map((m, i) => [i, m.name]), state.measure) : null,
    head.measures.length ? [bound("lo", "from"), bound("hi", "to")] : null,
    pick("status", "status", [["", "all"], ...STATUS.map((word) => [word, word])], state.status),
    head.attrs.map((attr) => pick("attr." + attr.name, attr.title, [["", "all"], ...attr.values.map((v) => [v, v])], params.get("attr." + attr.name) || "")));
  const count = h("p", { class: "soft", id: "count", "aria-live": "polite" });
  const cards = h("div", { class: "cards" });
  const end = h("p", {});
  page().replaceChildren(h("h1", {}, `Samples of ${head.name} · ${head.split}`), head.note ? h("p", { class: "note" }, head.note) : "",
    form, count, cards, end);
  let order = [], drawn = 0;
  const more = () => {
    const filter = filterOf(params, head);
    const next = order.slice(drawn, drawn + 60);
    cards.append(...next.map((i) => cardOf(data, filter, i, address("sample", params, { n: i, g }))));
    drawn += next.length;
  };
  const watch = new IntersectionObserver((entries) => {
    if (entries.some((e) => e.isIntersecting) && drawn < order.length) more();
  }, { rootMargin: "600px" });
  watch.observe(end);
  leave = () => watch.disconnect();
  function fill() {
    order = chosen(data, filterOf(params, head));
    drawn = 0;
    cards.replaceChildren();
    const back = seen && seen.g === g ? order.indexOf(seen.n) : -1, y = places.get(location.hash) || 0;
    do more();
    while (drawn < order.length && (drawn <= back || document.documentElement.scrollHeight < y + window.innerHeight));
    count.textContent = `${order.length} of ${data.size} samples`;
  }
  fill();
  if (seen && seen.g === g) {
    const card = cards.children[order.indexOf(seen.n)];
    if (card) card.focus({ preventScroll: true });
    seen = null;
  }
  const move = (step) => {
    const all = [...cards.children], at = all.indexOf(document.activeElement);
    const next = all[Math.min(all.length - 1, Math.max(0, at + step))];
    if (next) next.focus();
  };
  keysHere = { j: () => move(1), k: () => move(-1), ArrowDown: () => move(1), ArrowUp: () => move(-1),
    ArrowRight: () => move(1), ArrowLeft: () => move(-1), "/": () => search.focus() };
};
function cardOf(data, filter, i, href) {
  const { meta } = refseg, head = data.head;
  return h("a", { class: "card", href, "data-sample": data.id[i] },
    data.thumb[i] ? h("img", { src: `thumbs/${data.thumb[i]}.jpg`, loading: "lazy", decoding: "async", alt: "" }) : null,
    h("span", { class: "text", dir: "auto" }, data.text[i]),
    h("span", { class: "id" }, data.id[i]),
    head.runs.map((run, r) => {
      const value = head.measures.length ? data.score[filter.measure][r][i] : null, state = data.status[r][i];
      return h("span", { class: "meter", title: runLabel(run) },
        h("i", {}, h("b", { style: { width: `${Math.max(0, Math.min(100, value || 0))}%`, background: runColour(run) } })),
        h("span", { class: state === 1 || state === 2 ? "bad" : null },
          state === 1 || state === 2 ? STATUS[state] : number(value) + (state ? ` ${STATUS[state]}` : "")));
    }));
}

// ── two runs ──
refseg.pages.compare = async (params) => {
  const { meta } = refseg;
  const byName = (name, fallback) => {
    const word = params.get(name);
    const found = meta.runs.findIndex((run, index) => run.name === word || String(index) === word);
    return found < 0 ? fallback : found;
  };
  const a = byName("a", 0), runA = meta.runs[a];
  const partners = meta.groups[runA.group].runs;
  let b = byName("b", partners.find((run) => run !== a));
  const choose = (name, current) => h("label", {}, name === "a" ? "A" : "B", h("select", { name, onchange: (event) => {
    location.hash = address("compare", params, { a, b, [name]: event.target.value });
  } }, options(meta.runs.map((run, i) => [i, `${run.label} (${run.dataset})`]), current)));
  const title = h("h1", {}, "Compare two runs");
  const form = h("form", { class: "filters" }, choose("a", a), choose("b", b));
  if (b === undefined || b === a || !partners.includes(b)) {
    page().replaceChildren(title, form, h("p", {}, "Choose two different runs of one data set and split."));
    return;
  }
  const data = await loadGroup(runA.group), head = data.head;
  const known = meta.comparisons.find((c) => c.a === a && c.b === b);
  const mirrored = known ? null : meta.comparisons.find((c) => c.a === b && c.b === a);
  const found = known || (mirrored ? turned(mirrored) : null);
  const places = { a: partners.indexOf(a), b: partners.indexOf(b) };
  const score = data.score[0] || [], filter = { g: runA.group, a: places.a, b: places.b };
  const moved = [];
  for (let i = 0; i < data.size && score.length; i++) {
    const one = score[places.a][i], two = score[places.b][i];
    if (one !== null && two !== null) moved.push({ i, one, two });
  }
  const list = (rows) => h("ol", { class: "moved" }, rows.map((row) => h("li", {},
    h("a", { href: address("sample", "", { ...filter, n: row.i, order: "moved" }) }, data.id[row.i]), " ",
    h("span", { dir: "auto" }, data.text[row.i].slice(0, 120)), ` ${number(row.one)} → ${number(row.two)}`)));
  const sorted = [...moved].sort((p, q) => p.two - p.one - (q.two - q.one));
  const lost = sorted.filter((row) => row.two < row.one).slice(0, 15);
  const gained = sorted.filter((row) => row.two > row.one).reverse().slice(0, 15);
  page().replaceChildren(title, form,
    h("p", {}, "A: ", runName(a), h("br"), "B: ", runName(b)),
    ...found ? comparisonTables(found) : [h("p", { class: "note" }, "This pair was not tested by attribute: ",
      h("code", { class: "line" }, `refseg compare ${quoted(meta.runs[a].path)} ${quoted(meta.runs[b].path)}`))],
    h("div", { class: "two" },
      h("section", {}, h("h2", {}, "Every sample"), score.length ? h("p", { class: "soft" }, head.measures[0].name) : "",
        scatter(moved.slice(0, 3000).map((row) => ({ a: row.one, b: row.two, name: data.id[row.i],
          href: address("sample", "", { ...filter, n: row.i, order: "moved" }) })), "A", "B")),
      h("section", {}, h("h2", {}, "Options that differ"), found && found.config.length ?
        wide("", h("tr", {}, ["option", "A", "B"].map((t) => h("th", {}, t))),
          found.config.map((row) => h("tr", {}, row.map((cell) => h("td", { class: "text" }, cell))))) : h("p", {}, "none"))),
    h("div", { class: "two" },
      h("section", {}, h("h2", {}, "B is better"), list(gained)),
      h("section", {}, h("h2", {}, "B is worse"), list(lost))));
};
function turned(c) {
  const less = (value) => (value === null ? null : -value);
  const flip = (row) => ({ ...row, value: less(row.value), low: less(row.high), high: less(row.low) });
  return { ...c, a: c.b, b: c.a, rows: c.rows.map(flip), config: c.config.map(([key, one, two]) => [key, two, one]) };
}
function comparisonTables(c) {
  const headline = c.rows[0].metric, all = c.rows.filter((row) => row.group === "all");
  const rest = c.rows.filter((row) => row.group !== "all");
  const rows = (some) => comparisonTable(c, some);
  return [rows(all), ...rest.length ? [h("h2", {}, `${headline} by attribute`), rows(rest.filter((row) => row.metric === headline)),
    h("details", {}, h("summary", {}, "the other metrics by attribute"), rows(rest.filter((row) => row.metric !== headline)))] : []];
}
function comparisonTable(c, rows) {
  const titles = ["", "metric", "B − A", `${refseg.meta.level} interval`, "p", "units", "clips"];
  return wide(`${c.protocol} · percent points`,
    h("tr", {}, titles.map((title) => h("th", {}, title))),
    rows.map((row) => h("tr", {}, h("th", { scope: "row" }, row.group), [row.metric, signed(row.value),
      row.low === null ? "–" : `${signed(row.low)} … ${signed(row.high)}`, number(row.p, 4),
      String(row.units), String(row.clusters)].map((cell) => h("td", {}, cell)))));
}

// ── sweeps: the metric over one or two of the options that differ ──
refseg.pages.sweeps = async (params) => {
  const { meta } = refseg;
  const which = Math.min(meta.sweeps.length - 1, Math.max(0, Number(params.get("s") || 0) || 0)), sweep = meta.sweeps[which];
  if (!sweep) {
    page().replaceChildren(h("h1", {}, "Sweeps"), h("p", {}, "No method has three runs here that differ in an option."));
    return;
  }
  const keyOf = (name, fallback) => {
    const at = sweep.keys.indexOf(params.get(name));
    return at < 0 ? fallback : at;
  };
  const x = keyOf("x", 0), y = keyOf("y", params.has("y") || sweep.keys.length < 2 ? -1 : 1);
  const pick = (name, title, pairs, current) => h("label", {}, title, h("select", { name, onchange: (event) => {
    replaceState("sweeps", new URLSearchParams(address("sweeps", params, { [name]: event.target.value || "-" }).split("?")[1] || ""));
    refseg.pages.sweeps(route().params);
  } }, options(pairs, current)));
  const valuesOf = (key) => {
    const found = [...new Set(sweep.points.map((point) => point.values[key]))];
    return found.every((v) => v !== "" && isFinite(v)) ? found.sort((p, q) => p - q) : found;
  };
  const shown = (point) => number(point.value) + (point.lacks ? "*" : "");
  const link = (point) => address("samples", "", { g: meta.runs[point.run].group, a: meta.runs[point.run].place, order: "worst" });
  const ranked = [...sweep.points].sort((p, q) => (q.value ?? -Infinity) - (p.value ?? -Infinity));
  const best = (list) => list.reduce((top, p) => ((p.value ?? -Infinity) > (top.value ?? -Infinity) ? p : top));
  const cell = (list) => {
    if (!list.length) return h("td", {}, "");
    const point = best(list), node = h("td", { class: "heat" }, h("a", { href: link(point) }, shown(point)),
      point.low === null ? null : h("span", { class: "interval" }, `${number(point.low)}–${number(point.high)}`),
      list.length > 1 ? h("span", { class: "interval" }, `best of ${list.length}`) : null);
    const all = sweep.points.map((p) => p.value).filter((v) => v !== null), low = Math.min(...all), high = Math.max(...all);
    node.style.setProperty("--share", `${5 + 45 * ((point.value - low) / (high - low || 1))}%`);
    return node;
  };
  const keys = sweep.keys.map((key) => [key, key]);
  page().replaceChildren(h("h1", {}, "Sweeps"), h("form", { class: "filters" },
    meta.sweeps.length > 1 ? pick("s", "sweep", meta.sweeps.map((one, i) => [i, one.title]), which) : null,
    sweep.keys.length > 1 ? [pick("x", "across", keys, sweep.keys[x]), pick("y", "down", [["", "nothing"], ...keys], y < 0 ? "" : sweep.keys[y])] : null),
    h("p", { class: "soft" }, sweep.title + (sweep.points.some((p) => p.lacks) ? " · *: not of all samples of the split" : "")),
    y < 0 || y === x
      ? sweepLine(sweep.points.map((p) => ({ ...p, at: p.values[x], name: runLabel(p.run), href: link(p) })), valuesOf(x), sweep.keys[x])
      : wide("", h("tr", {}, h("th", {}, `${sweep.keys[y]} ↓ ${sweep.keys[x]} →`), valuesOf(x).map((v) => h("th", { scope: "col" }, v))),
        valuesOf(y).map((row) => h("tr", {}, h("th", { scope: "row" }, row),
          valuesOf(x).map((column) => cell(sweep.points.filter((p) => p.values[x] === column && p.values[y] === row)))))),
    h("h2", {}, "Best first"), wide("",
      h("tr", {}, ["run", "value", "interval", ...sweep.keys].map((title) => h("th", {}, title))),
      ranked.map((p) => h("tr", {}, h("td", {}, h("a", { href: link(p) }, runName(p.run))), h("td", { class: p.best ? "best" : null }, shown(p)),
        h("td", {}, p.low === null ? "–" : `${number(p.low)}–${number(p.high)}`), p.values.map((v) => h("td", {}, v))))));
};
