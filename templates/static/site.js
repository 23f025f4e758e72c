// Sorting, filtering, shareable views and copy buttons. Every page works without this file.
"use strict";

const $ = (selector, within = document) => within.querySelector(selector);
const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
const state = new URLSearchParams(location.search);

function remember(key, value) {
  if (value) state.set(key, value); else state.delete(key);
  const query = state.toString();
  try { history.replaceState(null, "", (query ? "?" + query : location.pathname) + location.hash); } catch { /* file:// */ }
}

// Rows are sorted inside their tbody only: numbers of two base models or protocols are never ordered against each other.
function sortTable(table, index, direction) {
  const sign = direction === "descending" ? -1 : 1;
  const value = (row) => row.cells[index].dataset.value ?? "";
  for (const body of table.tBodies) {
    const rows = $$("tr.row", body);
    if (!body.dataset.kept) { body.dataset.kept = "1"; rows.forEach((row, at) => { row.dataset.at = at; }); }
    rows.sort((a, b) => {
      if (index < 0) return a.dataset.at - b.dataset.at;
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "") || a.dataset.at - b.dataset.at;
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return order * sign || a.dataset.at - b.dataset.at;
    });
    body.append(...rows, ...$$("tr.more", body));
  }
}

function makeSortable(table) {
  const heads = $$("thead th", table);
  const apply = (key, direction) => {
    const index = heads.findIndex((head) => head.dataset.key === key);
    heads.forEach((head, at) => { if (at === index) head.setAttribute("aria-sort", direction); else head.removeAttribute("aria-sort"); });
    sortTable(table, index, direction);
  };
  for (const head of heads) {
    const label = $("span", head);
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label.textContent;
    label.replaceWith(button);
    const first = head.dataset.first === "desc" ? "descending" : "ascending";
    const second = first === "ascending" ? "descending" : "ascending";
    button.addEventListener("click", () => {
      const now = head.getAttribute("aria-sort");
      const next = now === first ? second : now === second ? "" : first;
      apply(next ? head.dataset.key : "", next);
      remember("sort", next ? `${head.dataset.key}.${next}` : "");
    });
  }
  const [key, direction] = (state.get("sort") ?? "").split(".");
  if (heads.some((head) => head.dataset.key === key) && ["ascending", "descending"].includes(direction)) apply(key, direction);
}

function makeFilter(form) {
  const section = form.closest("section");
  const table = $("table.board", section);
  const rows = $$("tr.row", table);
  const shown = {
    verified: (row) => ["verified", "base"].includes(row.dataset.state),
    front: (row) => row.classList.contains("front"),
    held: (row) => ["held", "failed"].includes(row.dataset.state),
  };
  const families = [...form.family.options].map((option) => option.value);
  const apply = () => {
    const words = form.q.value.toLowerCase().split(/\s+/).filter(Boolean);
    const keep = shown[form.state.value];
    const family = form.family.value;
    let count = 0;
    for (const row of rows) {
      const fits = words.every((word) => row.dataset.text.includes(word)) && (!keep || keep(row)) && (!family || row.dataset.family === family);
      row.hidden = !fits;
      count += fits;
    }
    // A variant is never shown without the base that it is measured against.
    for (const body of table.tBodies) if ($("tr.row:not([hidden])", body)) $$("tr.base", body).forEach((row) => { row.hidden = false; });
    for (const body of table.tBodies) body.hidden = !$("tr.row:not([hidden])", body);
    $(".nothing", section).hidden = count > 0;
    $("output", form).textContent = count === rows.length ? `${count} rows` : `${count} of ${rows.length} rows`;
  };
  form.hidden = false;
  form.q.value = state.get("q") ?? "";
  form.state.value = shown[state.get("state")] ? state.get("state") : "";
  form.family.value = families.includes(state.get("family")) ? state.get("family") : "";
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", () => {
    remember("q", form.q.value.trim());
    remember("state", form.state.value);
    remember("family", form.family.value);
    apply();
  });
  apply();
}

// A link to something folded away opens it, where the browser does not by itself.
function unfold() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const folded = target?.closest("details:not([open])");
  if (folded) { folded.open = true; target.scrollIntoView(); }
}

function makeCopy(button) {
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    const text = $("code", button.parentElement).textContent;
    const done = await navigator.clipboard.writeText(text).then(() => "Copied", () => "Select and copy");
    button.textContent = done;
    setTimeout(() => { button.textContent = "Copy"; }, 1600);
  });
}

// A mark in a chart and its row light up together.
function linkMark(mark) {
  const row = document.getElementById(decodeURIComponent(mark.getAttribute("href").slice(1)));
  if (!row) return;
  const marks = $$("svg a.mark").filter((other) => other.getAttribute("href") === mark.getAttribute("href"));
  for (const [name, on] of [["pointerenter", true], ["pointerleave", false]]) {
    for (const side of [mark, row]) side.addEventListener(name, () => [row, ...marks].forEach((item) => item.classList.toggle("lit", on)));
  }
}

// The head of a table that needs no sideways scrolling sticks to the top of the page.
function watchWidth(box) {
  const look = () => { box.classList.remove("fits"); box.classList.toggle("fits", box.scrollWidth <= box.clientWidth); };
  new ResizeObserver(look).observe(box.parentElement);
  document.fonts?.ready.then(look);
}

$$("table[data-sortable]").forEach(makeSortable);
$$(".scroll").filter((box) => $(".board", box)).forEach(watchWidth);
$$("form.filter").forEach(makeFilter);
$$("button.copy").forEach(makeCopy);
$$("svg a.mark").forEach(linkMark);
addEventListener("hashchange", unfold);
unfold();
