// One sample: frames, target, predictions, maps, points, tracklets, side by side over the runs.
"use strict";
const TARGET = [0, 200, 120], ANSWER = [255, 140, 0];
const shown = { outline: true, difference: false, maps: true, points: true, hidden: new Set() };

refseg.pages.sample = async (params) => {
  const { meta } = refseg;
  const g = Math.min(meta.groups.length - 1, Math.max(0, Number(params.get("g") || 0) || 0));
  const data = await loadGroup(g), head = data.head;
  const n = Math.min(data.size - 1, Math.max(0, Number(params.get("n") || 0) || 0));
  const clip = await refseg.load(data.clip[n]);
  const sample = clip.samples[data.id[n]];
  const filter = filterOf(params, head);
  const order = chosen(data, filter), at = order.indexOf(n);
  const goto = (index) => address("sample", params, { n: index, f: null });
  const back = address("samples", params, { n: null, f: null });
  const before = at > 0 ? goto(order[at - 1]) : null, after = at >= 0 && at + 1 < order.length ? goto(order[at + 1]) : null;
  const count = clip.frames.length;
  let frame = Math.min(count - 1, Math.max(0, Number(params.get("f") || firstFrame(sample, clip)) || 0));

  // Panels know how to draw themselves at a frame.
  const holder = h("div", { class: "panels" });
  let panels = [];
  const caption = h("span", { class: "soft", id: "frame-name" });
  const slider = h("input", { type: "range", min: 0, max: Math.max(0, count - 1), value: frame, "aria-label": "Frame",
    oninput: (event) => seek(Number(event.target.value)) });
  const series = sample.runs.map((answer, r) => ({ answer, r })).filter(({ answer }) => answer && answer.iou)
    .map(({ answer, r }) => ({ values: answer.iou, colour: runColour(head.runs[r]) }));
  const line = count > 1 && series.length ? timeline(series, count, frame, (i) => seek(i)) : null;
  function seek(next) {
    frame = Math.min(count - 1, Math.max(0, next));
    slider.value = frame;
    if (line) line.seek(frame);
    const facts = clip.frames[frame];
    caption.textContent = count ? `frame ${facts.name} (${facts.index + 1} of ${clip.length})` : "no frames";
    for (const panel of panels) panel.draw(frame);
  }
  function build() {
    panels = makePanels(clip, sample, head);
    holder.replaceChildren(...panels.map((panel) => panel.node));
    seek(frame);
  }
  let timer = 0;
  const play = h("button", { type: "button", onclick: () => toggle() }, "▶ play");
  function toggle() {
    clearInterval(timer);
    timer = timer ? 0 : setInterval(() => seek((frame + 1) % count), 160);
    play.textContent = timer ? "❚❚ pause" : "▶ play";
  }
  leave = () => clearInterval(timer);
  const buttons = {};
  const option = (name, title) => (buttons[name] = h("button", { type: "button", "aria-pressed": String(shown[name]), onclick: () => turn(name) }, title));
  function turn(name) {
    shown[name] = !shown[name];
    buttons[name].setAttribute("aria-pressed", String(shown[name]));
    build();
  }
  const runButtons = head.runs.length < 2 ? [] : head.runs.map((run) => {
    const name = meta.runs[run].name;
    const button = h("button", { type: "button", "aria-pressed": String(!shown.hidden.has(name)), onclick: () => {
      if (!shown.hidden.delete(name)) shown.hidden.add(name);
      button.setAttribute("aria-pressed", String(!shown.hidden.has(name)));
      build();
    } }, runName(run));
    return button;
  });
  page().replaceChildren(
    h("p", {}, h("a", { href: back, id: "back" }, "← list"), " · ", at >= 0 ? `${at + 1} of ${order.length}` : "", " · ",
      before ? h("a", { href: before }, "previous") : "previous", " · ", after ? h("a", { href: after, id: "next" }, "next") : "next"),
    h("h1", { class: "soft" }, data.id[n]),
    h("blockquote", { class: "expression", dir: "auto" }, sample.text),
    h("p", { class: "soft" }, Object.entries(sample.attrs).map(([key, value]) => `${key}: ${value}`).join(" · ")),
    head.note ? h("p", { class: "note" }, head.note) : "",
    count > 1 ? h("div", { class: "tools" }, play, slider, caption) : h("div", { class: "tools" }, caption),
    line || "",
    h("div", { class: "tools" }, runButtons, sample.target ? [option("outline", "target's outline"), option("difference", "difference")] : null,
      option("maps", "maps"), option("points", "points")),
    holder,
    h("h2", {}, "Scores and details"),
    h("div", { class: "runs" }, sample.runs.map((answer, r) => detailsOf(answer, r, head, data, n, (f) => {
      const place = clip.frames.findIndex((one) => one.index === f);
      if (place >= 0) seek(place);
    }))));
  build();
  keysHere = {
    ArrowLeft: () => seek(frame - 1), ArrowRight: () => seek(frame + 1), " ": () => count > 1 && toggle(),
    j: () => after && (location.hash = after), k: () => before && (location.hash = before),
    Escape: () => { location.hash = back; }, m: () => turn("maps"), p: () => turn("points"),
    t: () => buttons.outline && turn("outline"), d: () => buttons.difference && turn("difference"),
  };
};

