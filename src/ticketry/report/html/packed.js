
  /* Of a report of many networks, put before the end of report.js: what is folded away lies compressed in the page, and
     is unpacked when it is opened. */
  const SHOWN = 200;
  for (const place of document.querySelectorAll("details.packed"))
    place.addEventListener("toggle", () => { if (place.open) unpack(place); });
  addEventListener("hashchange", reach);
  reach();

  /* A link to what is within a run that is still packed opens the run first. */
  async function reach() {
    const id = decodeURIComponent(location.hash.slice(1)), run = /^run-\d+/.exec(id);
    const place = run && document.getElementById(run[0]);
    if (!place || !place.classList.contains("packed")) return;
    place.open = true;
    await unpack(place);
    document.getElementById(id)?.scrollIntoView();
  }

  async function unpack(place) {
    const data = place.querySelector(":scope > script");
    if (!data) return;
    data.remove();
    const text = await inflated(data.textContent);
    if (place.classList.contains("rows")) return listed(place, JSON.parse(text));
    place.insertAdjacentHTML("beforeend", text);
    for (const table of place.querySelectorAll("table.sorts")) sortable(table);
    for (const downloads of place.querySelectorAll("figure .downloads")) saveable(downloads);
  }

  function inflated(text) {
    const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"))).text();
  }

  /* A table of which only the first rows that fit are in the document; filtered and sorted are all. */
  function listed(place, {heads, kinds, columns}) {
    const rows = columns[0].split("\n").map((_, place) => ({place}));
    const cells = columns.map(column => column.split("\n")), role = heads.indexOf("role");
    for (const row of rows) {
      row.cells = cells.map(column => column[row.place]);
      row.text = row.cells.join(" ").toLowerCase();
    }
    const made = (name, ...inside) => {
      const element = document.createElement(name);
      element.append(...inside);
      return element;
    };
    const words = made("input"), select = made("select", new Option("all roles", "")), count = made("output");
    words.type = "search";
    for (const name of new Set(cells[role])) select.append(new Option(name, name));
    const bar = made("div", made("label", "Filter ", words), made("label", "Role ", select), count);
    bar.className = "filters";
    const body = made("tbody"), more = made("button");
    const top = made("tr", ...heads.map(name => Object.assign(made("th", name), {scope: "col"})));
    const table = made("table", made("thead", top), body), scroll = made("div", table);
    table.className = "results sorts networks";
    scroll.className = "scroll tall";
    scroll.tabIndex = 0;
    more.type = "button";
    place.append(bar, scroll, more);

    let found = rows, shown = 0;
    const show = () => {
      const next = found.slice(shown, shown + SHOWN);
      body.append(...next.map(row => made("tr", ...row.cells.map(text => made("td", text)))));
      shown += next.length;
      const of = found.length === rows.length ? "" : ` that fit, of ${rows.length.toLocaleString("en")}`;
      count.textContent = `${shown.toLocaleString("en")} of ${found.length.toLocaleString("en")}${of}`;
      more.hidden = shown === found.length;
      more.textContent = `${Math.min(SHOWN, found.length - shown)} more`;
    };
    const filter = () => {
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      found = rows.filter(row => (!select.value || row.cells[role] === select.value)
        && wanted.every(word => row.text.includes(word)));
      shown = 0;
      body.replaceChildren();
      show();
    };
    let column = -1, down = false;
    [...top.cells].forEach((head, index) => {
      const button = made("button", ...head.childNodes);
      button.type = "button";
      button.addEventListener("click", () => {
        down = column === index && !down;
        column = index;
        for (const other of top.cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const sign = down ? -1 : 1, numeric = kinds[index] === "number";
        const value = row => numeric ? number(row.cells[index]) : row.cells[index];
        rows.sort((a, b) => compare(value(a), value(b), sign, numeric) || a.place - b.place);
        filter();
      });
      head.append(button);
    });
    words.addEventListener("input", filter);
    select.addEventListener("change", filter);
    more.addEventListener("click", show);
    filter();
  }
