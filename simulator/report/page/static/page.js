// Draws the charts and runs the request explorer. Text from the data goes into the page as text, never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  const accent = (i) => colour(`t${i % 7}`);
  const DASHES = ["solid", "dash", "dot", "dashdot"];
  const hidden = new Set(); // topologies switched off

  // ---- words ----
  const figures = (value, digits = 3) => {
    if (value === 0) return "0";
    const decimals = Math.max(0, digits - 1 - Math.floor(Math.log10(Math.abs(Number(value.toPrecision(digits))))));
    return Number(value.toPrecision(digits)).toLocaleString("en", { minimumFractionDigits: decimals, maximumFractionDigits: decimals });
  };
  const seconds = (value) => {
    if (value === null || value === undefined) return "–";
    if (value === 0) return "0 s";
    if (Math.abs(value) < 0.9995e-3) return `${figures(value * 1e6)} µs`;
    return Math.abs(value) < 0.9995 ? `${figures(value * 1e3)} ms` : `${figures(value)} s`;
  };
  const tick = (value) => {
    const scaled = value < 1e-3 ? [value * 1e6, "µs"] : value < 1 ? [value * 1e3, "ms"] : [value, "s"];
    return `${Number(scaled[0].toPrecision(3)).toLocaleString("en")} ${scaled[1]}`;
  };
  const percent = (share) => (share === null ? "–" : `${Number((100 * share).toFixed(1))} %`);
  // plotly reads a few tags and entities in its texts; a name is to be shown as it is
  const label = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  // ---- charts ----
  const drawn = new Map(); // id -> () => [traces, layout]
  const narrow = () => window.innerWidth < 700;

  function frame(more) {
    const font = { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("soft") };
    const axis = { gridcolor: colour("grid"), zeroline: false, linecolor: colour("rule"), tickcolor: colour("rule"), automargin: true, fixedrange: true, title: { font: { size: 12 }, standoff: 8 } };
    const layout = {
      font, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", margin: { l: 44, r: 14, t: 8, b: 40 }, showlegend: false,
      hovermode: "closest", dragmode: false, autosize: true,
      hoverlabel: { bgcolor: colour("raised"), bordercolor: colour("rule"), font: { color: colour("ink"), size: 12 }, align: "left" },
      xaxis: { ...axis, ...(more.xaxis || {}) }, yaxis: { ...axis, ...(more.yaxis || {}) },
    };
    for (const key of ["shapes", "annotations"]) if (more[key]) layout[key] = more[key];
    return layout;
  }

  function draw(id) {
    const box = byId(id);
    if (!box) return;
    const [traces, layout] = drawn.get(id)();
    if (!traces.length) { box.textContent = "Nothing to show."; box.classList.add("note"); return; }
    Plotly.react(box, traces, layout, { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false });
  }
  const redraw = () => { for (const id of drawn.keys()) draw(id); };

  // logarithmic ticks at 1, 2, 5 (fewer where the range is wide), each with its own unit
  function timeAxis(values, perDecade) {
    const known = values.filter((value) => value > 0);
    const low = Math.log10(Math.min(...known)), high = Math.log10(Math.max(...known));
    const span = Math.max(high - low, 0.05);
    const steps = span > (narrow() ? 1.6 : 2.2) * (perDecade || 1) ? [1] : span > 0.8 ? [1, 2, 5] : span > 0.35 ? [1, 1.5, 2, 3, 5, 7] : [1, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2, 2.2, 2.4, 2.6, 2.8, 3, 3.3, 3.6, 4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5, 8, 8.5, 9, 9.5];
    let ticks = [];
    for (let e = Math.floor(low) - 1; e <= Math.ceil(high); e++) for (const s of steps) ticks.push(Number((s * 10 ** e).toPrecision(3)));
    ticks = ticks.filter((t) => Math.log10(t) >= low - 0.03 * span && Math.log10(t) <= high + 0.03 * span);
    const most = narrow() ? 5 : 7;
    while (ticks.length > most) ticks = ticks.filter((_, i) => i % 2 === 0);
    return { type: "log", range: [low - 0.03 * span, high + 0.03 * span], tickmode: "array", tickvals: ticks, ticktext: ticks.map(tick) };
  }

  // the curves are high where they pass a target: below them, right of the line, there is room for its name
  const besideLine = (range, at) => ((at - range[0]) / (range[1] - range[0]) > 0.7 ? { xanchor: "right", xshift: -4 } : { xanchor: "left", xshift: 4 });

  function distribution(name) {
    const sets = data.distributions[name];
    const target = data.targets[name];
    // a few gaps of microseconds (tokens sent together) must not stretch the axis
    const all = sets.flatMap((set) => set.x.filter((x, k) => x > 0 && set.share[k] > 0.003));
    if (!all.length) return [[], {}];
    const bands = sets.flatMap((set, i) => {
      const factor = data.errors[i][name];
      if (!factor || hidden.has(i) || !set.x.length) return [];
      const slow = set.x.map((x) => x * factor), fast = set.x.map((x) => Math.max(x / factor, 1e-7));
      return [{ x: [...slow, ...fast.reverse()], y: [...set.share, ...[...set.share].reverse()], mode: "lines", line: { width: 0 }, fill: "toself", fillcolor: accent(i), opacity: 0.13, hoverinfo: "skip" }];
    });
    const traces = sets.map((set, i) => ({
      x: set.x.map((x) => Math.max(x, 1e-7)), y: set.share, mode: "lines", name: label(data.names[i]), visible: !hidden.has(i),
      line: { color: accent(i), width: 2.25, dash: DASHES[Math.floor(i / 7) % 4] },
      text: set.x.map((x) => `${label(data.names[i])}<br>${seconds(x)}`), hovertemplate: "%{text}<br>%{y:.1%} are no slower<extra></extra>",
    }));
    const more = { xaxis: timeAxis(target ? [...all, target * 1.15] : all), yaxis: { range: [0, 1.01], tickformat: ".0%", tickvals: [0, 0.25, 0.5, 0.75, 0.9, 1] } };
    if (target) {
      more.shapes = [{ type: "line", x0: target, x1: target, y0: 0, y1: 1, yref: "paper", line: { color: colour("soft"), width: 1.25, dash: "dash" } }];
      more.annotations = [{ x: Math.log10(target), y: 0.03, yref: "paper", text: `target ${tick(target)}`, showarrow: false, font: { size: 11.5 }, ...besideLine(more.xaxis.range, Math.log10(target)) }];
    }
    return [[...bands, ...traces], frame(more)];
  }

  function rate(key) {
    const rates = data.rates;
    const share = key === "attainment";
    const traces = [];
    rates.series.forEach((one, i) => {
      const text = one.level.map((level, k) => `${label(data.names[i])} at ${figures(level)}${rates.closed ? " clients" : " requests/s"}<br>${share ? percent(one[key][k]) : seconds(one[key][k])}${one.saturated[k] ? ", saturated" : ""}`);
      traces.push({
        x: one.level, y: one[key], mode: "lines+markers", name: label(data.names[i]), visible: !hidden.has(i), text, hovertemplate: "%{text}<extra></extra>",
        line: { color: accent(i), width: 2.25, dash: DASHES[Math.floor(i / 7) % 4] },
        marker: { size: 6, color: one.saturated.map((full) => (full ? colour("paper") : accent(i))), line: { color: accent(i), width: 1.75 } },
      });
      if (one.knee) {
        const at = between(one.level, one[key], one.knee);
        if (at !== null) traces.push({ x: [one.knee], y: [at], mode: "markers", visible: !hidden.has(i), marker: { size: 13, color: accent(i), line: { color: colour("paper"), width: 2 } }, text: [`${label(data.names[i])}<br>knee at ${figures(one.knee)}${rates.closed ? " clients" : " requests/s"}`], hovertemplate: "%{text}<extra></extra>" });
      }
    });
    const values = rates.series.flatMap((one) => one[key]).filter((v) => v !== null);
    if (!values.length) return [[], {}];
    const yaxis = share ? { range: [0, 1.03], tickformat: ".0%", tickvals: [0, 0.25, 0.5, 0.75, 0.9, 1] } : timeAxis(values, 1.4);
    const shapes = [{ type: "line", x0: rates.given, x1: rates.given, y0: 0, y1: 1, yref: "paper", layer: "below", line: { color: colour("none"), width: 6 } }];
    const target = share ? null : data.targets[key];
    if (target) shapes.push({ type: "line", x0: 0, x1: 1, xref: "paper", y0: target, y1: target, line: { color: colour("soft"), width: 1.25, dash: "dash" } });
    return [traces, frame({ xaxis: { rangemode: "tozero", title: { text: rates.closed ? "clients" : "requests/s" } }, yaxis, shapes })];
  }

  function between(xs, ys, x) {
    for (let k = 1; k < xs.length; k++) {
      if (x <= xs[k] + 1e-9 && ys[k] !== null && ys[k - 1] !== null) return ys[k - 1] + ((x - xs[k - 1]) / (xs[k] - xs[k - 1])) * (ys[k] - ys[k - 1]);
    }
    return null;
  }

  let shownLoad = 0;
  const hiddenWorkers = new Set();
  // one pool in shades of the topology's accent, the next in those of the neighbouring one
  function workerLine(i) {
    const workers = data.load[shownLoad].workers;
    const pools = [...new Set(workers.map((worker) => worker.pool))];
    const pool = pools.indexOf(workers[i].pool);
    const place = workers.filter((worker, k) => k < i && worker.pool === workers[i].pool).length;
    return { color: accent(pools.length > 1 ? pool : shownLoad), width: place === 0 ? 2 : 1.5, dash: DASHES[place % 4] };
  }

  function load(key) {
    const one = data.load[shownLoad];
    const bytes = key === "bytes_per_s", share = key === "kv_fraction";
    const traces = one.workers.map((worker, i) => {
      const y = bytes ? worker[key].map((v) => v / 1e9) : worker[key];
      const text = y.map((v, k) => `${label(worker.name)} at ${figures(one.time[k])} s<br>${share ? percent(v) : figures(v) + (bytes ? " GB/s" : "")}`);
      return { x: one.time, y, mode: "lines", visible: !hiddenWorkers.has(i), line: { ...workerLine(i), shape: "hv" }, text, hovertemplate: "%{text}<extra></extra>" };
    }).filter((trace) => trace.y.length);
    const top = Math.min(1.03, Math.max(0.25, 1.1 * Math.max(...traces.flatMap((trace) => trace.y))));
    const yaxis = share ? { range: [0, top], tickformat: ".0%" } : { rangemode: "tozero", title: bytes ? { text: "GB/s" } : undefined };
    return [traces, frame({ xaxis: { title: { text: "time, s" }, range: [0, one.time[one.time.length - 1] + one.step_s / 2] }, yaxis })];
  }

  function blend(a, b, share) {
    const parse = (text) => [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
    const [x, y] = [parse(a), parse(b)];
    return `rgb(${x.map((v, i) => Math.round(v + (y[i] - v) * share)).join(",")})`;
  }

  const SHORT = { disaggregated: "D", colocated: "C", tie: "=", neither: "·" };
  function crossover() {
    const map = data.map;
    const z = map.gain.map((row, j) => row.map((gain, i) => (map.winner[j][i] === "neither" ? null : gain)));
    const scale = [[0, colour("lose")], [0.5, colour("level")], [1, colour("win")]];
    const x = map.rates.map((r) => figures(r, narrow() ? 2 : 3)), y = map.prompts.map((p) => p.toLocaleString("en"));
    const said = { disaggregated: label(map.disaggregated), colocated: label(map.colocated), tie: "level", neither: "neither" };
    const text = map.winner.map((row, j) => row.map((winner, i) => `${x[i]} requests/s, prompts of ${y[j]} tokens<br>${label(map.colocated)} ${percent(map.attainment[j][i][0])}, ${label(map.disaggregated)} ${percent(map.attainment[j][i][1])}<br>more per GPU: ${said[winner]}${map.ratio[j][i] && winner !== "tie" ? ` (${figures(map.ratio[j][i])} times)` : ""}`));
    const grey = map.winner.map((row) => row.map((winner) => (winner === "neither" ? 1 : null)));
    const limit = 0.6;
    const hover = { text, hovertemplate: "%{text}<extra></extra>", xgap: 2, ygap: 2, showscale: false };
    const traces = [
      { type: "heatmap", z: grey, zmin: 0, zmax: 1, colorscale: [[0, colour("none")], [1, colour("none")]], ...hover },
      { type: "heatmap", z, zmin: -limit, zmax: limit, colorscale: scale, ...hover },
    ];
    const annotations = [];
    const whole = (share) => (share === null ? "–" : Math.round(100 * share));
    map.attainment.forEach((row, j) => row.forEach((pair, i) => {
      const strong = z[j][i] !== null && Math.abs(z[j][i]) > 0.45;
      annotations.push({ x: i, y: j, text: narrow() ? SHORT[map.winner[j][i]] : `${whole(pair[0])} | ${whole(pair[1])}`, showarrow: false, font: { size: 12, color: strong ? colour("paper") : colour("ink") } });
    }));
    const layout = frame({
      xaxis: { tickvals: x.map((_, i) => i), ticktext: x, tickangle: 0, title: { text: "requests/s" }, showgrid: false },
      yaxis: { tickvals: y.map((_, j) => j), ticktext: y, title: { text: narrow() ? undefined : "mean prompt, tokens", standoff: 18, font: { size: 12 } }, showgrid: false }, annotations,
    });
    return [traces, layout];
  }
  for (const name of ["ttft", "tpot", "e2e", "itl"]) drawn.set(`dist-${name}`, () => distribution(name));
  if (data.rates) for (const key of ["attainment", "ttft", "tpot", "e2e"]) drawn.set(`rate-${key}`, () => rate(key));
  for (const key of ["running", "kv_fraction", "waiting", "bytes_per_s"]) drawn.set(`load-${key}`, () => load(key));
  if (data.map) drawn.set("crossover", crossover);

  // ---- switches ----
  const pressed = (button, on) => button.setAttribute("aria-pressed", String(on));
  for (const button of document.querySelectorAll(".key[data-topology]")) {
    button.addEventListener("click", () => {
      const i = Number(button.dataset.topology);
      hidden.has(i) ? hidden.delete(i) : hidden.add(i);
      pressed(button, !hidden.has(i));
      for (const id of drawn.keys()) if (/^(dist|rate)-/.test(id)) draw(id);
    });
  }

  function element(name, properties, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  function loadKeys() {
    const one = data.load[shownLoad];
    hiddenWorkers.clear();
    byId("load-keys").replaceChildren(...one.workers.map((worker, i) => {
      const mark = element("span", { className: "line-key" });
      mark.style.color = workerLine(i).color;
      mark.style.borderTopStyle = { solid: "solid", dash: "dashed", dot: "dotted", dashdot: "double" }[workerLine(i).dash];
      const button = element("button", { type: "button", className: "key" }, mark, worker.name);
      pressed(button, true);
      button.addEventListener("click", () => {
        hiddenWorkers.has(i) ? hiddenWorkers.delete(i) : hiddenWorkers.add(i);
        pressed(button, !hiddenWorkers.has(i));
        drawLoad();
      });
      return button;
    }));
    const left = one.all - one.workers.length;
    byId("load-note").textContent = `Averages over ${tick(one.step_s)}.` + (left > 0 ? ` ${left} less busy workers are left out.` : "");
    byId("links").hidden = !one.workers.some((worker) => worker.bytes_per_s.length);
  }
  const drawLoad = () => { for (const id of drawn.keys()) if (id.startsWith("load-") && !(id === "load-bytes_per_s" && byId("links").hidden)) draw(id); };
  for (const button of document.querySelectorAll(".pick")) {
    button.addEventListener("click", () => {
      shownLoad = Number(button.dataset.load);
      for (const other of document.querySelectorAll(".pick")) pressed(other, other === button);
      loadKeys();
      drawLoad();
    });
  }

  const themeButton = byId("theme");
  const asked = window.matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  function theme() {
    const dark = chosen === null ? asked.matches : chosen;
    root.dataset.theme = dark ? "dark" : "light";
    themeButton.textContent = dark ? "Light" : "Dark";
    themeButton.setAttribute("aria-label", dark ? "Use light colours" : "Use dark colours");
    pressed(themeButton, dark);
  }
  function repaint() { theme(); loadKeys(); redraw(); }
  themeButton.addEventListener("click", () => { chosen = root.dataset.theme !== "dark"; repaint(); });
  asked.addEventListener("change", repaint);

  // ---- request explorer ----
  const form = byId("filters"), body = document.querySelector("#explorer tbody");
  const PAGE = 15;
  const state = { sort: "ttft", down: true, page: 0, open: null };

  function matching() {
    const topology = Number(form.elements.topology.value), show = form.elements.show.value;
    const text = form.elements.text.value.trim().toLowerCase(), least = Number(form.elements.least.value || 0);
    const rows = data.requests[topology].filter((row) => row.input >= least
      && (!text || [row.id, row.prefill, row.decode].some((word) => word.toLowerCase().includes(text)))
      && (show === "all" || (show === "lost" ? row.state !== "completed" : show === "preempted" ? row.preemptions > 0 : row.missed.includes(show))));
    const key = state.sort, sign = state.down ? -1 : 1;
    const by = (row) => (row[key] === null ? -Infinity : row[key]);
    rows.sort((a, b) => (key === "id" ? sign * a.id.localeCompare(b.id, "en", { numeric: true }) : sign * (by(a) - by(b)) || 0));
    return [rows, data.requests[topology].length];
  }

  function partsBar(row, scale, className) {
    const bar = element("div", { className });
    row.parts.forEach((value, i) => {
      if (!value) return;
      const piece = element("i", { className: `part-${data.parts[i].replaceAll("_", "-")}`, title: `${data.partNames[i]}: ${seconds(value)}` });
      piece.style.width = `${(100 * value) / scale}%`;
      bar.append(piece);
    });
    bar.setAttribute("role", "img");
    bar.setAttribute("aria-label", row.parts.map((value, i) => (value ? `${data.partNames[i]} ${seconds(value)}` : "")).filter(Boolean).join(", ") || "none");
    return bar;
  }

  function detail(row) {
    const bar = partsBar(row, row.e2e || row.ttft || 1, "bar");
    if (row.e2e !== null) {
      const decode = element("i", { className: "decode", title: `decode: ${seconds(row.e2e - row.ttft)}` });
      decode.style.width = `${(100 * (row.e2e - row.ttft)) / row.e2e}%`;
      bar.append(decode);
    }
    const facts = [["state", row.state + (row.reason ? `: ${row.reason}` : "")], ["prefill worker", row.prefill || "–"], ["decode worker", row.decode || "–"], ["cached tokens", row.cached.toLocaleString("en")], ["preemptions", String(row.preemptions)],
      ...row.parts.map((value, i) => [data.partNames[i], seconds(value)]), ["decode", row.e2e === null ? "–" : seconds(row.e2e - row.ttft)], ["targets missed", row.missed.length ? row.missed.join(", ").replace("_", " ").toUpperCase() : "none"]];
    const list = element("dl", {}, ...facts.map(([name, value]) => element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value }))));
    const cell = element("td", { colSpan: 8 }, bar, list);
    return element("tr", { className: "more" }, cell);
  }

  function line(row, scale) {
    const open = state.open === row;
    const button = element("button", { type: "button", className: "open", textContent: row.id });
    button.setAttribute("aria-expanded", String(open));
    button.addEventListener("click", () => { state.open = open ? null : row; explore(); [...body.querySelectorAll(".open")].find((b) => b.textContent === row.id)?.focus(); });
    const cell = (text, missed) => element("td", { textContent: text, className: missed ? "missed" : "" });
    const head = element("th", { scope: "row", className: "name", title: row.id }, button);
    const made = element("tr", {}, head, cell(seconds(row.arrival)), cell(row.input.toLocaleString("en")), cell(row.output.toLocaleString("en")), cell(row.state === "completed" ? seconds(row.ttft) : row.state.replace("_", " "), row.missed.includes("ttft")),
      element("td", { className: "wide" }, partsBar(row, scale, "mini")), cell(seconds(row.tpot), row.missed.includes("tpot")), cell(seconds(row.e2e), row.missed.includes("e2e")));
    return open ? [made, detail(row)] : [made];
  }

  function explore() {
    const [rows, all] = matching();
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const scale = Math.max(...rows.map((row) => row.ttft || 0), 1e-9);
    const shown = rows.slice(state.page * PAGE, (state.page + 1) * PAGE);
    body.replaceChildren(...shown.flatMap((row) => line(row, scale)));
    byId("found").textContent = `${rows.length.toLocaleString("en")} of ${all.toLocaleString("en")} requests kept here match.`;
    byId("page-number").textContent = `page ${state.page + 1} of ${pages}`;
    byId("prev").disabled = state.page === 0;
    byId("next").disabled = state.page >= pages - 1;
    for (const button of document.querySelectorAll("[data-sort]")) {
      const head = button.closest("th");
      if (button.dataset.sort === state.sort) head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
  }
  for (const button of document.querySelectorAll("[data-sort]")) {
    button.addEventListener("click", () => {
      state.down = state.sort === button.dataset.sort ? !state.down : button.dataset.sort !== "id";
      Object.assign(state, { sort: button.dataset.sort, page: 0 });
      explore();
    });
  }
  form.addEventListener("input", () => { Object.assign(state, { page: 0, open: null }); explore(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  byId("prev").addEventListener("click", () => { state.page -= 1; explore(); });
  byId("next").addEventListener("click", () => { state.page += 1; explore(); });

  theme();
  loadKeys();
  explore();
  redraw();
  let width = window.innerWidth;
  window.addEventListener("resize", () => { if (window.innerWidth !== width) { width = window.innerWidth; redraw(); } });
})();
