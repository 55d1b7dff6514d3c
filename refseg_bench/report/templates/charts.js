// SVG charts: intervals, histograms, scatter, curves over frames, sweeps. As wide as the page allows,
// so that their text stays readable on a phone.
"use strict";
const chartWidth = (most) => Math.max(280, Math.min(most, document.getElementById("page").clientWidth - 24));
function chart(width, height, label, marks) {
  return s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label }, marks);
}
function shortened(text, most) {
  return text.length <= most ? text : text.slice(0, most / 2 - 1) + "…" + text.slice(-most / 2);
}

function intervalChart(rows) {
  const width = chartWidth(640), left = Math.min(190, width * 0.36), step = 24, height = rows.length * step + 26;
  const at = (value) => left + ((width - left - 20) * Math.min(100, Math.max(0, value))) / 100;
  const marks = [];
  for (let tick = 0; tick <= 100; tick += 20) {
    marks.push(s("line", { x1: at(tick), x2: at(tick), y1: 0, y2: height - 20, class: "axis" }),
      s("text", { x: at(tick), y: height - 6, "text-anchor": "middle", class: "soft" }, String(tick)));
  }
  rows.forEach((row, index) => {
    const y = 14 + index * step;
    marks.push(s("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, shortened(row.name, Math.floor(left / 7)),
      s("title", {}, row.name)));
    if (row.low !== null) {
      marks.push(s("line", { x1: at(row.low), x2: at(row.high), y1: y, y2: y, stroke: row.colour, "stroke-width": 3, opacity: 0.6 }));
    }
    marks.push(s("circle", { cx: at(row.value), cy: y, r: 5, fill: row.colour }, s("title", {}, `${row.name}: ${number(row.value)}`)));
  });
  return chart(width, height, "Values with their intervals", marks);
}

// One strip for each run, all of one height scale: beside each other the bars of many runs can't be read.
function histograms(columns) {
  const width = chartWidth(640), bins = 20, tall = 46, strip = tall + 20, cell = width / bins, marks = [];
  const counts = columns.map((column) => {
    const count = new Array(bins).fill(0);
    for (const value of column.values) {
      if (value !== null) count[Math.min(bins - 1, Math.max(0, Math.floor((value / 100) * bins)))]++;
    }
    return count;
  });
  const top = Math.max(1, ...counts.flat());
  counts.forEach((count, row) => {
    const base = row * strip + strip - 2, column = columns[row];
    marks.push(s("text", { x: 0, y: base - tall - 4 }, column.name),
      s("line", { x1: 0, x2: width, y1: base, y2: base, class: "axis" }));
    count.forEach((n, bin) => {
      const high = (n / top) * tall, from = (bin * 100) / bins;
      marks.push(s("rect", { x: bin * cell + 1, y: base - high, width: cell - 2, height: high, fill: column.colour },
        s("title", {}, `${column.name}: ${n} samples in ${from}–${from + 100 / bins}`)));
    });
  });
  const height = counts.length * strip + 18;
  for (let tick = 0; tick <= 100; tick += 20) {
    const anchor = tick === 0 ? "start" : tick === 100 ? "end" : "middle";
    marks.push(s("text", { x: (tick / 100) * width, y: height - 4, "text-anchor": anchor, class: "soft" }, String(tick)));
  }
  marks.push(s("text", { x: width, y: 14, "text-anchor": "end", class: "soft" }, `highest bar: ${top}`));
  return chart(width, height, "Samples by score", marks);
}

function scatter(points, titleA, titleB) {
  const size = chartWidth(420), pad = 40, at = (v) => pad + (v / 100) * (size - pad - 10), up = (v) => size - at(v);
  const marks = [s("line", { x1: at(0), y1: up(0), x2: at(100), y2: up(100), class: "axis" })];
  for (let tick = 0; tick <= 100; tick += 25) {
    marks.push(s("text", { x: at(tick), y: size - 22, "text-anchor": "middle", class: "soft" }, String(tick)),
      s("text", { x: pad - 6, y: up(tick) + 4, "text-anchor": "end", class: "soft" }, String(tick)));
  }
  marks.push(s("text", { x: size / 2, y: size - 6, "text-anchor": "middle" }, titleA),
    s("text", { x: 10, y: size / 2, "text-anchor": "middle", transform: `rotate(-90 10 ${size / 2})` }, titleB));
  for (const point of points) {
    marks.push(s("a", { href: point.href }, s("circle", { cx: at(point.a), cy: up(point.b), r: 4, fill: "var(--run0)", opacity: 0.55 },
      s("title", {}, `${point.name}: ${number(point.a)} → ${number(point.b)}`))));
  }
  return chart(size, size, "Every sample in both runs", marks);
}