function firstFrame(sample, clip) {
  const point = sample.runs.map((answer) => answer && answer.point).find(Boolean);
  const at = point ? clip.frames.findIndex((f) => f.index === point[0]) : -1;
  return at < 0 ? 0 : at;
}
function makePanels(clip, sample, head) {
  const { meta } = refseg, [height, width] = clip.size, panels = [];
  const shrink = Math.min(1, 640 / Math.max(height, width));
  const add = (title, paint) => {
    const canvas = h("canvas", { width: Math.max(1, Math.round(width * shrink)), height: Math.max(1, Math.round(height * shrink)) });
    const note = h("span", {});
    const node = h("figure", {}, canvas, h("figcaption", {}, title, note));
    let latest = 0;
    const draw = async (f) => {
      const mine = ++latest;
      const source = clip.frames[f] && clip.frames[f].source;
      const image = source ? await picture(`frames/${source}`) : null;
      if (mine !== latest) return;
      const context = canvas.getContext("2d");
      context.clearRect(0, 0, canvas.width, canvas.height);
      if (image) context.drawImage(image, 0, 0, canvas.width, canvas.height);
      await paint(context, f, note, () => mine === latest);
    };
    panels.push({ node, draw });
  };
  const cover = (context, layer) => context.drawImage(layer, 0, 0, context.canvas.width, context.canvas.height);
  const maskAt = (rles, f) => decodeMask(rles[f], height, width);
  const outline = (context, f) => {
    if (!shown.outline || !sample.target || !sample.target[f]) return;
    cover(context, cachedLayer(`o/${clip.key}/${sample.id}/${f}`, () => maskLayer(maskAt(sample.target, f), height, width, TARGET, 0)));
  };
  const marks = (context, answer, f) => {
    if (!shown.points || !answer) return;
    const here = clip.frames[f].index, w = context.canvas.width, t = context.canvas.height;
    for (const [index, x, y] of answer.points || []) if (index === here) mark(context, x * w, y * t, "#7fd8ff");
    if (answer.point && answer.point[0] === here) mark(context, answer.point[2] * w, answer.point[1] * t, "#ffe14d");
  };
  add("frame", async () => {});
  if (sample.target) {
    add("target", async (context, f, note) => {
      note.textContent = sample.target[f] === null ? ": not annotated here" : "";
      if (sample.target[f]) cover(context, cachedLayer(`t/${clip.key}/${sample.id}/${f}`, () => maskLayer(maskAt(sample.target, f), height, width, TARGET, 100)));
    });
  }
  sample.runs.forEach((answer, r) => {
    const run = head.runs[r], name = meta.runs[run].name;
    if (shown.hidden.has(name) || !answer) return;
    if (answer.rles) {
      add(h("span", {}, runName(run)), async (context, f, note) => {
        const iou = answer.iou ? answer.iou[f] : null;
        note.textContent = answer.rles[f] === null ? ": no mask here" : iou === null ? "" : ` · IoU ${number(iou)}`;
        const key = `${clip.key}/${sample.id}/${f}/${r}`;
        if (shown.difference && sample.target && sample.target[f] !== null) {
          cover(context, cachedLayer(`d/${key}`, () => differenceLayer(maskAt(answer.rles, f), maskAt(sample.target, f), height, width)));
        } else {
          if (answer.rles[f]) cover(context, cachedLayer(`p/${key}`, () => maskLayer(maskAt(answer.rles, f), height, width, ANSWER, 110)));
          outline(context, f);
        }
        marks(context, answer, f);
      });
    }
    if (!shown.maps) return;
    answer.maps.forEach((map) => {
      add(h("span", {}, runName(run), ` · ${map.name}`), async (context, f, note, current) => {
        const here = clip.frames[f].index;
        let row = 0;
        map.frames.forEach((index, i) => { if (Math.abs(index - here) < Math.abs(map.frames[row] - here)) row = i; });
        note.textContent = map.frames[row] === here ? "" : ` (of frame ${map.frames[row] + 1})`;
        const sprite = await picture(`maps/${map.source}`);
        if (!sprite || !current()) return;
        context.fillStyle = "#0008";
        context.fillRect(0, 0, context.canvas.width, context.canvas.height);
        context.drawImage(sprite, 0, row * map.height, map.width, map.height, 0, 0, context.canvas.width, context.canvas.height);
        outline(context, f);
        marks(context, answer, f);
      });
    });
  });
  return panels;
}

