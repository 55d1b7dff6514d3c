// Run-length masks, attention sprites and marks on canvases; SVG charts. Nothing here reads pixels
// back: pictures opened from disk count as foreign, and a browser refuses to give their pixels.
"use strict";
const refseg = { parts: new Map(), meta: null };
window.refseg = refseg;

// ── pages are built from nodes; text only ever enters as text ──
function h(tag, attrs, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attrs || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false));
  return node;
}
function s(tag, attrs, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attrs || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity));
  return node;
}
const runColour = (index) => `var(--run${index % 6})`;

// ── masks ──
function readCounts(text) {
  const out = [];
  for (let p = 0; p < text.length; ) {
    let value = 0, shift = 0, more = true;
    while (more) {
      const c = text.charCodeAt(p++) - 48;
      value |= (c & 31) << shift;
      shift += 5;
      more = (c & 32) !== 0;
      if (!more && c & 16) value |= -1 << shift;
    }
    if (out.length > 2) value += out[out.length - 2];
    out.push(value);
  }
  return out;
}
function decodeMask(text, height, width) {
  const mask = new Uint8Array(height * width);
  if (!text) return mask;
  let at = 0, on = 0;
  for (const run of readCounts(text)) {
    if (on) {
      for (let i = at; i < at + run; i++) mask[(i % height) * width + ((i / height) | 0)] = 1;
    }
    at += run;
    on ^= 1;
  }
  return mask;
}
function isEdge(mask, height, width, y, x, reach) {
  return y < reach || x < reach || y >= height - reach || x >= width - reach ||
    !mask[(y - reach) * width + x] || !mask[(y + reach) * width + x] ||
    !mask[y * width + x - reach] || !mask[y * width + x + reach];
}
function maskLayer(mask, height, width, colour, fill) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const reach = Math.max(1, Math.round(height / 240));
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (!mask[i]) continue;
      const edge = isEdge(mask, height, width, y, x, reach);
      image.data[4 * i] = colour[0];
      image.data[4 * i + 1] = colour[1];
      image.data[4 * i + 2] = colour[2];
      image.data[4 * i + 3] = edge ? 255 : fill;
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
function differenceLayer(answer, truth, height, width) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const colours = [null, [0, 114, 178], [213, 94, 0], [0, 158, 115]];  // 1 missed, 2 too much, 3 right
  for (let i = 0; i < answer.length; i++) {
    const colour = colours[2 * answer[i] + truth[i]];
    if (colour) image.data.set([...colour, 170], 4 * i);
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
const layers = new Map();
function cachedLayer(key, make) {
  let layer = layers.get(key);
  if (!layer) {
    layer = make();
    layers.set(key, layer);
    if (layers.size > 80) layers.delete(layers.keys().next().value);
  }
  return layer;
}

// ── pictures, loaded when first drawn ──
const pictures = new Map();
function picture(source) {
  let found = pictures.get(source);
  if (!found) {
    const image = new Image();
    found = new Promise((resolve) => {
      image.onload = () => resolve(image);
      image.onerror = () => resolve(null);
    });
    image.src = source;
    pictures.set(source, found);
    if (pictures.size > 300) pictures.delete(pictures.keys().next().value);
  }
  return found;
}
function mark(context, x, y, colour) {
  const size = Math.max(5, context.canvas.width / 60);
  for (const [width, ink] of [[4, "#000"], [2, colour]]) {
    context.lineWidth = width;
    context.strokeStyle = ink;
    context.beginPath();
    context.arc(x, y, size, 0, 2 * Math.PI);
    context.moveTo(x - size, y);
    context.lineTo(x + size, y);
    context.moveTo(x, y - size);
    context.lineTo(x, y + size);
    context.stroke();
  }
}

// ── charts ──
function intervalChart(rows) {
  const width = 640, left = 190, step = 24, height = rows.length * step + 26;
  const at = (value) => left + ((width - left - 20) * Math.min(100, Math.max(0, value))) / 100;
  const marks = [];
  for (let tick = 0; tick <= 100; tick += 20) {
    marks.push(s("line", { x1: at(tick), x2: at(tick), y1: 0, y2: height - 20, class: "axis" }),
      s("text", { x: at(tick), y: height - 6, "text-anchor": "middle", class: "soft" }, String(tick)));
  }
  rows.forEach((row, index) => {
    const y = 14 + index * step;
    marks.push(s("text", { x: left - 8, y: y + 4, "text-anchor": "end" },
      row.name.length > 28 ? row.name.slice(0, 13) + "…" + row.name.slice(-14) : row.name));
    if (row.low !== null) {
      marks.push(s("line", { x1: at(row.low), x2: at(row.high), y1: y, y2: y, stroke: row.colour, "stroke-width": 3, opacity: .6 }));
    }
    marks.push(s("circle", { cx: at(row.value), cy: y, r: 5, fill: row.colour },
      s("title", {}, `${row.name}: ${row.value.toFixed(1)}`)));
  });
  return s("svg", { viewBox: `0 0 ${width} ${height}`, width: "100%", style: `max-width:${width}px`, role: "img" }, marks);
}
function histogram(columns) {
  const width = 640, height = 150, bins = 20, marks = [];
  const counts = columns.map((column) => {
    const count = new Array(bins).fill(0);
    for (const value of column.values) {
      if (value !== null) count[Math.min(bins - 1, Math.max(0, Math.floor((value / 100) * bins)))]++;
    }
    return count;
  });
  const top = Math.max(1, ...counts.flat());
  const cell = (width - 40) / bins;
  counts.forEach((count, index) => count.forEach((n, bin) => {
    const tall = (n / top) * (height - 30), part = (cell - 3) / counts.length;
    marks.push(s("rect", { x: 30 + bin * cell + index * part, y: height - 20 - tall, width: part, height: tall,
      fill: columns[index].colour }, s("title", {}, `${columns[index].name}: ${n} samples in ${(bin * 100) / bins}–${((bin + 1) * 100) / bins}`)));
  }));
  for (let tick = 0; tick <= 100; tick += 20) {
    marks.push(s("text", { x: 30 + (tick / 100) * (width - 40), y: height - 5, "text-anchor": "middle", class: "soft" }, String(tick)));
  }
  marks.push(s("text", { x: 0, y: 12, class: "soft" }, String(top)));
  return s("svg", { viewBox: `0 0 ${width} ${height}`, width: "100%", style: `max-width:${width}px`, role: "img" }, marks);
}
function scatter(points, titleA, titleB) {
  const size = 420, pad = 40, at = (v) => pad + (v / 100) * (size - pad - 10), up = (v) => size - at(v);
  const marks = [s("line", { x1: at(0), y1: up(0), x2: at(100), y2: up(100), class: "axis" })];
  for (let tick = 0; tick <= 100; tick += 25) {
    marks.push(s("text", { x: at(tick), y: size - 22, "text-anchor": "middle", class: "soft" }, String(tick)),
      s("text", { x: pad - 6, y: up(tick) + 4, "text-anchor": "end", class: "soft" }, String(tick)));
  }
  marks.push(s("text", { x: size / 2, y: size - 6, "text-anchor": "middle" }, titleA),
    s("text", { x: 10, y: size / 2, "text-anchor": "middle", transform: `rotate(-90 10 ${size / 2})` }, titleB));
  for (const point of points) {
    marks.push(s("a", { href: point.href }, s("circle", { cx: at(point.a), cy: up(point.b), r: 4, fill: "var(--run0)", opacity: .55 },
      s("title", {}, `${point.name}: ${point.a.toFixed(1)} → ${point.b.toFixed(1)}`))));
  }
  return s("svg", { viewBox: `0 0 ${size} ${size}`, width: "100%", style: `max-width:${size}px`, role: "img" }, marks);
}
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
