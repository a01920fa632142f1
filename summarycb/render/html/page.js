"use strict";
{
  const root = document.documentElement, find = (id) => document.getElementById(id);
  root.classList.add("js");
  const mark = (element, attributes) => {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  };

  // one stop of the Tab key for many things, and keys to go on from there: step(from, key) says where to. The holder
  // is no SVG: one that listens for the focus would be a stop itself
  const roving = (holder, items, step) => {
    let at = items[0];
    const stop = (item) => { at.setAttribute("tabindex", -1); at = item; at.setAttribute("tabindex", 0); };
    for (const item of items) item.setAttribute("tabindex", -1);
    if (at) stop(at);
    holder.addEventListener("focusin", (event) => { if (items.includes(event.target)) stop(event.target); });
    holder.addEventListener("keydown", (event) => {
      if (!items.includes(event.target) || event.ctrlKey || event.metaKey || event.altKey) return;
      const to = step(event.target, event.key);
      if (to || event.key.startsWith("Arrow")) event.preventDefault();
      if (to) to.focus();
    });
    return { at: () => at, stop };
  };
  const pressed = (item, key) => {
    if (key === "Enter" || key === " ") item.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true }));
    return (key === "Enter" || key === " ") && item;
  };

  const sizes = new ResizeObserver((entries) => { for (const entry of entries) if (entry.contentRect.width) atSize.get(entry.target)(); });
  const atSize = new Map();

  // a tree with its tools, its icicles and its dataflow
  const explore = (section) => {
    const key = section.dataset.key ?? "", own = (id) => find(key + id);
    const tree = own("tree"), panel = own("panel");
    const rows = [...tree.querySelectorAll("details[id]")];
    const order = new Map(rows.map((row, place) => [row, place]));
    const parent = (row) => row.parentElement.closest("details[id]");
    const children = (row) => [...row.children].filter((child) => child.id);
    const paths = new Map();
    for (const row of rows) {
      const names = JSON.parse(row.dataset.names ?? "null") ?? [row.querySelector("bdi").textContent];
      const below = () => paths.get(parent(row)).flatMap((path) => names.map((name) => (path ? `${path}.${name}` : name)));
      paths.set(row, JSON.parse(row.dataset.paths ?? "null") ?? below());
    }
    const named = (row) => row.querySelector(".name").textContent;
    const texts = new Map(rows.map((row) => [row, [named(row), row.querySelector(":scope > .row > .what")?.textContent, ...paths.get(row)].join("\n").toLowerCase()]));
    const rowOf = new Map(rows.flatMap((row) => paths.get(row).map((path) => [path, row])));
    const nodes = [...document.querySelectorAll(".graph [data-path]")].filter((node) => rowOf.has(node.dataset.path));
    const bodies = new Map(rows.map((row) => [row, row.querySelector(":scope > .body")]));

    // selecting: the row, its boxes, its nodes, what is said of it
    let selected = null;
    const reveal = (row) => { for (let above = parent(row); above; above = parent(above)) above.open = true; };
    const select = (row, scroll) => {
      const link = `.icicle a[href="#${row.id}"]`;
      section.querySelectorAll(".icicle .on").forEach((box) => { box.classList.remove("on"); mark(box, { "aria-selected": false }); });
      section.querySelectorAll(link).forEach((box) => { box.classList.add("on"); mark(box, { "aria-selected": true }); });
      for (const node of nodes) {
        const on = rowOf.get(node.dataset.path) === row;
        node.classList.toggle("on", on);
        mark(node, { "aria-pressed": on });
      }
      selected?.classList.remove("on");
      if (selected) mark(selected.firstElementChild, { "aria-selected": false });
      selected = row;
      row.classList.add("on");
      mark(row.firstElementChild, { "aria-selected": true });
      reveal(row);
      if (scroll) row.firstElementChild.scrollIntoView({ block: "nearest" });
      const title = document.createElement("h3"), body = bodies.get(row);
      title.textContent = named(row);
      panel.replaceChildren(title, ...(body ? [body.querySelector("dl").cloneNode(true)] : []));
      for (const facts of panel.querySelectorAll("dd")) facts.textContent = facts.textContent.replaceAll(" · ", "\n");
      if (body?.parentElement === row) {  // within a table all is in rows and cells
        const line = document.createElement("div"), cell = line.appendChild(document.createElement("div"));
        mark(line, { class: "about", role: "row" });
        mark(cell, { role: "gridcell" });
        body.replaceWith(line);
        cell.append(body);
      }
      const held = document.querySelectorAll(`tr[data-row="${row.id.slice(1)}"]`);
      if (held.length) {
        const table = panel.appendChild(document.createElement("table"));
        table.className = "parameters";
        for (const line of held) {
          const copy = table.appendChild(line.cloneNode(true));
          copy.querySelector("i")?.remove();  // the module's own path, which is the panel's title
          [...copy.cells].slice(3).forEach((cell) => cell.remove());
        }
      }
    };
    tree.addEventListener("click", (event) => {
      const line = event.target.closest("summary.row");
      if (line) select(line.parentElement, false);
    });

    // the tree is a table whose rows open, with the keys of one
    mark(tree, { role: "treegrid", "aria-label": "modules" });
    for (const line of tree.querySelectorAll(".row")) {
      mark(line, { role: "row" });
      const [first, ...others] = line.children, titles = line.matches(".titles");
      mark(first, { role: titles ? "columnheader" : "rowheader" });
      for (const cell of others) mark(cell, { role: titles ? "columnheader" : "gridcell" });
    }
    const told = (row) => { if (row.matches(".kids")) mark(row.firstElementChild, { "aria-expanded": row.open }); };
    for (const row of rows) {
      mark(row, { role: "none" });
      mark(row.firstElementChild, { "aria-level": paths.has(parent(row)) ? Number(parent(row).firstElementChild.ariaLevel) + 1 : 1, "aria-selected": false });
      told(row);
    }
    const lines = rows.map((row) => row.firstElementChild);
    const visible = () => [...tree.querySelectorAll("summary.row")].filter((line) => line.checkVisibility());
    const walk = roving(tree, lines, (line, key) => {
      const row = line.parentElement, shown = visible(), place = shown.indexOf(line);
      if (key === "ArrowRight" && row.matches(".kids:not([open])")) row.open = true;
      else if (key === "ArrowLeft" && row.matches(".kids[open]")) row.open = false;
      else {
        const inner = row.open && children(row).find((child) => !child.hidden);
        const to = {
          ArrowDown: shown[place + 1], ArrowUp: shown[place - 1], Home: shown[0], End: shown.at(-1),
          ArrowRight: inner && inner.firstElementChild, ArrowLeft: parent(row)?.firstElementChild,
        }[key];
        if (to) select(to.parentElement, true);
        return to;
      }
    });
    const reachable = () => { if (!walk.at().checkVisibility() && visible().length) walk.stop(visible()[0]); };
    tree.addEventListener("toggle", (event) => {
      if (!event.target.id) return;
      told(event.target);
      reachable();
    }, true);

    // searching
    const search = own("search");
    let openBefore = null;
    search.addEventListener("input", () => {
      const wanted = search.value.trim().toLowerCase();
      section.classList.toggle("searching", Boolean(wanted));
      if (wanted && !openBefore) openBefore = rows.filter((row) => row.open);
      const hits = new Set(rows.filter((row) => texts.get(row).includes(wanted)));
      const shown = new Set(hits);
      for (const hit of hits) for (let above = parent(hit); above && !shown.has(above); above = parent(above)) shown.add(above);
      for (const row of rows) {
        row.hidden = Boolean(wanted) && !shown.has(row);
        row.classList.toggle("dim", Boolean(wanted) && shown.has(row) && !hits.has(row));
        if (wanted) row.open = children(row).some((child) => shown.has(child));
        else if (openBefore) row.open = openBefore.includes(row);
      }
      if (!wanted) openBefore = null;
      reachable();
      own("found").textContent = wanted ? `${hits.size} of ${rows.length} rows` : "";
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "/" && !event.target.matches("input") && search.checkVisibility()) { event.preventDefault(); search.focus(); }
      if (event.key === "Escape" && event.target === search) { search.value = ""; search.dispatchEvent(new Event("input")); }
    });
    own("open").addEventListener("click", () => rows.forEach((row) => { row.open = row.matches(".kids"); }));
    own("close").addEventListener("click", () => rows.forEach((row) => { row.open = false; }));

    // a kind of change: what holds one is opened
    const openAtFirst = rows.filter((row) => row.open);
    section.addEventListener("change", (event) => {
      if (event.target.closest(".kinds")) {
        const kind = event.target.value;
        for (const row of rows) row.open = kind ? row.querySelector(`.${kind}`) !== null : openAtFirst.includes(row);
      }
      reachable();
    });

    // sorting: children within their parent
    const values = new Map(rows.map((row) => [row, row.dataset.values.split(" ").map((value) => (value === "None" ? -1 : Math.abs(value)))]));
    const sort = (by) => {
      const place = (row) => (by ? -values.get(row)[by] : order.get(row));
      for (const holder of [tree, ...rows]) {
        const inner = children(holder);
        if (inner.length > 1) holder.append(...inner.sort((a, b) => place(a) - place(b) || order.get(a) - order.get(b)));
      }
      if (total) tree.append(total);
      tree.querySelector("[aria-sort]")?.removeAttribute("aria-sort");
      const button = by && tree.querySelector(`[data-sort="${by}"]`);
      if (button) mark(button.parentElement, { "aria-sort": "descending" });
      if (sorted) sorted.value = by;
    };
    const sorted = own("sort"), total = tree.querySelector(".total");
    sorted?.addEventListener("change", () => sort(sorted.value));
    if (sorted?.value) sort(sorted.value);
    tree.querySelector(".titles").addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) sort(button.dataset.sort);
    });

    // the icicles: a click zooms, and selects the row; a click on what is zoomed to, or Escape, goes back
    for (const drawing of section.querySelectorAll(".icicle")) {
      const boxes = [...drawing.querySelectorAll("a")].map((link) => {
        const box = link.firstElementChild, [x, y, width] = ["x", "y", "width"].map((name) => parseFloat(box.getAttribute(name)));
        return { link, box, x, width, level: y / 26, row: find(link.getAttribute("href").slice(1)) };
      });
      const fit = ({ link, box, row }) => {
        const room = parseFloat(box.getAttribute("width")) / 100 * drawing.clientWidth - 14;
        let text = box.querySelector("text");
        if (!text && room < 10) return;
        if (!text?.lastElementChild) {
          text?.remove();
          text = box.appendChild(document.createElementNS(box.namespaceURI, "text"));
          const times = row.querySelector(".times"), share = document.createElementNS(box.namespaceURI, "tspan");
          mark(text, { x: 8, y: 17 });
          share.textContent = ` ${box.firstElementChild.textContent.split(", ").at(-1)}`;
          text.append(row.querySelector("bdi").textContent + (times ? ` ${times.textContent}` : ""), share);
        }
        link.classList.remove("narrow", "bare");
        for (const less of ["narrow", "bare"]) if (text.getComputedTextLength() > room) link.classList.add(less);
      };
      let zoomed = null;
      const zoom = (to) => {
        zoomed = to;
        const { x, width } = zoomed ?? { x: 0, width: 100 };
        for (const one of boxes) {
          // a box that the view is within fills it; what is outside is moved there
          const from = Math.max((one.x - x) / width * 100, 0), end = Math.min((one.x + one.width - x) / width * 100, 100);
          mark(one.box, { x: `${from}%`, width: `${Math.max(end - from, 0)}%` });
          fit(one);
        }
      };
      drawing.addEventListener("click", (event) => {
        const link = event.target.closest("a"), clicked = boxes.find((one) => one.link === link);
        if (!clicked) return;
        event.preventDefault();
        zoom(zoomed === clicked ? null : clicked);
        select(clicked.row, true);
      });
      mark(drawing, { role: "tree", "aria-orientation": "horizontal" });
      for (const { link, level } of boxes) mark(link, { role: "treeitem", "aria-level": level + 1, "aria-selected": false });
      roving(drawing.parentElement, boxes.map(({ link }) => link), (link, key) => {
        if (key === "Escape") zoom(null);
        const list = boxes.filter(({ box }) => parseFloat(box.getAttribute("width"))), place = list.findIndex((one) => one.link === link);
        const level = list[place]?.level, before = list.slice(0, place), after = list.slice(place + 1);
        const to = {
          ArrowDown: after[0]?.level > level && after[0], ArrowUp: before.findLast((one) => one.level < level),
          ArrowRight: after.find((one) => one.level === level), ArrowLeft: before.findLast((one) => one.level === level),
          Home: list[0], End: list.at(-1),
        }[key];
        return to ? to.link : pressed(link, key);
      });
      atSize.set(drawing, () => boxes.forEach(fit));
      sizes.observe(drawing);
    }

    // the dataflow: a node selects its module's row; the arrow keys follow the order in which they ran
    for (const graph of document.querySelectorAll(".graph")) {
      const inside = nodes.filter((node) => graph.contains(node));
      graph.addEventListener("click", (event) => {
        const node = event.target.closest("[data-path]");
        if (inside.includes(node)) select(rowOf.get(node.dataset.path), true);
      });
      for (const node of inside) mark(node, { role: "button", "aria-pressed": false });
      roving(graph, inside, (node, key) => {
        const place = inside.indexOf(node), last = inside.length - 1;
        const to = { ArrowDown: place + 1, ArrowRight: place + 1, ArrowUp: place - 1, ArrowLeft: place - 1, Home: 0, End: last }[key];
        return to === undefined ? pressed(node, key) : inside[to];
      });
      atSize.set(graph, () => {
        sizes.unobserve(graph);
        const start = (graph.querySelector(".input") ?? graph.querySelector(".node")).getBoundingClientRect();
        const view = graph.getBoundingClientRect();
        graph.scrollLeft += start.left + start.width / 2 - view.left - view.width / 2;
      });
      sizes.observe(graph);
    }
    if (rows.length) select(rows[0], false);
  };
  for (const section of document.querySelectorAll(".explorer-section")) explore(section);

  // within a frame of its own source a link would be the parent's
  document.addEventListener("click", (event) => {
    const place = event.target.closest("nav a[href^='#']")?.getAttribute("href").slice(1);
    if (place !== undefined) {
      event.preventDefault();
      (find(place) ?? root).scrollIntoView();
    }
  });

  // what was alive where the pointer is, or the arrow keys
  const memory = find("stretches");
  if (memory) {
    const { phases, modules, moments } = JSON.parse(memory.dataset.stretches), readout = find("readout");
    const tell = (place) => {
      const [size, phase, module] = moments[place];
      mark(find("at"), { x: place, width: 1 });
      readout.textContent = [size, phases[phase], modules[module]].filter(Boolean).join(" · ");
      mark(memory, { "aria-valuenow": place + 1, "aria-valuetext": readout.textContent });
    };
    const within = (place) => Math.min(Math.max(place, 0), moments.length - 1);
    mark(memory, { role: "slider", tabindex: 0, "aria-valuemin": 1, "aria-valuemax": moments.length, "aria-valuenow": 1, "aria-valuetext": memory.ariaLabel });
    mark(memory, { "aria-label": "stretch of the step" });
    memory.addEventListener("pointermove", (event) => {
      const { left, width } = memory.getBoundingClientRect();
      tell(within(Math.floor((event.clientX - left) / width * moments.length)));
    });
    memory.addEventListener("keydown", (event) => {
      const now = Number(memory.getAttribute("aria-valuenow")) - 1, many = Math.ceil(moments.length / 10);
      const to = {
        ArrowRight: now + 1, ArrowUp: now + 1, ArrowLeft: now - 1, ArrowDown: now - 1,
        PageUp: now + many, PageDown: now - many, Home: 0, End: moments.length,
      }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      tell(within(to));
    });
  }

  const theme = find("theme"), preferred = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : preferred.matches);
  const say = () => mark(theme, { "aria-pressed": dark() });
  theme.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; say(); });
  preferred.addEventListener("change", say);
  say();
}