// A line for each run over the frames shown; a click goes to the frame.
function timeline(series, count, current, onpick) {
  const width = 600, height = 90, x = (i) => (count < 2 ? width / 2 : 6 + (i * (width - 12)) / (count - 1));
  const y = (v) => height - 8 - (v / 100) * (height - 16), marks = [];
  for (const tick of [0, 50, 100]) marks.push(s("line", { x1: 0, x2: width, y1: y(tick), y2: y(tick), class: "axis" }));
  for (const one of series) {
    const points = one.values.map((v, i) => (v === null ? null : `${x(i)},${y(v)}`)).filter(Boolean);
    marks.push(s("polyline", { points: points.join(" "), fill: "none", stroke: one.colour, "stroke-width": 2 }));
  }
  const cursor = s("line", { x1: x(current), x2: x(current), y1: 0, y2: height, stroke: "var(--ink)", "stroke-dasharray": "4 3" });
  marks.push(cursor);
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, class: "stretch", preserveAspectRatio: "none", role: "img",
    "aria-label": "Intersection over union per frame",
    onclick: (event) => {
      const box = svg.getBoundingClientRect();
      onpick(Math.round(((event.clientX - box.left) / box.width) * (count - 1)));
    } }, marks);
  svg.seek = (i) => { cursor.setAttribute("x1", x(i)); cursor.setAttribute("x2", x(i)); };
  return svg;
}

// Tracklets by the frame they begin in and their score; those kept are filled.
function trackletChart(rows, length, jump) {
  const width = chartWidth(420), height = 120, pad = 30, top = Math.max(...rows.map((row) => row.s_trk || 0), 1e-9);
  const x = (frame) => pad + (frame / Math.max(1, length - 1)) * (width - pad - 12);
  const y = (score) => height - 22 - (Math.max(0, score) / top) * (height - 36);
  const marks = [0, top].map((tick) => [
    s("line", { x1: pad, x2: width, y1: y(tick), y2: y(tick), class: "axis" }),
    s("text", { x: pad - 5, y: y(tick) + 4, "text-anchor": "end", class: "soft" }, tick.toFixed(tick ? 2 : 0))]);
  for (const frame of [0, length - 1]) {
    marks.push(s("text", { x: x(frame), y: height - 5, "text-anchor": frame ? "end" : "start", class: "soft" }, `frame ${frame + 1}`));
  }
  for (const row of rows) {
    marks.push(s("circle", { cx: x(row.frame), cy: y(row.s_trk || 0), r: 5, class: row.kept ? "kept" : "dropped",
      onclick: () => jump(row.frame) }, s("title", {}, `frame ${row.frame + 1}: s_trk ${(row.s_trk || 0).toFixed(3)}${row.kept ? ", kept" : ""}`)));
  }
  return chart(width, height, "Tracklets by first frame and score", marks.flat());
}

// A sweep over one option of numbers or words: a point for each run.
function sweepLine(points, values, key) {
  const width = chartWidth(640), height = 260, left = 44, right = 20, bottom = 44;
  const ends = points.flatMap((p) => [p.value, p.low, p.high]).filter((v) => v !== null);
  const low = Math.max(0, Math.floor((Math.min(...ends) - 2) / 10) * 10), high = Math.ceil((Math.max(...ends) + 2) / 10) * 10;
  const x = (i) => (values.length < 2 ? (left + width - right) / 2 : left + 24 + (i * (width - left - right - 48)) / (values.length - 1));
  const y = (v) => height - bottom - ((v - low) / (high - low)) * (height - bottom - 10);
  const marks = [];
  for (let tick = low; tick <= high; tick += 10) {
    marks.push(s("line", { x1: left, x2: width - right, y1: y(tick), y2: y(tick), class: "axis" }),
      s("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end", class: "soft" }, String(tick)));
  }
  values.forEach((value, i) => marks.push(s("text", { x: x(i), y: height - bottom + 16, "text-anchor": "middle" }, shortened(value, 16))));
  marks.push(s("text", { x: width / 2, y: height - 6, "text-anchor": "middle", class: "soft" }, key));
  for (const p of points) {
    if (p.value === null) continue;
    const at = x(values.indexOf(p.at));
    if (p.low !== null) marks.push(s("line", { x1: at, x2: at, y1: y(p.low), y2: y(p.high), stroke: "var(--run0)", "stroke-width": 3, opacity: 0.5 }));
    marks.push(s("a", { href: p.href }, s("circle", { cx: at, cy: y(p.value), r: 5, fill: "var(--run0)" }, s("title", {}, `${p.name}: ${number(p.value)}`))));
  }
  return chart(width, height, `The metric over ${key}`, marks);
}
