/* Sorting of tables, filtering of that of networks, and links that save a drawing. Without it the page is whole. */
"use strict";
(() => {
  for (const table of document.querySelectorAll("table.sorts")) sortable(table);
  const networks = document.querySelector("table.networks");
  if (networks) filterable(networks);
  addEventListener("hashchange", unfold);
  unfold();
  for (const place of document.querySelectorAll("figure .downloads")) saveable(place);

  /* A link to a run opens it. */
  function unfold() {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target instanceof HTMLDetailsElement) target.open = true;
  }

  function sortable(table) {
    const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
    const rows = [...body.rows].map((row, place) => ({row, place, cells: [...row.cells].map(cell => cell.textContent)}));
    let column = -1, down = false;

    heads.forEach((head, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => {
        down = column === index && !down;
        column = index;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const sign = down ? -1 : 1, numeric = head.dataset.kind === "number";
        const value = numeric ? row => number(row.cells[index]) : row => row.cells[index];
        rows.sort((a, b) => compare(value(a), value(b), sign, numeric) || a.place - b.place);
        body.append(...rows.map(({row}) => row));
      });
      head.append(button);
    });
  }

  function filterable(table) {
    const role = [...table.tHead.rows[0].cells].findIndex(head => head.textContent === "role");
    const rows = [...table.tBodies[0].rows].map(row => {
      const cells = [...row.cells].map(cell => cell.textContent);
      return {row, cells, text: cells.join(" ").toLowerCase()};
    });
    const bar = document.querySelector(".filters"), words = bar.querySelector("input");
    const select = bar.querySelector("select"), count = bar.querySelector("output");
    const filter = () => {
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const {row, text, cells} of rows) {
        const fits = (!select.value || cells[role] === select.value) && wanted.every(word => text.includes(word));
        row.hidden = !fits;
        shown += fits;
      }
      count.textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
    };
    words.addEventListener("input", filter);
    select.addEventListener("change", filter);
    bar.hidden = false;
    filter();
  }

  function number(text) {
    return Number.parseFloat(text.replace("−", "-").replaceAll(",", ""));
  }

  /* What is no number stays at the end, whichever way the rest is sorted. */
  function compare(a, b, sign, numeric) {
    if (!numeric) return sign * a.localeCompare(b, "en", {numeric: true});
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return sign * (a - b);
  }

  function saveable(place) {
    const drawing = place.closest("figure").querySelector(".drawing.wide svg");
    const link = document.createElement("a");
    link.textContent = "SVG";
    link.download = `${place.closest("figure").id}.svg`;
    link.href = "#";
    link.addEventListener("click", event => {
      if (link.href.startsWith("blob:")) return;
      event.preventDefault();
      link.href = URL.createObjectURL(new Blob([standalone(drawing)], {type: "image/svg+xml"}));
      link.click();
    });
    place.append(link);
  }

  /* The drawing with the light theme's colours, whatever the reader's theme is: it is to be put on paper. */
  function standalone(drawing) {
    const copy = drawing.cloneNode(true);
    copy.setAttribute("font-family", "system-ui, sans-serif");
    const colours = COLOURS;
    return new XMLSerializer().serializeToString(copy).replace(/var\(--([a-z0-9-]+)\)/g, (_, name) => colours[name]);
  }
})();
