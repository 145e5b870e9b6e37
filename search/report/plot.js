/* Part of one function: search/report/page.py joins the scripts. */
const data = JSON.parse(document.getElementById("data").textContent);
const find = id => document.getElementById(id);
const chart = find("chart");
const { split, line, views, stops } = data;
if (views.shown === undefined) return;  // no trial has a place in the plot

const dark = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)").matches;
const FAMILY = "system-ui, sans-serif";
// No buttons: they cover the plot, and one would upload the data to a web service.
const CONFIG = { responsive: true, displayModeBar: false };
const color = name => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

const points = data.dots.filter(dot => dot.kind === "front");
// What is pointed at, what was clicked, and what the limits or the click chose.
const state = { marked: null, picked: null, chosen: null };

/* --- The scatter plot --- */

const STYLES = {
  untrained: { size: 9, symbol: "line-ns-open", opacity: 0.8, outline: 1.5 },
  stopped: { size: 9, symbol: "triangle-down-open", opacity: 0.8, outline: 1.2 },
  searched: { size: 6, symbol: "circle", opacity: 0.45, outline: 0 },
  infeasible: { size: 8, symbol: "x-thin-open", opacity: 0.7, outline: 1.5 },
  dominated: { size: 8, symbol: "circle", opacity: 0.6, outline: 0 },
  front: { size: 11, symbol: "circle", opacity: 1, outline: 0 },
};
const CROWD = 300;  // more marks of a kind are drawn smaller
const colorOf = kind => color(kind === "front" ? "front" : "faint");
const percent = share => 100 * share;

function isShown(kind) {
  const box = document.querySelector(`.key input[name="${kind === "untrained" ? "stopped" : kind}"]`);
  return box === null || box.checked;
}

const shownDots = () => data.dots.filter(dot => isShown(dot.kind));

function cloud(kind) {
  const own = data.dots.filter(dot => dot.kind === kind);
  const places = kind === "front" ? namePlaces(own) : [], untrained = kind === "untrained";
  const style = own.length > CROWD && kind !== "front" ? { ...STYLES[kind], size: 5, opacity: 0.35 } : STYLES[kind];
  const bar = { type: "data", symmetric: false, width: 0, color: colorOf(kind) };
  return {
    type: "scatter", name: kind, visible: isShown(kind),
    mode: kind === "front" ? "markers+text" : "markers",
    x: own.map(dot => dot.latency_ms),
    // What was not trained has no accuracy: it stands on the lower edge, whatever the zoom.
    y: own.map(dot => untrained ? 0.015 : percent(dot.accuracy)), yaxis: untrained ? "y2" : "y",
    customdata: own.map(dot => dot.trial),
    error_x: {
      ...bar, thickness: 1.3, visible: !untrained,
      array: own.map(dot => dot.high_ms - dot.latency_ms),
      arrayminus: own.map(dot => dot.latency_ms - dot.low_ms),
    },
    error_y: {
      ...bar, thickness: 1, visible: split === "Test" && !untrained,
      array: own.map(dot => percent(dot.accuracy_high - dot.accuracy)),
      arrayminus: own.map(dot => percent(dot.accuracy - dot.accuracy_low)),
    },
    opacity: style.opacity, cliponaxis: false,
    marker: {
      size: style.size, symbol: style.symbol, color: colorOf(kind),
      line: { width: style.outline, color: colorOf(kind) },
    },
    text: own.map((dot, i) => dot.original || !places[i] ? "" : named(dot)),
    textposition: own.map((_, i) => places[i] ?? PLACES[0]),
    textfont: { color: colorOf(kind), size: 12, weight: "bold" },
    hovertext: own.map(dot => dot.hover), hoverinfo: "text",
  };
}

/* Above left, where a rising front leaves room; elsewhere where a dot nearby has its name. A fifth
   dot nearby has none. */
const PLACES = ["top left", "bottom right", "top right", "bottom left"];

function namePlaces(own) {
  const { lowest, highest, fastest, slowest } = bounds();
  const x = dot => views.shown.log_latency
    ? Math.log(dot.latency_ms / fastest) / Math.log(slowest / fastest)
    : (dot.latency_ms - fastest) / (slowest - fastest);
  const near = (one, other) => Math.abs(x(one) - x(other)) < 0.06
    && Math.abs(one.accuracy - other.accuracy) < 0.04 * (highest - lowest);
  const places = [];
  own.forEach((dot, i) => {
    const taken = places.filter((_, j) => near(dot, own[j]));
    places[i] = PLACES.find(place => !taken.includes(place)) ?? null;
  });
  return places;
}

const named = dot => dot.tie === null ? dot.trial : `${dot.trial} ${dot.tie}`;

function staircase() {
  return {
    type: "scatter", mode: "lines", name: "staircase", hoverinfo: "skip", opacity: 0.6,
    x: line.map(step => step[0]), y: line.map(step => percent(step[1])),
    line: { color: color("front"), width: 2, shape: "hv" },
  };
}

function rings(name, own, symbol, size, text) {
  return {
    type: "scatter", mode: "markers+text", name, hoverinfo: "skip", cliponaxis: false,
    x: own.map(dot => dot.latency_ms), y: own.map(dot => percent(dot.accuracy)),
    text: own.map(text), textposition: "bottom center",  // the others are above
    textfont: { color: color(name), size: 12, weight: "bold" },
    marker: { symbol, size, color: color(name), line: { width: 2, color: color(name) } },
  };
}

