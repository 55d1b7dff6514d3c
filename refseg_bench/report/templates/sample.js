// One sample: frames, target and answers side by side; below, how each run came to its answer.
"use strict";
const TARGET = [0, 200, 120];
const COLOURS = { orange: [255, 140, 0], magenta: [255, 0, 170], cyan: [0, 220, 255], yellow: [255, 235, 0], run: null };
const DIFFERENCE = { missed: [0, 114, 178], "too much": [213, 94, 0], right: [0, 158, 115] };
const TOGGLES = { outline: "target's outline", difference: "difference", maps: "maps", points: "points and boxes" };
// What of a sample's address belongs to one picture of it, and is left behind with the sample.
const OWN = { f: null, solo: null, zoom: null };

refseg.pages.sample = async (params) => {
  const { meta } = refseg;
  const g = Math.min(meta.groups.length - 1, Math.max(0, Number(params.get("g") || 0) || 0));
  const data = await loadGroup(g), head = data.head;
  const n = Math.min(data.size - 1, Math.max(0, Number(params.get("n") || 0) || 0));
  const clip = await refseg.load(data.clip[n]);
  const sample = clip.samples[data.id[n]], count = clip.frames.length;
  const order = chosen(data, filterOf(params, head)), at = order.indexOf(n);
  seen = { g, n };
  const goto = (index) => address("sample", params, { ...OWN, n: index });
  const back = () => address("samples", params, { ...OWN, n: null });
  const before = at > 0 ? order[at - 1] : null, after = at >= 0 && at + 1 < order.length ? order[at + 1] : null;

  // ── what the address says of this view ──
  const listed = (name) => new Set((params.get(name) || "").split(",").filter(Boolean));
  const mapped = sample.runs.findIndex((answer) => answer && answer.maps.length);
  const telling = sample.runs.map((answer, r) => r).filter((r) => r === mapped || (sample.runs[r] && sample.runs[r].failure));
  const state = {
    frame: Math.min(count - 1, Math.max(0, Number(params.get("f") ?? firstFrame(sample, clip)) || 0)),
    flipped: listed("flip"), hidden: listed("hide"), solo: params.get("solo"),
    open: params.has("open") ? listed("open") : new Set(telling.map(String)),
    colour: params.get("c") in COLOURS ? params.get("c") : "orange",
    zoom: (params.get("zoom") || "1,0.5,0.5").split(",").map(Number),
  };
  if (state.zoom.length !== 3 || state.zoom.some((v) => !isFinite(v))) state.zoom = [1, 0.5, 0.5];
  const shown = (name) => state.flipped.has(name) === (name === "difference");
  function keep(changes) {
    params = new URLSearchParams(address("sample", params, changes).split("?")[1] || "");
    replaceState("sample", params);
  }

  // ── frames ──
  const caption = h("span", { class: "soft", id: "frame-name" });
  const slider = h("input", { type: "range", min: 0, max: Math.max(0, count - 1), value: state.frame, "aria-label": "Frame",
    oninput: (event) => seek(Number(event.target.value)) });
  const series = sample.runs.map((answer, r) => ({ answer, r })).filter(({ answer }) => answer && answer.iou)
    .map(({ answer, r }) => ({ values: answer.iou, colour: runColour(head.runs[r]) }));
  const line = count > 1 && series.length ? timeline(series, count, state.frame, (i) => seek(i)) : null;
  const view = { clip, sample, head, state, shown };
  const panels = makePanels(view);
  let saying = 0;
  function seek(next) {
    state.frame = Math.min(count - 1, Math.max(0, next));
    slider.value = state.frame;
    if (line) line.seek(state.frame);
    const facts = clip.frames[state.frame];
    caption.textContent = count ? `frame ${facts.name} (${facts.index + 1} of ${clip.length})` : "no frames";
    draw();
    clearTimeout(saying);  // browsers refuse an address that changes with every frame played
    if (!timer) saying = setTimeout(() => keep({ f: state.frame }), 150);
  }
  function draw() {
    for (const panel of panels) {
      panel.node.classList.toggle("alone", panel.name === state.solo);
      panel.node.hidden = (panel.map && !shown("maps")) || (panel.run !== undefined && state.hidden.has(String(panel.run)));
      if (panel.node.offsetParent || panel.name === state.solo) panel.draw();
    }
  }
  const toFrame = (index) => {
    const place = clip.frames.findIndex((one) => one.index === index);
    if (place >= 0) seek(place);
  };
  let timer = 0;
  const play = h("button", { type: "button", onclick: () => toggle() }, "▶ play");
  function toggle() {
    clearInterval(timer);
    timer = timer ? 0 : setInterval(() => seek((state.frame + 1) % count), 160);
    play.textContent = timer ? "❚❚ pause" : "▶ play";
    if (!timer) keep({ f: state.frame });
  }
  leave = () => { clearInterval(timer); clearTimeout(saying); };

  // ── what is drawn ──
  const buttons = {};
  let legend = legendOf(sample, shown);
  function turn(name) {
    if (!buttons[name]) return;
    if (!state.flipped.delete(name)) state.flipped.add(name);
    buttons[name].setAttribute("aria-pressed", String(shown(name)));
    legend.replaceWith(legend = legendOf(sample, shown));
    keep({ flip: [...state.flipped].join() });
    draw();
  }
  const toggles = Object.entries(TOGGLES).filter(([name]) => sample.target || !["outline", "difference"].includes(name)).map(([name, title]) =>
    (buttons[name] = h("button", { type: "button", "aria-pressed": String(shown(name)), onclick: () => turn(name) }, title)));
  const runButtons = head.runs.length < 2 ? [] : head.runs.map((run, r) => {
    const button = h("button", { type: "button", "aria-pressed": String(!state.hidden.has(String(r))), onclick: () => {
      if (!state.hidden.delete(String(r))) state.hidden.add(String(r));
      button.setAttribute("aria-pressed", String(!state.hidden.has(String(r))));
      keep({ hide: [...state.hidden].join() });
      draw();
    } }, runName(run));
    return button;
  });
  const colours = h("select", { name: "c", "aria-label": "Colour of the masks", onchange: (event) => paint(event.target.value) },
    options(Object.keys(COLOURS).map((name) => [name, name === "run" ? "masks in the runs' colours" : `masks in ${name}`]), state.colour));
  function paint(name) {
    colours.value = state.colour = name;
    keep({ c: name });
    draw();
  }
  const all = h("button", { type: "button", id: "all", onclick: () => alone(null) }, "← all pictures");
  function alone(name) {
    state.solo = state.solo === name ? null : name;
    keep({ solo: state.solo });
    arrange();
  }
  function zoom(factor, dx = 0, dy = 0) {
    const z = Math.min(16, Math.max(1, factor ? state.zoom[0] * factor : 1)), edge = 0.5 / z;
    const inside = (v) => Math.round(Math.min(1 - edge, Math.max(edge, v)) * 1e4) / 1e4;
    state.zoom = [z, inside(state.zoom[1] + dx), inside(state.zoom[2] + dy)];
    keep({ zoom: z === 1 ? null : state.zoom.join() });
    arrange();
  }
  function arrange() {
    page().classList.toggle("solo", panels.some((panel) => panel.name === state.solo));
    page().classList.toggle("zoomed", state.zoom[0] > 1);
    all.hidden = !page().classList.contains("solo");
    draw();
  }
  Object.assign(view, { alone, zoom });
  const quit = leave;
  leave = () => { quit(); page().classList.remove("solo", "zoomed"); };

  const stories = sample.runs.map((answer, r) => h("details", { class: "box", open: state.open.has(String(r)), ontoggle: (event) => {
    if (event.target.open === state.open.has(String(r))) return;
    if (!state.open.delete(String(r))) state.open.add(String(r));
    keep({ open: [...state.open].join() || "," });
    draw();
  } }, h("summary", {}, runName(head.runs[r]), h("span", { class: answer && !answer.failure ? "soft" : "bad" }, summaryOf(answer, r, head, data, n))),
  storyOf(answer, r, { head, data, n, clip, sample, panels, toFrame })));
  page().replaceChildren(
    h("p", {}, h("a", { href: back(), id: "back", onclick: (event) => { event.preventDefault(); location.hash = back(); } }, "← list"),
      " · ", at >= 0 ? `${at + 1} of ${order.length}` : "", " · ",
      before !== null ? h("a", { href: goto(before) }, "previous") : "previous", " · ", after !== null ? h("a", { href: goto(after), id: "next" }, "next") : "next"),
    h("h1", { class: "soft" }, data.id[n]),
    h("blockquote", { class: "expression", dir: "auto" }, sample.text),
    h("p", { class: "soft" }, Object.entries(sample.attrs).map(([key, value]) => `${key}: ${value}`).join(" · ")),
    head.note ? h("p", { class: "note" }, head.note) : "",
    count > 1 ? h("div", { class: "tools" }, play, slider, caption) : h("div", { class: "tools" }, caption),
    line || "",
    h("div", { class: "tools" }, runButtons), h("div", { class: "tools" }, toggles, colours,
      h("button", { type: "button", title: "Larger (+)", onclick: () => zoom(1.5) }, "+"),
      h("button", { type: "button", title: "Smaller (−)", onclick: () => zoom(1 / 1.5) }, "−"), all),
    legend,
    h("div", { class: "panels" }, panels.filter((panel) => !panel.map).map((panel) => panel.node)),
    h("h2", {}, "How each run came to its answer"), ...stories);
  arrange();
  seek(state.frame);
  const cycle = () => {
    const names = Object.keys(COLOURS);
    paint(names[(names.indexOf(state.colour) + 1) % names.length]);
  };
  const move = (to) => { if (to !== null) location.hash = goto(to); };
  keysHere = {
    ArrowLeft: () => seek(state.frame - 1), ArrowRight: () => seek(state.frame + 1), " ": () => count > 1 && toggle(),
    j: () => move(after), k: () => move(before), c: cycle, m: () => turn("maps"), p: () => turn("points"),
    t: () => turn("outline"), d: () => turn("difference"), "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5), 0: () => zoom(0),
    Escape: () => (page().classList.contains("solo") ? alone(state.solo) : (location.hash = back())),
  };
};

