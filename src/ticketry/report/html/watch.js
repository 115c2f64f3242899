"use strict";
// Draws what a second file tells. That file is loaded anew every few seconds as a script, for a page that lies on a disk
// may load nothing else. Whatever it tells is set as text.

const SVG = "http://www.w3.org/2000/svg";
const COLOUR = {ticket: "--ticket", random_reinit: "--random-reinit", shuffled: "--shuffled", random_prune: "--random-prune"};
const HEIGHT = 260, LEFT = 52, BOTTOM = 34, TOP = 12, RIGHT = 12;
let every = 2, last = 0;

function element(name, inside, attributes) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  for (const one of [inside].flat()) if (one !== undefined && one !== null) made.append(one);
  return made;
}

function drawn(name, attributes, inside) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (inside !== undefined) made.append(inside);
  return made;
}

function time(seconds) {
  const parts = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  let left = Math.max(0, Math.round(seconds));
  const words = [];
  for (const [size, unit] of parts) {
    const count = Math.floor(left / size);
    left -= count * size;
    if (count) words.push(`${count} ${unit}`);
  }
  return words.slice(0, 2).join(" ") || "0 s";
}

function bar(done, of) {
  const share = of ? 100 * Math.min(done / of, 1) : 0;
  return element("div", element("div", null, {style: `width: ${share}%`}), {
    class: "bar", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": of, "aria-valuenow": done});
}

function colourOf(name, number) { return `var(${COLOUR[name] || (number % 2 ? "--other-1" : "--other-2")})`; }

function role(name) { return {dense: "dense", ticket: "tickets"}[name] || name.replaceAll("_", " "); }

// Tickets first, dense networks apart.
function roles(run) {
  const names = [...new Set(run.levels.map((one) => one.role))].filter((name) => name !== "dense");
  return names.sort((a, b) => (b === "ticket") - (a === "ticket") || (a < b ? -1 : 1));
}

// About four round numbers between two.
function ticks(low, high) {
  const raw = (high - low) / 4, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= raw);
  const made = [];
  for (let number = Math.ceil(low / step); number * step <= high; number++) made.push(Number((number * step).toPrecision(6)));
  return made;
}

function percent(density) { return Number((100 * density).toPrecision(3)).toString(); }

// Means by density, the scale of which is logarithmic, from dense on the left to sparse on the right.
function curves(run) {
  const shown = run.levels.filter((one) => one.role !== "dense");
  const dense = run.levels.find((one) => one.role === "dense");
  if (!shown.length) return null;
  const values = run.levels.flatMap((one) => [one.mean - (one.sd || 0), one.mean + (one.sd || 0)]);
  // As wide as the window lets it be, so that its words stay as large as others.
  const WIDTH = Math.max(300, Math.min(640, document.querySelector("main").clientWidth - 48));
  let low = Math.min(...values), high = Math.max(...values);
  const room = (high - low || Math.abs(high) || 1) * 0.06;
  low -= room; high += room;
  const least = Math.min(...shown.map((one) => one.density), 0.5);
  const x = (density) => LEFT + (WIDTH - LEFT - RIGHT) * Math.log(density) / Math.log(least);
  const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low);
  const picture = drawn("svg", {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img",
    "aria-label": `${run.metric} by weights remaining`});
  for (const value of ticks(low, high)) {
    picture.append(drawn("line", {x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value), class: "grid"}));
    picture.append(drawn("text", {x: LEFT - 6, y: y(value) + 4, "text-anchor": "end"}, value.toString()));
  }
  for (const density of [1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001]) {
    if (density < least * 0.999) break;
    picture.append(drawn("text", {x: x(density), y: HEIGHT - 14, "text-anchor": "middle"}, `${percent(density)} %`));
  }
  if (dense) picture.append(drawn("line", {x1: LEFT, x2: WIDTH - RIGHT, y1: y(dense.mean), y2: y(dense.mean), class: "dense"}));
  const names = roles(run);
  names.forEach((name, number) => {
    const colour = colourOf(name, number);
    const points = shown.filter((one) => one.role === name).sort((a, b) => b.density - a.density);
    picture.append(drawn("polyline", {points: points.map((one) => `${x(one.density)},${y(one.mean)}`).join(" "),
      style: `stroke: ${colour}`, class: "curve"}));
    for (const one of points) {
      if (one.sd) picture.append(drawn("line", {x1: x(one.density), x2: x(one.density), y1: y(one.mean - one.sd),
        y2: y(one.mean + one.sd), style: `stroke: ${colour}`}));
      const dot = drawn("circle", {cx: x(one.density), cy: y(one.mean), r: 3.2, style: `fill: ${colour}`});
      dot.append(drawn("title", {}, `${role(name)}, ${percent(one.density)} %: ${one.mean.toPrecision(4)} (${one.n})`));
      picture.append(dot);
    }
  });
  const keys = names.map((name, number) => element("span", [element("i", null, {class: "swatch",
    style: `background: ${colourOf(name, number)}`}), role(name)]));
  if (dense) keys.push(element("span", [element("i", null, {class: "dash"}), "dense"]));
  return element("figure", [element("div", picture, {class: "drawing"}),
    element("figcaption", [element("span", keys, {class: "keys"}),
      ` ${run.metric}${run.unit && `, ${run.unit}`}, on the test split, by weights remaining: mean and standard deviation over replicates so far.`])]);
}