function traces() {
  const tied = points.filter(dot => dot.tie !== null);
  const original = data.dots.filter(dot => dot.original && dot.accuracy !== null);
  return [
    cloud("untrained"), cloud("stopped"), cloud("searched"), cloud("infeasible"),
    cloud("dominated"), staircase(), rings("tie", tied, "circle-open", 19, () => ""),
    cloud("front"), rings("original", original, "square-open", 25, named),
  ];
}

/* The window: wide enough for all that is shown, but for what is far worse than the rest. */
function bounds() {
  const shown = Object.keys(views).filter(kind => kind === "shown" || isShown(kind));
  const dots = shownDots();
  return {
    lowest: Math.min(...shown.map(kind => views[kind].lowest)),
    highest: Math.max(...shown.map(kind => views[kind].highest)),
    fastest: dots.reduce((least, dot) => Math.min(least, dot.low_ms), Infinity),
    slowest: dots.reduce((most, dot) => Math.max(most, dot.high_ms), 0),
  };
}

function latencyRange({ fastest, slowest }) {
  if (views.shown.log_latency) {
    const [low, high] = [Math.log10(fastest), Math.log10(slowest)];
    return [low - 0.08 * (high - low), high + 0.06 * (high - low)];
  }
  const margin = 0.08 * (slowest - fastest) || 0.1 * slowest;
  return [Math.max(0, fastest - margin), slowest + margin];
}

function axis() {
  return {
    color: color("quiet"), gridcolor: color("grid"), linecolor: color("faint"),
    zeroline: false, showline: true, rangemode: "nonnegative", fixedrange: touch, automargin: true,
  };
}

function basicLayout() {
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    font: { family: FAMILY, size: 13, color: color("ink") },
    margin: { l: 50, r: 15, t: 10, b: 45 }, dragmode: touch ? false : "zoom",
    hoverlabel: {
      align: "left", bgcolor: color("page"), bordercolor: color("faint"),
      font: { family: FAMILY, color: color("ink"), size: 12.5 },
    },
  };
}

const titled = text => ({ standoff: 14, font: { size: 14, color: color("ink") }, text });

function layout() {
  const scale = views.shown.log_latency ? ", log scale" : "", window = bounds();
  return {
    ...basicLayout(), hovermode: "closest", shapes: shapes(window),
    xaxis: {
      ...axis(), title: titled(`Latency (ms${scale}) with its interval`), range: latencyRange(window),
      // With few ticks asked for, a logarithmic axis is labelled at 1, 2 and 5.
      ...(views.shown.log_latency ? { type: "log", nticks: 3, tickformat: "~r" } : { type: "linear" }),
      ticks: "outside", ticklen: 6, minor: { ticks: "outside", ticklen: 3 },
    },
    yaxis: {
      ...axis(), title: titled(`${split} accuracy`), ticksuffix: " %",
      range: [percent(window.lowest), percent(window.highest)],
    },
    yaxis2: { overlaying: "y", range: [0, 1], visible: false, fixedrange: true },
  };
}

/* Limits and rings are shapes, because these alone move without drawing every trial anew. */
function shapes(window) {
  const { budget, floor } = limits();
  return [...veils(window, budget, floor), ...ring(state.marked, "ink", 12), ...ring(state.chosen, "choice", 14)];
}

function veils(window, budget, floor) {
  const veil = { type: "rect", layer: "above", line: { width: 0 }, fillcolor: color("veil") };
  const edge = { type: "line", layer: "above", line: { width: 2, dash: "dot", color: color("choice") } };
  const drawn = [];
  if (budget !== null) {
    const x0 = Number(budget), across = { yref: "paper", y0: 0, y1: 1 };
    const end = latencyRange(window)[1], x1 = views.shown.log_latency ? 10 ** end : end;
    drawn.push({ ...veil, ...across, x0, x1: Math.max(x0, x1) }, { ...edge, ...across, x0, x1: x0 });
  }
  if (floor !== null) {
    const y1 = percent(Number(floor)), along = { xref: "paper", x0: 0, x1: 1 };
    drawn.push({ ...veil, ...along, y0: 0, y1 }, { ...edge, ...along, y0: y1, y1 });
  }
  return drawn;
}

function ring(dot, name, radius) {
  if (dot === null || dot.accuracy === null) return [];
  // Four curves, because a circle in pixels goes wrong on a logarithmic axis.
  const r = radius, k = 0.5523 * radius;
  const path = `M${r},0C${r},${k} ${k},${r} 0,${r}C${-k},${r} ${-r},${k} ${-r},0`
    + `C${-r},${-k} ${-k},${-r} 0,${-r}C${k},${-r} ${r},${-k} ${r},0Z`;
  return [{
    type: "path", path, layer: "above", line: { width: 3, color: color(name) },
    xsizemode: "pixel", ysizemode: "pixel", xanchor: dot.latency_ms, yanchor: percent(dot.accuracy),
  }];
}

function draw() {
  Plotly.react(chart, traces(), layout(), CONFIG);
  const { lowest } = bounds();
  const below = shownDots().filter(dot => dot.accuracy !== null && dot.accuracy < lowest).length;
  find("beyond").textContent =
    below === 0 ? "" : below === 1 ? "1 trial lies below this view." : `${below} trials lie below this view.`;
}
