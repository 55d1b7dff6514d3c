// Nodes; run-length masks, pictures and marks on canvases. Nothing here reads pixels back: pictures
// opened from disk count as foreign, and a browser refuses to give their pixels.
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
// Twelve colours by hand, further ones from around the circle: no two runs share one.
const runColour = (index) => (index < 12 ? `var(--run${index})` : `hsl(${(index * 137.5) % 360} 65% 50%)`);
function rgbOf(colour) {
  const name = colour.match(/^var\((.*)\)$/);
  const context = document.createElement("canvas").getContext("2d");
  context.fillStyle = name ? getComputedStyle(document.documentElement).getPropertyValue(name[1]).trim() : colour;
  return [1, 3, 5].map((at) => parseInt(context.fillStyle.slice(at, at + 2), 16));
}

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
  const colours = [null, DIFFERENCE.missed, DIFFERENCE["too much"], DIFFERENCE.right];
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
// Where a method clicked (a cross), the highest point of its map (a ring), a box that it was told (with its sides).
function mark(context, x, y, kind, zoom, sides = []) {
  const size = Math.max(5, context.canvas.width / 70) / zoom;
  context.beginPath();
  if (kind === "box") {
    context.rect(x, y, ...sides);
  } else if (kind === "peak") {
    context.arc(x, y, size * 1.4, 0, 2 * Math.PI);
  } else {
    for (const [dx, dy] of [[size, 0], [0, size]]) {
      context.moveTo(x - dx, y - dy);
      context.lineTo(x + dx, y + dy);
    }
  }
  for (const [width, ink] of [[5, "#000"], [2.5, MARKS[kind]]]) {
    context.lineWidth = width / zoom;
    context.strokeStyle = ink;
    context.stroke();
  }
}
const MARKS = { click: "#7fd8ff", peak: "#ffe14d", box: "#7fd8ff" };
