"use strict";
{
  const root = document.documentElement, find = (id) => document.getElementById(id);
  root.classList.add("js");
  const tree = find("tree"), panel = find("panel");
  const rows = [...tree.querySelectorAll("details[id]")];
  const paths = rows.map((row) => JSON.parse(row.dataset.paths));
  const texts = rows.map((row, place) => [row.querySelector(".name").textContent, ...paths[place]].join("\n").toLowerCase());
  const rowOf = new Map(rows.flatMap((row, place) => paths[place].map((path) => [path, row])));
  const nodes = [...document.querySelectorAll(".graph [data-path]")];
  const parent = (row) => row.parentElement.closest("details[id]");
  const children = (row) => [...row.children].filter((child) => child.id);

  // selecting: the row, its boxes, what is said of it
  let selected = null;
  const reveal = (row) => { for (let above = parent(row); above; above = parent(above)) above.open = true; };
  const select = (row, scroll) => {
    selected?.classList.remove("on");
    document.querySelectorAll(".icicle .on").forEach((box) => box.classList.remove("on"));
    selected = row;
    row.classList.add("on");
    document.querySelectorAll(`.icicle a[href="#${row.id}"]`).forEach((box) => box.classList.add("on"));
    for (const node of nodes) node.classList.toggle("on", rowOf.get(node.dataset.path) === row);
    reveal(row);
    if (scroll) row.firstElementChild.scrollIntoView({ block: "nearest" });
    const title = document.createElement("h3"), body = [...row.children].find((child) => child.matches(".body"));
    title.textContent = row.querySelector(".name").textContent;
    panel.replaceChildren(title, ...(body ? [body.querySelector("dl").cloneNode(true)] : []));
    const held = document.querySelectorAll(`tr[data-row="${row.id.slice(1)}"]`);
    if (held.length) {
      const table = panel.appendChild(document.createElement("table"));
      for (const line of held) {
        const copy = table.appendChild(line.cloneNode(true));
        copy.querySelector(".muted").remove();  // the module's own path, which is the panel's title
        [...copy.cells].slice(3).forEach((cell) => cell.remove());
      }
    }
  };
  tree.addEventListener("click", (event) => {
    const line = event.target.closest("summary.row");
    if (line) select(line.parentElement, false);
  });

  // the keyboard, as in a file tree
  tree.addEventListener("keydown", (event) => {
    const row = event.target.closest("summary.row")?.parentElement;
    if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
    const lines = [...tree.querySelectorAll("summary.row")].filter((line) => line.offsetParent);
    const at = lines.indexOf(row.firstElementChild);
    const inner = row.open && children(row).find((child) => !child.hidden);
    const to = {
      ArrowDown: lines[at + 1], ArrowUp: lines[at - 1], Home: lines[0], End: lines.at(-1),
      ArrowRight: inner && inner.firstElementChild, ArrowLeft: !row.open && parent(row)?.firstElementChild,
    }[event.key];
    if (event.key === "ArrowRight" && !row.open) row.open = true;
    else if (event.key === "ArrowLeft" && row.open) row.open = false;
    else if (to) { to.focus(); select(to.parentElement, true); }
    else if (!event.key.startsWith("Arrow")) return;
    event.preventDefault();
  });

  // searching
  const search = find("search");
  let openBefore = null;
  search.addEventListener("input", () => {
    const wanted = search.value.trim().toLowerCase();
    if (wanted && !openBefore) openBefore = rows.filter((row) => row.open);
    const hits = new Set(rows.filter((row, place) => texts[place].includes(wanted)));
    const shown = new Set(hits);
    for (const hit of hits) for (let above = parent(hit); above && !shown.has(above); above = parent(above)) shown.add(above);
    for (const row of rows) {
      row.hidden = Boolean(wanted) && !shown.has(row);
      row.classList.toggle("dim", Boolean(wanted) && shown.has(row) && !hits.has(row));
      if (wanted) row.open = children(row).some((child) => shown.has(child));
      else if (openBefore) row.open = openBefore.includes(row);
    }
    if (!wanted) openBefore = null;
    find("found").textContent = wanted ? `${hits.size} of ${rows.length} rows` : "";
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !event.target.matches("input")) { event.preventDefault(); search.focus(); }
    if (event.key === "Escape" && event.target === search) { search.value = ""; search.dispatchEvent(new Event("input")); }
  });
  find("open").addEventListener("click", () => rows.forEach((row) => { row.open = row.matches(".kids"); }));
  find("close").addEventListener("click", () => rows.forEach((row) => { row.open = false; }));

  // sorting: children within their parent
  const values = new Map(rows.map((row) => [row, JSON.parse(row.dataset.values).map((value) => value ?? -1)]));
  tree.querySelector(".titles").addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const key = button.dataset.sort;
    const place = (row) => (key ? -values.get(row)[key] : Number(row.id.slice(1)));
    for (const holder of [tree, ...rows]) {
      const inner = children(holder);
      if (inner.length > 1) holder.append(...inner.sort((a, b) => place(a) - place(b) || Number(a.id.slice(1)) - Number(b.id.slice(1))));
    }
    tree.querySelectorAll("[aria-sort]").forEach((title) => title.removeAttribute("aria-sort"));
    if (key) tree.querySelectorAll(`[data-sort="${key}"]`).forEach((other) => other.setAttribute("aria-sort", "descending"));
  });

  // within a frame of its own source a link would be the parent's
  document.addEventListener("click", (event) => {
    const place = event.target.closest("nav a[href^='#']")?.getAttribute("href").slice(1);
    if (place !== undefined) {
      event.preventDefault();
      (find(place) ?? root).scrollIntoView();
    }
  });

  // the icicles: a click zooms, and selects the row; a click on what is zoomed to goes back
  for (const drawing of document.querySelectorAll(".icicle")) {
    const boxes = [...drawing.querySelectorAll("a")].map((link) => {
      const box = link.firstElementChild;
      return { link, box, x: parseFloat(box.getAttribute("x")), width: parseFloat(box.getAttribute("width")) };
    });
    const fit = ({ link, box }, room) => {
      const text = box.querySelector("text");
      link.classList.remove("narrow", "thin");
      for (const less of ["narrow", "thin"]) if (text.getComputedTextLength() > room) link.classList.add(less);
    };
    let zoomed = null;
    drawing.addEventListener("click", (event) => {
      const link = event.target.closest("a");
      if (!link) return;
      event.preventDefault();
      const clicked = boxes.find((one) => one.link === link);
      zoomed = zoomed === clicked ? null : clicked;
      const { x, width } = zoomed ?? { x: 0, width: 100 };
      for (const one of boxes) {
        // a box that the view is within fills it; what is outside is moved there
        const from = Math.max((one.x - x) / width * 100, 0), to = Math.min((one.x + one.width - x) / width * 100, 100);
        one.box.setAttribute("x", `${from}%`);
        one.box.setAttribute("width", `${Math.max(to - from, 0)}%`);
        fit(one, Math.max(to - from, 0) / 100 * drawing.clientWidth - 14);
      }
      select(find(link.getAttribute("href").slice(1)), true);
    });
  }

  // the dataflow: a node selects its module's row
  for (const graph of document.querySelectorAll(".graph")) {
    graph.addEventListener("click", (event) => {
      const path = event.target.closest("[data-path]")?.dataset.path;
      if (path !== undefined && rowOf.has(path)) select(rowOf.get(path), true);
    });
  }

  // what was alive where the pointer is
  const memory = find("stretches");
  if (memory) {
    const stretches = JSON.parse(memory.dataset.stretches), readout = find("readout");
    memory.addEventListener("pointermove", (event) => {
      const { left, width } = memory.getBoundingClientRect();
      const place = Math.min(Math.max(Math.floor((event.clientX - left) / width * stretches.length), 0), stretches.length - 1);
      find("at").setAttribute("x", place);
      find("at").setAttribute("width", 1);
      readout.textContent = stretches[place];
    });
  }

  find("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  if (rows.length) select(rows[0], false);
}