function firstFrame(sample, clip) {
  const point = sample.runs.map((answer) => answer && (answer.point || answer.boxes[0])).find(Boolean);
  const at = point ? clip.frames.findIndex((f) => f.index === point[0]) : -1;
  return at < 0 ? 0 : at;
}
function legendOf(sample, shown) {
  const item = (title, draw) => {
    const canvas = h("canvas", { width: 32, height: 32 });
    draw(canvas.getContext("2d"));
    return h("span", {}, canvas, title);
  };
  const filled = (colour) => (context) => { context.fillStyle = `rgb(${colour})`; context.fillRect(4, 4, 24, 24); };
  const ring = (context) => { context.strokeStyle = `rgb(${TARGET})`; context.lineWidth = 5; context.strokeRect(5, 5, 22, 22); };
  const point = (kind) => (context) => mark(context, 16, 16, kind, 0.55);
  const answers = sample.runs.filter(Boolean);
  return h("p", { class: "legend" },
    sample.target && shown("outline") ? item("target", ring) : null,
    sample.target && shown("difference") ? Object.entries(DIFFERENCE).map(([name, colour]) => item(name, filled(colour))) : null,
    shown("points") && answers.some((answer) => answer.points.length) ? item("point that the segmenter was clicked at", point("click")) : null,
    shown("points") && answers.some((answer) => answer.point) ? item("highest point of the map", point("peak")) : null,
    shown("points") && answers.some((answer) => answer.boxes.length)
      ? item("box that the segmenter was given", (context) => mark(context, 5, 9, "box", 0.55, [22, 14])) : null);
}

