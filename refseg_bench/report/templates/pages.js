// Overview, tables, list of samples, comparison of two runs.
"use strict";
refseg.pages = {};

const number = (value, digits = 1) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const signed = (value, digits = 2) => (value === null ? "–" : (value > 0 ? "+" : "") + value.toFixed(digits));
function runName(index) {
  return h("span", {}, h("span", { class: "key", style: { background: runColour(index) } }), refseg.meta.runs[index].name);
}
function tableOf(table) {
  return h("div", { class: "wide" }, h("table", {}, h("caption", {}, table.caption),
    h("thead", {}, h("tr", {}, table.header.map((title) => h("th", { scope: "col" }, title)))),
    h("tbody", {}, table.rows.map((row) => h("tr", {}, row.map((cell, column) =>
      h(column ? "td" : "th", { class: cell.best ? "best" : null, scope: column ? null : "row" }, cell.text,
        cell.interval ? h("span", { class: "interval" }, cell.interval) : null)))))));
}

// ── overview ──
refseg.pages.overview = async () => {
  const { meta } = refseg;
  const boxes = meta.runs.map((run, index) => {
    const facts = [
      ["method", run.method], ["data", `${run.dataset} · ${run.split}`],
      ["predicted", `${run.ok} of ${run.ok + run.failed + run.missing}`],
      ["failed", run.failed ? h("a", { class: "bad", href: address("samples", "", { g: run.group, a: run.place, status: "failed" }) }, String(run.failed)) : "0"],
      ["missing", String(run.missing)],
      ["s per sample", number(run.seconds, 2)], ["made with", run.made],
      ["config digest", run.digest], ["date", run.created],
    ];
    return h("section", { class: "box" }, h("h3", {}, runName(index)),
      h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
      h("p", {}, h("a", { href: address("samples", "", { g: run.group, a: run.place, order: "worst" }) }, "worst first"), " · ",
        h("a", { href: address("samples", "", { g: run.group, a: run.place, order: "random" }) }, "random")),
      h("details", {}, h("summary", {}, "whole config"), h("pre", {}, run.config)));
  });
  const charts = await Promise.all(meta.groups.map(async (group, g) => {
    const data = await loadGroup(g);
    const first = group.results;
    return [h("h2", {}, `${group.name} · ${group.split}`),
      group.note ? h("p", { class: "note" }, group.note) : null,
      h("p", { class: "soft" }, `${group.n} samples of ${group.clips} clips`),
      first ? [h("p", {}, `${first.metric}, ${first.protocol}, percent, ${meta.level} intervals`),
        intervalChart(first.rows.map((row) => ({ name: meta.runs[row.run].name, colour: runColour(row.run),
          value: row.value, low: row.low, high: row.high })))] : null,
      group.measures.length ? [h("p", {}, `Samples by ${group.measures[0].name}`),
        histogram(group.runs.map((run, r) => ({ name: meta.runs[run].name, colour: runColour(run), values: data.score[0][r] })))] : null];
  }));
  page().replaceChildren(h("h1", {}, meta.title), ...charts.flat(3).filter(Boolean),
    h("h2", {}, meta.runs.length === 1 ? "The run" : "Runs"), h("div", { class: "runs" }, boxes),
    h("p", { class: "soft" }, `Made on ${meta.made} by refseg_bench ${meta.version}. Everything shown lies in this folder.`));
};

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
    history.replaceState(null, "", address("samples", params));
    fill();
  };
  const pick = (name, title, pairs, current) => h("label", {}, title,
    h("select", { name, onchange: (event) => set({ [name]: event.target.value }) }, options(pairs, current)));
  const state = filterOf(params, head);
  const runs = head.runs.map((run, r) => [r, meta.runs[run].name]);
  let waiting = 0;
  const search = h("input", { type: "search", name: "q", value: params.get("q") || "", oninput: (event) => {
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
    runs.length > 1 ? pick("b", "moved against it", runs, state.b) : null,
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
    more();
    count.textContent = `${order.length} of ${data.size} samples`;
  }
  fill();
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
      return h("span", { class: "meter", title: meta.runs[run].name },
        h("i", {}, h("b", { style: { width: `${Math.max(0, Math.min(100, value || 0))}%`, background: runColour(run) } })),
        h("span", { class: state ? "bad" : null }, state ? STATUS[state] : number(value)));
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
  } }, options(meta.runs.map((run, i) => [i, `${run.name} (${run.dataset})`]), current)));
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
    found ? comparisonTable(found) : h("p", { class: "note" }, `No test was computed for this pair: refseg compare ${meta.runs[a].name} ${meta.runs[b].name}`),
    h("div", { class: "two" },
      h("section", {}, h("h2", {}, "Every sample"), score.length ? h("p", { class: "soft" }, head.measures[0].name) : "",
        scatter(moved.slice(0, 3000).map((row) => ({ a: row.one, b: row.two, name: data.id[row.i],
          href: address("sample", "", { ...filter, n: row.i, order: "moved" }) })), "A", "B")),
      h("section", {}, h("h2", {}, "Options that differ"), found && found.config.length ?
        h("div", { class: "wide" }, h("table", {}, h("tr", {}, ["option", "A", "B"].map((t) => h("th", {}, t))),
          found.config.map((row) => h("tr", {}, row.map((cell) => h("td", {}, cell)))))) : h("p", {}, "none"))),
    h("div", { class: "two" },
      h("section", {}, h("h2", {}, "B is better"), list(gained)),
      h("section", {}, h("h2", {}, "B is worse"), list(lost))));
};
function turned(c) {
  const flip = (row) => ({ ...row, value: -row.value, low: row.high === null ? null : -row.high, high: row.low === null ? null : -row.low });
  return { ...c, a: c.b, b: c.a, rows: c.rows.map(flip), config: c.config.map(([key, one, two]) => [key, two, one]) };
}
function comparisonTable(c) {
  const titles = ["", "metric", "B − A", `${refseg.meta.level} interval`, "p", "units", "clips"];
  return h("div", { class: "wide" }, h("table", {}, h("caption", {}, `${c.protocol} · percent points`),
    h("tr", {}, titles.map((title) => h("th", {}, title))),
    c.rows.map((row) => h("tr", {}, [row.group, row.metric, signed(row.value),
      row.low === null ? "–" : `${signed(row.low)} … ${signed(row.high)}`, row.p === null ? "–" : row.p.toFixed(4),
      String(row.units), String(row.clusters)].map((cell) => h("td", {}, cell))))));
}
