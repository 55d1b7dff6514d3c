// Loading of data parts, routes, filters. A page's address holds all of its state, so that Back works
// and a view can be sent to somebody.
"use strict";

// ── data: every file in data/ calls refseg.give(key, value), for fetch() is refused from disk ──
refseg.give = (key, value) => {
  if (key === "meta") {
    refseg.meta = value;
    start();
    return;
  }
  const waiting = refseg.parts.get(key);
  if (waiting) waiting.resolve(value);
};
refseg.load = (key) => {
  let part = refseg.parts.get(key);
  if (!part) {
    part = {};
    part.promise = new Promise((resolve, reject) => {
      part.resolve = resolve;
      const script = document.createElement("script");
      script.src = `data/${key}.js`;
      script.onerror = () => reject(new Error(`data/${key}.js is missing from the report's folder`));
      script.onload = () => script.remove();
      document.head.append(script);
    });
    refseg.parts.set(key, part);
  }
  return part.promise;
};

// ── samples of a group, column by column ──
const groups = [];
function loadGroup(index) {
  if (!groups[index]) {
    const head = refseg.meta.groups[index];
    groups[index] = Promise.all(head.chunks.map((chunk) => refseg.load(chunk))).then((chunks) => {
      const join = (pick) => chunks.flatMap(pick);
      const size = chunks.reduce((n, c) => n + c.id.length, 0);
      return {
        head, size,
        id: join((c) => c.id), clip: join((c) => c.clip), text: join((c) => c.text), thumb: join((c) => c.thumb),
        attrs: head.attrs.map((_, a) => join((c) => c.attrs[a])),
        status: head.runs.map((_, r) => join((c) => c.status[r])),
        score: head.measures.map((_, m) => head.runs.map((_, r) => join((c) => c.score[m][r]))),
      };
    });
  }
  return groups[index];
}
// What became of a sample: absent and empty were predicted, said to be absent, and empty masks without a word; not
// asked is what a run of a part of the split leaves to the others.
const STATUS = ["ok", "failed", "missing", "absent", "empty", "not asked"];

function filterOf(params, head) {
  const whole = (name, top) => Math.min(Math.max(0, parseInt(params.get(name) || "0", 10) || 0), Math.max(0, top));
  return {
    group: whole("g", refseg.meta.groups.length - 1),
    a: whole("a", head.runs.length - 1),
    b: params.has("b") ? whole("b", head.runs.length - 1) : Math.min(1, head.runs.length - 1),
    measure: whole("m", head.measures.length - 1),
    words: (params.get("q") || "").toLowerCase(),
    low: params.get("lo"), high: params.get("hi"),
    status: params.get("status") || "", order: params.get("order") || "dataset",
    seed: parseInt(params.get("seed") || "1", 10),
    attrs: head.attrs.map((attr) => params.get("attr." + attr.name)),
  };
}
function chosen(data, filter) {
  const score = data.score[filter.measure], out = [];
  const one = score[filter.a], two = score[filter.b];
  const low = filter.low ? Number(filter.low) : -Infinity, high = filter.high ? Number(filter.high) : Infinity;
  const limited = filter.low || filter.high;
  for (let i = 0; i < data.size; i++) {
    if (limited && (one[i] === null || one[i] < low || one[i] > high)) continue;
    if (filter.status && STATUS[data.status[filter.a][i]] !== filter.status) continue;
    if (filter.words && !data.text[i].toLowerCase().includes(filter.words) &&
        !data.id[i].toLowerCase().includes(filter.words)) continue;
    if (filter.attrs.some((value, k) => value !== null && data.head.attrs[k].values[data.attrs[k][i]] !== value)) continue;
    out.push(i);
  }
  const gap = (i) => (one[i] === null || two[i] === null ? null : two[i] - one[i]);
  const by = (key) => {
    const keys = new Map(out.map((i) => [i, key(i)]));
    out.sort((p, q) => {
      const a = keys.get(p), b = keys.get(q);
      return a === null ? (b === null ? p - q : 1) : b === null ? -1 : a - b || p - q;
    });
  };
  const none = (value, sign) => (value === null ? null : sign * value);
  if (filter.order === "worst") by((i) => one[i]);
  if (filter.order === "best") by((i) => none(one[i], -1));
  if (filter.order === "moved") by((i) => (gap(i) === null ? null : -Math.abs(gap(i))));
  if (filter.order === "gained") by((i) => none(gap(i), -1));
  if (filter.order === "lost") by((i) => gap(i));
  if (filter.order === "random") by((i) => mixed(i, filter.seed));
  return out;
}
function mixed(index, seed) {
  let x = Math.imul(index + 1, 2654435761) ^ Math.imul(seed + 1, 40503);
  x = Math.imul(x ^ (x >>> 16), 2246822507);
  x = Math.imul(x ^ (x >>> 13), 3266489909);
  return (x ^ (x >>> 16)) >>> 0;
}