// ── pictures: each knows how to draw itself at the frame, the zoom and the colours of the view ──
function makePanels(view) {
  const { clip, sample, head, state, shown } = view, [height, width] = clip.size, panels = [];
  const add = (name, title, paint, more = {}) => {
    const canvas = h("canvas", { tabindex: 0, role: "button", "aria-label": `${name}: alone or among the others` });
    const note = h("span", {}), node = h("figure", {}, canvas, h("figcaption", {}, title, note));
    let latest = 0, from = null, moved = false;
    canvas.addEventListener("pointerdown", (event) => { from = [event.clientX, event.clientY]; moved = false; canvas.setPointerCapture(event.pointerId); });
    canvas.addEventListener("pointermove", (event) => {
      if (!from || state.zoom[0] === 1) return;
      const box = canvas.getBoundingClientRect(), dx = from[0] - event.clientX, dy = from[1] - event.clientY;
      if (!moved && Math.hypot(dx, dy) < 4) return;
      moved = true;
      from = [event.clientX, event.clientY];
      view.zoom(1, dx / box.width / state.zoom[0], dy / box.height / state.zoom[0]);
    });
    canvas.addEventListener("pointerup", () => { from = null; });
    canvas.addEventListener("click", () => { if (!moved) view.alone(name); });
    canvas.addEventListener("keydown", (event) => { if (event.key === "Enter") view.alone(name); });
    const draw = async () => {
      const mine = ++latest, f = state.frame, source = clip.frames[f] && clip.frames[f].source;
      const image = source ? await picture(`frames/${source}`) : null;
      if (mine !== latest) return;
      const shrink = Math.min(1, (state.solo === name ? 1280 : 640) / Math.max(height, width)) * (Math.max(height, width) < 320 ? 2 : 1);
      canvas.width = Math.max(1, Math.round(width * shrink));
      canvas.height = Math.max(1, Math.round(height * shrink));
      const context = canvas.getContext("2d"), [z, x, y] = state.zoom;
      context.setTransform(z, 0, 0, z, (0.5 - z * x) * canvas.width, (0.5 - z * y) * canvas.height);
      if (image) context.drawImage(image, 0, 0, canvas.width, canvas.height);
      if (clip.frames[f]) await paint(context, f, note, () => mine === latest);
    };
    panels.push({ name, node, draw, ...more });
  };
  const cover = (context, layer) => context.drawImage(layer, 0, 0, context.canvas.width, context.canvas.height);
  const maskAt = (rles, f) => decodeMask(rles[f], height, width);
  const outline = (context, f) => {
    if (!shown("outline") || !sample.target || !sample.target[f]) return;
    cover(context, cachedLayer(`o/${clip.key}/${sample.id}/${f}`, () => maskLayer(maskAt(sample.target, f), height, width, TARGET, 0)));
  };
  const marks = (context, answer, f) => {
    if (!shown("points")) return;
    const here = clip.frames[f].index, { width: across, height: down } = context.canvas;
    const put = (x, y, kind, ...sides) => mark(context, x * across, y * down, kind, state.zoom[0], sides);
    for (const [index, x0, y0, x1, y1] of answer.boxes) if (index === here) put(x0, y0, "box", (x1 - x0) * across, (y1 - y0) * down);
    for (const [index, x, y] of answer.points) if (index === here) put(x, y, "click");
    if (answer.point && answer.point[0] === here) put(answer.point[2], answer.point[1], "peak");
  };
  add("frame", "frame", async () => {});
  if (sample.target) {
    add("target", "target", async (context, f, note) => {
      note.textContent = sample.target[f] === null ? ": not annotated here" : "";
      if (sample.target[f]) cover(context, cachedLayer(`t/${clip.key}/${sample.id}/${f}`, () => maskLayer(maskAt(sample.target, f), height, width, TARGET, 100)));
    });
  }
  sample.runs.forEach((answer, r) => {
    if (!answer) return;
    const run = head.runs[r];
    const mask = async (context, f, note) => {
      const iou = answer.iou ? answer.iou[f] : null, colour = COLOURS[state.colour] || rgbOf(runColour(run));
      note.textContent = answer.rles[f] === null ? ": no mask here" : iou === null ? "" : ` · IoU ${number(iou)}`;
      const key = `${clip.key}/${sample.id}/${f}/${r}`;
      if (shown("difference") && sample.target && sample.target[f] !== null) {
        cover(context, cachedLayer(`d/${key}`, () => differenceLayer(maskAt(answer.rles, f), maskAt(sample.target, f), height, width)));
      } else {
        if (answer.rles[f]) cover(context, cachedLayer(`p/${key}/${colour}`, () => maskLayer(maskAt(answer.rles, f), height, width, colour, 110)));
        outline(context, f);
      }
      marks(context, answer, f);
    };
    if (answer.rles) add(`run ${r}`, runName(run), mask, { run: r });
    answer.maps.forEach((map) => {
      add(`run ${r} ${map.name}`, map.name, async (context, f, note, current) => {
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
      }, { run: r, map: true });
    });
    if (answer.maps.length && answer.points.length) add(`run ${r} points`, "points", async (context, f) => marks(context, answer, f), { run: r, map: true });
    if (answer.maps.length && answer.rles) add(`run ${r} mask`, "mask", mask, { run: r, map: true });
  });
  return panels;
}