function levels(run) {
  const names = roles(run), rows = [];
  const dense = run.levels.find((one) => one.role === "dense");
  const cell = (one) => element("td", one ? [one.mean.toPrecision(4),
    element("span", one.sd === null ? "" : ` ± ${one.sd.toPrecision(2)}`, {class: "spread"}),
    element("span", ` (${one.n})`, {class: "spread"})] : "–");
  if (dense) rows.push(element("tr", [element("th", "100 (dense)"), cell(dense), ...names.slice(1).map(() => element("td", ""))], {class: "dense"}));
  for (const level of [...new Set(run.levels.filter((one) => one.role !== "dense").map((one) => one.level))].sort((a, b) => a - b)) {
    const own = run.levels.filter((one) => one.level === level && one.role !== "dense");
    const first = own.find((one) => one.role === "ticket") || own[0];
    rows.push(element("tr", [element("th", percent(first.density)), ...names.map((name) => cell(own.find((one) => one.role === name)))]));
  }
  if (!rows.length) return null;
  const head = element("tr", [element("th", "weights remaining, %"), ...(names.length ? names : ["dense"]).map((name) => element("th", role(name)))]);
  return element("div", element("table", [element("thead", head), element("tbody", rows)], {class: "results"}), {class: "scroll"});
}

function section(run, at) {
  const parts = [element("h2", `${run.title} on ${run.task}`), element("p", element("code", run.name), {class: "facts-line"})];
  if (run.state === "running") {
    const of = run.expected ? ` of ${run.expected}` : "";
    const left = run.left === null ? "" : `, about ${time(run.left)} left`;
    parts.push(element("p", [element("span", "running", {class: "chip"}),
      ` ${run.networks}${of} networks, for ${time(at - run.began)}${left}`]));
    if (run.expected) parts.push(bar(run.networks, run.expected));
    if (run.active.length) parts.push(element("div", run.active.map((one) => element("div",
      [element("span", one.label || "training"), bar(one.done, one.of),
        element("span", one.waiting ? "waits for another process" : `step ${one.done} of ${one.of}`, {class: "spread"})])), {class: "active"}));
  } else {
    parts.push(element("p", [element("span", "done", {class: "chip matches"}), ` ${run.networks} networks`]));
  }
  const table = levels(run);
  parts.push(curves(run));
  if (table) parts.push(run.state === "running" ? table : element("details", [element("summary", "All levels"), table]));
  return element("section", parts.filter(Boolean), {id: run.name});
}

function campaign(one) {
  const rows = one.claims.map((claim) => element("tr", [element("td", claim.name),
    element("td", element("span", claim.found, {class: `chip ${claim.found}`}), {class: "verdict"}),
    element("td", claim.difference === null ? "–" : claim.difference.toFixed(2)), element("td", `${claim.n} of ${claim.limit}`)]));
  const head = element("tr", ["claim", "verdict", "A minus B", "replicates"].map((word) => element("th", word)));
  return element("section", [element("h2", one.title),
    element("p", `${one.decided} of ${one.claims.length} claims decided`), bar(one.decided, one.claims.length),
    element("details", [element("summary", "Claim by claim"), element("div", element("table",
      [element("thead", head), element("tbody", rows)], {class: "results"}), {class: "scroll"})])], {id: one.name});
}

let before = "";

function show(told) {
  last = told.at; every = told.every;
  status();
  const {at, ...rest} = told;
  const now = JSON.stringify(rest);
  if (now === before) return;
  before = now;
  const open = new Set([...document.querySelectorAll("section[id] details[open]")].map((one) => one.closest("section").id));
  const made = [...told.runs.map((run) => section(run, at)), ...told.campaigns.map(campaign)];
  if (!made.length) made.push(element("p", "Nothing has been searched in this store yet.", {class: "remark"}));
  for (const one of made) if (open.has(one.id)) one.querySelector("details")?.setAttribute("open", "");
  document.getElementById("runs").replaceChildren(...made);
}

function status() {
  const age = Date.now() / 1000 - last;
  const words = !last ? "waiting for ticketry report --watch" :
    age > 5 * every ? `not renewed for ${time(age)}: ticketry report --watch has ended, or its machine sleeps` :
    `as of ${new Date(1000 * last).toLocaleTimeString()}`;
  document.getElementById("status").textContent = words;
  document.getElementById("status").classList.toggle("late", last > 0 && age > 5 * every);
}

function load() {
  const script = document.createElement("script");
  script.src = `${document.body.dataset.source}?${Date.now()}`;
  script.onload = script.onerror = () => { script.remove(); status(); };
  document.head.append(script);
}

load();
setInterval(load, 1000);