// ── numbers and words of one run's answer ──
function detailsOf(answer, r, head, data, n, jump) {
  const { meta } = refseg, run = head.runs[r];
  const title = h("h3", {}, runName(run));
  if (!answer) return h("section", { class: "box" }, title, h("p", { class: "bad" }, "missing"));
  const facts = head.measures.map((measure, m) => [measure.name, number(data.score[m][r][n], 2)]);
  if (answer.point) {
    facts.push(["point", h("button", { type: "button", onclick: () => jump(answer.point[0]) },
      `frame ${answer.point[0] + 1}, x ${answer.point[2].toFixed(3)}, y ${answer.point[1].toFixed(3)}`)]);
  }
  if (answer.no_target !== null) facts.push(["says that nothing is meant", answer.no_target ? "yes" : "no"]);
  for (const [stage, seconds] of Object.entries(answer.seconds)) facts.push([`${stage} s`, seconds.toFixed(3)]);
  if (answer.peak_mb) facts.push(["peak MiB", answer.peak_mb.toFixed(0)]);
  return h("section", { class: "box" }, title,
    answer.failure ? [h("p", { class: "bad" }, `failed: ${answer.failure.kind}: ${answer.failure.message}`),
      h("details", {}, h("summary", {}, "traceback"), h("pre", {}, answer.failure.traceback))] : null,
    h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    tracklets(answer.details, jump), bars(answer.details),
    Object.keys(answer.details).length ? h("details", {}, h("summary", {}, "everything the method says"),
      h("pre", {}, JSON.stringify(answer.details, null, 1))) : null);
}
function bar(value, top, strong) {
  return h("span", { class: "meter" }, h("i", {}, h("b", { style: { width: `${Math.max(0, Math.min(1, value / (top || 1))) * 100}%`,
    background: strong ? "var(--good)" : "var(--soft)" } })), h("span", {}, value.toFixed(3)));
}
function tracklets(details, jump) {
  const rows = details.tracklets;
  if (!Array.isArray(rows) || !rows.length || typeof rows[0] !== "object") return null;
  const top = Math.max(...rows.map((row) => row.s_trk || 0));
  return h("div", {}, h("h3", {}, `${rows.length} tracklets`), h("div", { class: "wide" }, h("table", {},
    h("tr", {}, ["frame", "s_obj", "s_trk", "kept"].map((t) => h("th", {}, t))),
    rows.map((row) => h("tr", {}, h("td", {}, h("button", { type: "button", onclick: () => jump(row.frame) }, String(row.frame + 1))),
      h("td", {}, number(row.s_obj, 3)), h("td", {}, bar(row.s_trk || 0, top, row.kept)), h("td", {}, row.kept ? "yes" : "no"))))));
}
function bars(details) {
  const scores = details.scores;
  if (!Array.isArray(scores) || !scores.every((v) => typeof v === "number")) return null;
  const kept = new Set(Array.isArray(details.chosen) ? details.chosen : []);
  return h("div", {}, h("h3", {}, "Candidates"), scores.map((value, i) => h("div", { title: `candidate ${i}` }, bar(value, Math.max(...scores), kept.has(i)))));
}