// ── words and numbers of one run's answer ──
function summaryOf(answer, r, head, data, n) {
  if (!answer) return " · missing";
  if (answer.failure) return " · failed";
  return head.measures.map((measure, m) => ` · ${measure.name.split(",")[0]} ${number(data.score[m][r][n])}`).join("") +
    (answer.no_target ? " · says that nothing is meant" : "");
}
function storyOf(answer, r, { head, data, n, clip, sample, panels, toFrame }) {
  if (!answer) return h("p", { class: "bad" }, "missing");
  const { meta } = refseg, { details } = answer;
  const facts = head.measures.map((measure, m) => [measure.name, number(data.score[m][r][n], 2)]);
  if (answer.point) {
    facts.push(["highest point", h("button", { type: "button", onclick: () => toFrame(answer.point[0]) },
      `frame ${answer.point[0] + 1}, x ${answer.point[2].toFixed(3)}, y ${answer.point[1].toFixed(3)}`)]);
  }
  if (answer.no_target !== null) facts.push(["says that nothing is meant", answer.no_target ? "yes" : "no"]);
  for (const [stage, seconds] of Object.entries(answer.seconds)) facts.push([`${stage} s`, seconds.toFixed(3)]);
  for (const [name, value] of Object.entries(details.cost || {})) {
    const title = meta.costs[name === "seconds" ? "reply_seconds" : name];
    if (title && typeof value === "number") facts.push([title, amount(value)]);
  }
  if (answer.peak_mb) facts.push(["peak MiB", answer.peak_mb.toFixed(0)]);
  // The stages in the method's order; maps of the video as a row of their own.
  const maps = panels.filter((panel) => panel.map && panel.run === r), video = (panel) => panel.name.endsWith("(video)");
  const row = (some) => (some.length ? h("div", { class: "panels" }, some.map((panel) => panel.node)) : null);
  const path = meta.runs[head.runs[r]].path;
  return [
    answer.failure ? [h("p", { class: "bad" }, `failed: ${answer.failure.kind}: ${answer.failure.message}`),
      h("details", {}, h("summary", {}, "traceback"), h("pre", {}, answer.failure.traceback))] : null,
    row(maps.filter((panel) => !video(panel))), row(maps.filter(video)),
    h("div", { class: "two" }, h("section", {}, conversation(details), tokens(details), tracklets(details, clip.length, toFrame), candidates(details), verdict(details)),
      h("section", {}, h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])))),
    dialogue(answer),
    Object.keys(details).length ? h("details", {}, h("summary", {}, "everything the method says"), h("pre", {}, JSON.stringify(details, null, 1))) : null,
    answer.failure ? null : h("p", { class: "soft" }, "as a video: ", h("code", { class: "line" }, `refseg report ${quoted(path)} --video ${quoted(sample.id)} -o sample.mp4`))];
}
const words = (value) => (Array.isArray(value) ? value.filter((one) => typeof one === "string").slice(0, 500) : []);
function conversation(details) {
  const prompts = words(details.prompts), answers = words(details.answers), alike = new Map();
  if (!prompts.length && !answers.length) return null;
  answers.forEach((answer, i) => alike.set(answer, [...(alike.get(answer) || []), i ? `frame ${((details.frames || [])[i - 1] ?? i - 1) + 1}` : "video"]));
  return [h("h3", {}, "Prompts and answers"),
    prompts.slice(0, 1).map((text) => h("p", { class: "said" }, text)),
    [...alike].map(([answer, where]) => h("p", { class: "said" }, h("b", {}, `“${answer}”`),
      h("span", { class: "soft" }, ` ${where.length > 4 ? `${where.slice(0, 3).join(", ")} and ${where.length - 3} more` : where.join(", ")}`))),
    prompts.slice(1).map((text) => h("p", { class: "said" }, text)),
    typeof details.object === "string" ? h("p", {}, "object: ", h("b", {}, details.object)) : null];
}
// What a chat model was asked and said, with the pictures as it was shown them, smaller; open where it broke.
function dialogue({ conversation: turns, failure }) {
  if (!turns.length) return null;
  const shown = ({ source, size }) => {
    const pixels = size ? ` of ${size[1]} × ${size[0]}` : "";
    if (source === null) return h("span", { class: "soft" }, `[a picture${pixels} that was not kept]`);
    const enlarge = (event) => event.target.classList.toggle("large");
    return h("img", { src: `sent/${source}`, loading: "lazy", alt: `picture${pixels}`, title: `sent in pixels${pixels}: larger`, tabindex: 0, role: "button",
      onclick: enlarge, onkeydown: (event) => { if (event.key === "Enter") enlarge(event); } });
  };
  const message = ({ role, parts }) => {
    const pictures = parts.filter((part) => typeof part !== "string");
    return [h("p", { class: "soft" }, role), pictures.length ? h("div", { class: "sent" }, pictures.map(shown)) : null,
      parts.filter((part) => typeof part === "string").map((text) => h("p", { class: "said", dir: "auto" }, text))];
  };
  const calls = turns.reduce((sum, one) => sum + (one.left_out || 1), 0);
  const turn = ({ step, asked, reply, finish, error, left_out }, i) => {
    // A second try repeats the reply that it is about.
    const repeated = ({ role, parts }) => i && role === "assistant" && parts.join("") === turns[i - 1].reply;
    return h("li", {}, h("h4", {}, step || (left_out ? `${left_out} more calls are in the run folder only` : "")), asked.filter((one) => !repeated(one)).map(message),
      reply === undefined ? null : [h("p", { class: "soft" }, finish === "length" ? "reply, cut at max_tokens" : "reply"), h("p", { class: "said reply", dir: "auto" }, reply)],
      error === undefined ? null : h("p", { class: "bad" }, error));
  };
  return h("details", { class: "dialogue", open: Boolean(failure) }, h("summary", {}, `conversation of ${calls} ${calls > 1 ? "calls" : "call"}`),
    h("ol", {}, turns.map(turn)), failure ? h("p", { class: "bad" }, `it broke here: ${failure.message.split("\n")[0]}`) : null);
}
function verdict(details) {
  const said = details.verdict, scores = Array.isArray(details.candidates) ? details.candidates : [];
  if (said === null || typeof said !== "object" || !Object.keys(said).length) return null;
  return [h("h3", {}, "Verdict"), typeof details.concept === "string" ? h("p", {}, "looked for: ", h("b", {}, details.concept)) : null,
    wide("", h("tr", {}, ["candidate", "score", "is meant"].map((title) => h("th", {}, title))),
      Object.entries(said).slice(0, 200).map(([id, word]) => h("tr", {}, h("td", {}, id),
        h("td", {}, typeof scores[id - 1] === "number" ? number(scores[id - 1], 3) : "–"), h("td", {}, (typeof word === "string" ? word : JSON.stringify(word)).slice(0, 40)))))];
}
function tokens(details) {
  const pieces = words(details.tokens), has = (name, i) => Array.isArray(details[name]) && details[name].includes(i);
  if (!pieces.length) return null;
  return [h("h3", {}, "Tokens"), h("p", {}, pieces.map((piece, i) =>
    h("span", { class: `token ${has("sinks", i) ? "sink" : has("kept", i) ? "" : "off"}` }, piece))),
  h("p", { class: "soft" }, "shaded: their maps are averaged; struck out: attention sinks")];
}
function tracklets(details, length, jump) {
  const rows = Array.isArray(details.tracklets) ? details.tracklets.slice(0, 500) : [];
  if (!rows.length || rows.some((row) => row === null || typeof row !== "object" || typeof row.frame !== "number")) return null;
  const value = (x) => (typeof x === "number" ? x : 0), top = Math.max(...rows.map((row) => value(row.s_trk)));
  return [h("h3", {}, `${rows.length} tracklet${rows.length > 1 ? "s" : ""}`),
    rows.length > 1 ? trackletChart(rows.map((row) => ({ ...row, s_trk: value(row.s_trk) })), length, jump) : null,
    wide("", h("tr", {}, ["frame", "s_obj", "s_trk", "kept"].map((t) => h("th", {}, t))),
      rows.map((row) => h("tr", {}, h("td", {}, h("button", { type: "button", onclick: () => jump(row.frame) }, String(row.frame + 1))),
        h("td", {}, number(value(row.s_obj), 3)), h("td", {}, bar(value(row.s_trk), top, row.kept ? "var(--good)" : "var(--soft)")),
        h("td", {}, row.kept ? "yes" : "no"))))];
}
function candidates(details) {
  const scores = Array.isArray(details.scores) ? details.scores.slice(0, 500) : [];
  if (!scores.length || !scores.every((v) => typeof v === "number")) return null;
  const kept = new Set(Array.isArray(details.chosen) ? details.chosen : []), top = Math.max(...scores);
  return [h("h3", {}, "Candidates"), scores.map((value, i) => h("div", { title: `candidate ${i}` }, bar(value, top, kept.has(i) ? "var(--good)" : "var(--soft)")))];
}
