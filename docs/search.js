// Search of the built pages: `searchIndex` is written by tools/site.py.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const found = document.getElementById("mkdocs-search-results");
  const query = document.getElementById("mkdocs-search-query");
  if (!found || !query) return;
  const pages = new Map(searchIndex.docs.map((page) => [page.location, page]));
  const index = lunr(function () {
    this.ref("location");
    this.field("title", { boost: 5 });
    this.field("text");
    searchIndex.docs.forEach((page) => this.add(page));
  });
  const add = (parent, tag, text) => {
    const node = parent.appendChild(document.createElement(tag));
    node.textContent = text;
    return node;
  };
  const show = () => {
    found.replaceChildren();
    const words = query.value.split(/[^\p{L}\p{N}_]+/u).filter(Boolean);
    const hits = words.length ? index.search(words.map((word) => `+${word}`).join(" ")) : [];
    for (const hit of hits.slice(0, 30)) {
      const page = pages.get(hit.ref), article = add(found, "article", "");
      add(add(article, "h3", ""), "a", page.title).href = page.location;
      add(article, "p", page.text.slice(0, 200));
    }
    if (words.length && !hits.length) add(found, "p", "Nothing found.");
  };
  query.addEventListener("input", show);
  query.value = new URLSearchParams(location.search).get("q") || "";
  show();
});