// ── routes ──
const page = () => document.getElementById("page");
function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  return { path: path || "overview", params: new URLSearchParams(query || "") };
}
function address(path, params, changes) {
  const next = new URLSearchParams(params);
  for (const [key, value] of Object.entries(changes || {})) {
    if (value === null || value === "") next.delete(key);
    else next.set(key, value);
  }
  const query = next.toString();
  return `#/${path === "overview" ? "" : path}${query ? "?" + query : ""}`;
}
// The same page with another state: the address says it, Back doesn't stop at it. A page that is being left,
// by an address that no event has told yet, has nothing to say any more.
function replaceState(path, params) {
  if (location.hash !== here) return;
  history.replaceState(null, "", address(path, params));
  here = location.hash;
}
const PAGES = { overview: "Overview", tables: "Tables", samples: "Samples", compare: "Compare", sweeps: "Sweeps" };
const pagesHere = () => Object.entries(PAGES).filter(([name]) =>
  (name !== "compare" || refseg.meta.runs.length > 1) && (name !== "sweeps" || refseg.meta.sweeps.length));
let leave = () => {};
let keysHere = {};
// Where each view was left, by its address, and the sample looked at last: the list opens there again.
const places = new Map();
let here = location.hash, seen = null;
let showing = Promise.resolve();
// One after the other: what an earlier address still loads doesn't replace the page of a later one.
const show = () => (showing = showing.then(showNext));
async function showNext() {
  const { path, params } = route();
  leave();
  leave = () => {};
  keysHere = {};
  const nav = document.getElementById("nav");
  nav.replaceChildren(...pagesHere().map(([name, title]) =>
    h("a", { href: address(name), "aria-current": name === path || (name === "samples" && path === "sample") ? "page" : null }, title)));
  const make = refseg.pages[path] || refseg.pages.overview;
  try {
    await make(params);
  } catch (error) {
    page().replaceChildren(h("h1", {}, "This page can't be shown"), h("p", { class: "bad" }, String(error.message || error)));
  }
}
function start() {
  document.title = `refseg report: ${refseg.meta.title}`;
  history.scrollRestoration = "manual";
  window.addEventListener("scroll", () => places.set(here, window.scrollY), { passive: true });
  window.addEventListener("hashchange", async () => {
    const stays = here.startsWith("#/sample?") && location.hash.startsWith("#/sample?");
    const y = places.get(location.hash) ?? (stays ? window.scrollY : 0);
    here = location.hash;
    await show();
    window.scrollTo(0, y);
  });
  show();
}

// ── light and dark, keys ──
function theme(next) {
  document.documentElement.dataset.theme = next;
  try { localStorage.setItem("refseg-theme", next); } catch { /* private window: not remembered */ }
}
(() => {
  let stored = null;
  try { stored = localStorage.getItem("refseg-theme"); } catch { /* as above */ }
  const dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = stored || (dark ? "dark" : "light");
})();
const flip = () => theme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
const KEYS = [
  ["1 2 3 4 5", "overview, tables, samples, compare, sweeps"], ["/", "search the expressions"],
  ["j k", "next, previous sample (in the list: move)"], ["Enter", "open; of a picture: alone or among the others"],
  ["← →", "frame back, forward"], ["Space", "play, pause"], ["t", "target's outline"],
  ["d", "right, missed and too much in colours"], ["m", "maps"], ["p", "points and boxes"], ["c", "another colour of the masks"],
  ["+ − 0", "larger, smaller, whole (drag to move)"], ["Esc", "back to all pictures, to the list"],
  ["l", "light or dark"], ["?", "this list"],
];
function help() {
  const dialog = document.getElementById("keys");
  dialog.replaceChildren(h("h2", {}, "Keys"), h("table", {}, KEYS.map(([key, does]) =>
    h("tr", {}, h("td", {}, key.split(" ").map((k) => [h("kbd", {}, k), " "])), h("td", { style: { textAlign: "left" } }, does)))),
    h("button", { type: "button", onclick: () => dialog.close() }, "Close"));
  dialog.showModal();
}
document.getElementById("theme").addEventListener("click", flip);
document.getElementById("help").addEventListener("click", help);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.getElementById("keys").open) return;
  const typing = event.target.matches("input:not([type=checkbox]):not([type=range]), select, textarea");
  if (typing) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const numbered = /^[1-9]$/.test(event.key) && (Object.keys(PAGES)[Number(event.key) - 1]);
  const action = keysHere[event.key] || { l: flip, "?": help }[event.key] ||
    (pagesHere().some(([name]) => name === numbered) ? () => { location.hash = address(numbered); } : null);
  if (!action || (["Enter", " "].includes(event.key) && event.target.matches("a, button, summary, canvas"))) return;
  if (event.key.startsWith("Arrow") && event.target.matches("input[type=range]")) return;
  event.preventDefault();
  action();
});
