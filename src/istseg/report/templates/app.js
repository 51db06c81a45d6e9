"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const places = [...document.querySelectorAll("[data-figure]")];
  const asSvg = {
    name: "Download plot as SVG",
    icon: Plotly.Icons.disk,
    click: (place) => Plotly.downloadImage(place, { format: "svg", filename: place.dataset.figure, width: place.clientWidth, height: place.clientHeight }),
  };
  const config = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["lasso2d", "select2d", "autoScale2d"], modeBarButtonsToAdd: [asSvg] };
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const webgl = (() => {
    try { return Boolean(document.createElement("canvas").getContext("webgl")); } catch { return false; }
  })();
  const narrow = matchMedia("(max-width: 600px)");
  const PAPER_PX = 680;
  const HALF_PAPER_PX = 325;
  let printing = false;

  const colours = () => {
    if (printing) return { ink: "#000000", soft: "#444444", grid: "#e5e5e5", card: "#ffffff" };
    const style = getComputedStyle(document.documentElement);
    const of = (name) => style.getPropertyValue(name).trim();
    return { ink: of("--ink"), soft: of("--soft"), grid: of("--grid"), card: of("--card") };
  };

  const themed = (layout) => {
    const c = colours();
    const result = { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", ...layout };
    result.font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: c.ink };
    result.hoverlabel = { bgcolor: c.card, bordercolor: c.grid, font: { color: c.ink } };
    for (const key of Object.keys(layout)) {
      if (!/^[xy]axis\d*$/.test(key)) continue;
      result[key] = { gridcolor: c.grid, linecolor: c.grid, zerolinecolor: c.grid, tickcolor: c.grid, tickfont: { color: c.soft }, fixedrange: false, ...layout[key] };
      result[key].title = { standoff: 8, font: { color: c.soft, size: 12 }, ...layout[key].title };
    }
    return result;
  };

  // A square beside its legend leaves the picture small where there is little room.
  const LEGEND_PX = 150;
  const fitted = (layout, place) => {
    if (!layout.images || !(printing || narrow.matches)) return layout;
    const height = (printing ? PAPER_PX : place.clientWidth) + LEGEND_PX;
    return { ...layout, height, margin: { ...layout.margin, b: LEGEND_PX }, legend: { ...layout.legend, orientation: "h", x: 0, y: -0.1, yanchor: "top" } };
  };

  // The blue of the palette is too dark for a dark page.
  const recoloured = (trace) => {
    if (printing || !dark.matches) return trace;
    const lighter = (part) => (part?.color === "#0072B2" ? { ...part, color: "#4da6e0" } : part);
    return { ...trace, ...(trace.line && { line: lighter(trace.line) }), ...(trace.marker && { marker: lighter(trace.marker) }) };
  };

  const usesGl = (figure) => figure.data.some((trace) => trace.type === "scattergl");
  const draw = (place) => {
    const figure = figures[place.dataset.figure];
    // A browser holds few WebGL drawings at once, a printer none: the same points are then drawn as SVG.
    const flat = printing || !webgl;
    const data = figure.data.map((trace) => recoloured(flat && trace.type === "scattergl" ? { ...trace, type: "scatter" } : trace));
    const layout = themed(fitted(figure.layout, place));
    place.style.minHeight = `${layout.height}px`;
    place.drawn = true;
    // Paper is narrower than the screen on which the page is laid out when this is called.
    if (printing) layout.width = place.closest(".two, .three") ? HALF_PAPER_PX : PAPER_PX;
    return Plotly.newPlot(place, data, layout, { ...config, staticPlot: printing, responsive: !printing, scrollZoom: Boolean(layout.images), toImageButtonOptions: { filename: place.dataset.figure, scale: 2 } });
  };
  const erase = (place) => {
    Plotly.purge(place);
    place.drawn = false;
  };

  // Pictures of a figure are layers: a switch for each above it. What is switched is kept in the figure, so that it outlasts a new drawing.
  for (const place of places) {
    const { layout, colours: tints } = figures[place.dataset.figure];
    if (!layout.images) continue;
    place.classList.add("layered");
    const box = document.createElement("fieldset");
    box.className = "layer-switches";
    const legend = document.createElement("legend");
    legend.textContent = "Layers";
    box.append(legend, ...layout.images.map((image, k) => {
      const label = document.createElement("label");
      const input = document.createElement("input");
      const swatch = document.createElement("span");
      swatch.className = "swatch";
      swatch.style.background = tints[k];
      Object.assign(input, { type: "checkbox", checked: image.visible });
      input.addEventListener("change", () => {
        image.visible = input.checked;
        if (place.drawn) Plotly.relayout(place, { [`images[${k}].visible`]: input.checked });
      });
      label.append(input, swatch, image.name);
      return label;
    }));
    place.before(box);
  }

  // Only what is seen is drawn: a page of many samples opens at once.
  const watcher = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting && !target.drawn) draw(target);
      else if (!isIntersecting && target.drawn && usesGl(figures[target.dataset.figure])) erase(target);
    }
  }, { rootMargin: "400px 0px" });
  places.forEach((place) => {
    const { layout } = figures[place.dataset.figure];
    place.style.minHeight = `${layout.height}px`;
    place.style.setProperty("--panels", Object.keys(layout).filter((key) => /^xaxis\d*$/.test(key)).length);
    watcher.observe(place);
  });
  const redraw = () => places.filter((place) => place.drawn).forEach((place) => { erase(place); draw(place); });
  dark.addEventListener("change", redraw);
  narrow.addEventListener("change", redraw);

  let closed = [];
  addEventListener("beforeprint", () => {
    printing = true;
    closed = [...document.querySelectorAll("details:not([open])")].filter((d) => !d.classList.contains("umap"));
    closed.forEach((d) => { d.open = true; });
    places.filter((place) => place.checkVisibility()).forEach((place) => { if (place.drawn) erase(place); draw(place); });
  });
  addEventListener("afterprint", () => {
    printing = false;
    closed.forEach((d) => { d.open = false; });
    redraw();
  });

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const value = (row, column) => {
      const cell = row.cells[column];
      const number = cell.querySelector("data")?.getAttribute("value") ?? cell.dataset.sort;
      if (number !== undefined && number !== null) return Number(number);
      return cell.querySelector(".none") ? null : cell.textContent.trim();
    };
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((h) => h.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const rows = [...table.tBodies[0].rows].map((row) => [value(row, column), row]);
        rows.sort(([a], [b]) => {
          if (a === null || b === null) return (a === null) - (b === null);
          const order = typeof a === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
          return up ? order : -order;
        });
        table.tBodies[0].append(...rows.map(([, row]) => row));
      });
    });
  }

  // What is shown, in the order in which it is shown; numbers unrounded.
  const csv = (table) => [table.tHead.rows[0], ...[...table.tBodies[0].rows].filter((row) => !row.hidden)].map((row) => [...row.cells].map((cell) => {
    const text = cell.querySelector("data")?.getAttribute("value") ?? (cell.querySelector(".none") ? "" : (cell.dataset.text ?? cell.textContent).trim());
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  }).join(",")).join("\n") + "\n";
  for (const table of document.querySelectorAll("table[data-csv]")) {
    const tools = document.createElement("div");
    tools.className = "tools";
    const filter = Object.assign(document.createElement("input"), { type: "search", placeholder: "Filter rows" });
    filter.setAttribute("aria-label", "Show only rows that hold this text");
    filter.addEventListener("input", () => {
      const wanted = filter.value.trim().toLowerCase();
      for (const row of table.tBodies[0].rows) row.hidden = !row.textContent.toLowerCase().includes(wanted);
    });
    const save = Object.assign(document.createElement("button"), { type: "button", textContent: "Download CSV" });
    save.addEventListener("click", () => {
      const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([csv(table)], { type: "text/csv" })), download: table.dataset.csv });
      link.click();
      URL.revokeObjectURL(link.href);
    });
    if (table.tBodies[0].rows.length > 1) tools.append(filter);
    tools.append(save);
    (table.closest(".scroll") ?? table).before(tools);
  }

  for (const [n, box] of [...document.querySelectorAll(".tabs")].entries()) {
    const panels = [...box.querySelectorAll("[data-tab]")];
    if (panels.length < 2) continue;
    box.classList.add("tabbed");
    const list = document.createElement("div");
    list.setAttribute("role", "tablist");
    list.setAttribute("aria-label", box.dataset.label ?? "Segmentation");
    const tabs = panels.map((panel, k) => {
      const tab = document.createElement("button");
      Object.assign(tab, { type: "button", id: `tab-${n}-${k}`, textContent: panel.dataset.tab });
      tab.setAttribute("role", "tab");
      panel.id = `panel-${n}-${k}`;
      panel.setAttribute("role", "tabpanel");
      panel.setAttribute("aria-labelledby", tab.id);
      tab.setAttribute("aria-controls", panel.id);
      return tab;
    });
    const select = (k) => tabs.forEach((tab, j) => {
      tab.setAttribute("aria-selected", String(j === k));
      tab.tabIndex = j === k ? 0 : -1;
      panels[j].hidden = j !== k;
    });
    tabs.forEach((tab, k) => {
      tab.addEventListener("click", () => select(k));
      tab.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!step) return;
        const next = (k + step + tabs.length) % tabs.length;
        select(next);
        tabs[next].focus();
      });
    });
    list.append(...tabs);
    box.prepend(list);
    select(0);
  }

  const lightbox = document.getElementById("lightbox");
  for (const button of document.querySelectorAll(".zoom")) {
    button.addEventListener("click", () => {
      const from = button.querySelector("img");
      const to = lightbox.querySelector("img");
      to.src = from.src;
      to.alt = from.alt;
      lightbox.querySelector("p").textContent = from.alt;
      lightbox.showModal();
    });
  }
  lightbox.addEventListener("click", (event) => { if (event.target === lightbox) lightbox.close(); });

  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", async () => {
      const source = document.getElementById(button.dataset.copy);
      try {
        await navigator.clipboard.writeText(source.textContent);
        button.textContent = "Copied";
      } catch {
        // Without permission for the clipboard the text is selected, ready for the keyboard.
        getSelection().selectAllChildren(source);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1600);
    });
  }

  const links = new Map([...document.querySelectorAll("#nav a")].map((a) => [a.hash.slice(1), a]));
  const sections = [...links.keys()].map((id) => document.getElementById(id)).filter(Boolean);
  const spy = () => {
    const here = sections.filter((s) => s.getBoundingClientRect().top < innerHeight * 0.3).at(-1) ?? sections[0];
    for (const [id, link] of links) {
      if (id === here.id) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  };
  addEventListener("scroll", () => requestAnimationFrame(spy), { passive: true });
  spy();
})();
