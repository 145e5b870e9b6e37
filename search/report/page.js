"use strict";
(() => {
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

  /* --- The choice; search.pick has the same rules --- */

  const budgetSlider = find("budget"), floorSlider = find("floor");

  /* The limits as they are printed, null for none: a slider at its far end gives none. */
  function limits() {
    const budget = stops.latency_ms[Number(budgetSlider.value)] ?? null;
    const floor = stops.accuracy[Number(floorSlider.value) - 1] ?? null;
    return { budget, floor };
  }

  const preference = () => document.querySelector("input[name=prefer]:checked").value;
  const isFast = (dot, budget) => budget === null || dot.latency_ms <= Number(budget);
  const isAccurate = (dot, floor) => floor === null || dot.accuracy >= Number(floor);

  function best(candidates, prefer) {
    const byAccuracy = (a, b) => b.accuracy - a.accuracy, byLatency = (a, b) => a.latency_ms - b.latency_ms;
    const [first, second] = prefer === "latency" ? [byLatency, byAccuracy] : [byAccuracy, byLatency];
    const order = (a, b) => first(a, b) || second(a, b) || a.number - b.number;
    return [...candidates].sort(order)[0] ?? null;
  }

  const fixed = text => (100 * Number(text)).toFixed(Math.max(0, (text.split(".")[1] ?? "").length - 2));
  const shownBudget = budget => budget === null ? "no limit" : `${budget} ms`;
  const shownFloor = floor => floor === null ? "no limit" : `${fixed(floor)} %`;

  /* Says which limit leaves no point, and what the nearest points offer. */
  function obstacle({ budget, floor }) {
    const fast = points.filter(dot => isFast(dot, budget)), accurate = points.filter(dot => isAccurate(dot, floor));
    const offers = dot => `${dot.original ? "the original" : `trial ${dot.trial}`}, offers ${dot.brief}`;
    const fastest = best(points, "latency"), finest = best(points, "accuracy");
    const tooFast = `No point is as fast as ${shownBudget(budget)}: the fastest, ${offers(fastest)}.`;
    const tooFine = `No point reaches ${shownFloor(floor)}: the most accurate, ${offers(finest)}.`;
    if (fast.length === 0) return accurate.length === 0 ? `${tooFast} ${tooFine}` : tooFast;
    if (accurate.length === 0) return tooFine;
    return `The two limits leave no point together. Within ${shownBudget(budget)} the most accurate, ${offers(best(fast, "accuracy"))}; `
      + `from ${shownFloor(floor)} on the fastest, ${offers(best(accurate, "latency"))}.`;
  }

  function choose() {
    const within = points.filter(dot => isFast(dot, limits().budget) && isAccurate(dot, limits().floor));
    state.chosen = state.picked ?? best(within, preference());
    tellLimits();
    tellChoice();
    tellCommands();
    for (const place of document.querySelectorAll("#front tr[data-trial], .layers [data-trial]")) {
      place.classList.toggle("chosen", place.dataset.trial === state.chosen?.trial);
    }
  }

  function tellLimits() {
    const { budget, floor } = limits();
    find("budget-value").textContent = shownBudget(budget);
    find("floor-value").textContent = shownFloor(floor);
    budgetSlider.setAttribute("aria-valuetext", shownBudget(budget));
    floorSlider.setAttribute("aria-valuetext", shownFloor(floor));
  }

  function tellChoice() {
    const { chosen, picked } = state, none = chosen === null;
    find("choice").classList.toggle("none", none);
    find("choice-facts").hidden = none;
    find("choice-name").textContent =
      none ? "No point" : chosen.original ? "The original, trial 0" : `Trial ${named(chosen)}`;
    const facts = none ? [] : chosen.facts;
    document.querySelectorAll("#choice-facts dd").forEach((place, i) => { place.textContent = facts[i] ?? ""; });
    find("choice-note").textContent = [
      none ? obstacle(limits()) : "",
      picked === null ? "" : "You chose it; move a limit to go by limits again.",
      none || chosen.tie === null
        ? "" : `Tie ${chosen.tie} with ${chosen.tied.join(", ")}: neither latency nor accuracy tells them apart.`,
    ].filter(Boolean).join(" ");
  }

  function tellCommands() {
    const { chosen, picked } = state, { budget, floor } = limits();
    find("commands").hidden = chosen === null;
    find("by-number").hidden = picked !== null;
    const byLimits = [
      data.command,
      ...(budget === null ? [] : [`max_latency_ms=${budget}`]),
      ...(floor === null ? [] : [`min_accuracy=${floor}`]),
      `prefer=${preference()}`,
    ].join(" ");
    const byNumber = chosen === null ? "" : `${data.command} trial=${chosen.number}`;
    find("command").textContent = picked === null ? byLimits : byNumber;
    find("command-number").textContent = byNumber;
    find("copied").textContent = "";
  }

  function redecide() {
    state.picked = null;
    choose();
    redrawShapes();
  }

  const redrawShapes = () => Plotly.relayout(chart, { shapes: shapes(bounds()) });

  function pick(trial) {
    const dot = points.find(point => point.trial === trial);
    if (dot === undefined) return;
    state.picked = dot;
    choose();
    redrawShapes();
  }

  async function copy(code) {
    try {
      await navigator.clipboard.writeText(code.textContent);
      return "Copied.";
    } catch {  // there is none without https, and MLflow's frame may not use it
      getSelection().selectAllChildren(code);
      return document.execCommand("copy") ? "Copied." : "Selected: press Ctrl+C to copy.";
    }
  }

  function startChoice() {
    if (points.length === 0) {
      find("choose").hidden = true;
      document.querySelector(".choosable").hidden = true;
      return;
    }
    budgetSlider.max = stops.latency_ms.length;
    budgetSlider.value = budgetSlider.max;
    floorSlider.max = stops.accuracy.length;
    floorSlider.value = 0;
    find("choose").addEventListener("input", redecide);
    find("choose").addEventListener("submit", event => event.preventDefault());
    for (const button of document.querySelectorAll("[data-copies]")) {
      button.addEventListener("click", async () => {
        find("copied").textContent = await copy(find(button.dataset.copies));
      });
    }
    choose();
  }

  /* --- Table and plot point at each other --- */

  function mark(trial) {
    for (const row of document.querySelectorAll("#front tr.marked")) row.classList.remove("marked");
    document.querySelector(`#front tr[data-trial="${trial}"]`)?.classList.add("marked");
  }

  function pointAt(row, on) {
    const trial = row.dataset.trial;
    state.marked = on ? data.dots.find(dot => dot.trial === trial && isShown(dot.kind)) ?? null : null;
    mark(on ? trial : null);
    redrawShapes();
  }

  /* The hover text for those without a mouse. */
  function tell(row) {
    const curveNumber = chart.data.findIndex(trace => (trace.customdata ?? []).includes(row.dataset.trial) && trace.visible);
    if (curveNumber < 0) return;
    const pointNumber = chart.data[curveNumber].customdata.indexOf(row.dataset.trial);
    Plotly.Fx.hover(chart, [{ curveNumber, pointNumber }]);
  }

  function startTable() {
    for (const row of document.querySelectorAll("#front tr[data-trial]")) {
      row.addEventListener("mouseenter", () => pointAt(row, true));
      row.addEventListener("mouseleave", () => pointAt(row, false));
      row.addEventListener("focus", () => { pointAt(row, true); tell(row); });
      row.addEventListener("blur", () => { pointAt(row, false); Plotly.Fx.unhover(chart); });
      row.addEventListener("click", () => pick(row.dataset.trial));
      row.addEventListener("keydown", event => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();  // a space would scroll
        pick(row.dataset.trial);
      });
    }
    chart.on("plotly_hover", event => mark(event.points[0].customdata));
    chart.on("plotly_unhover", () => mark(null));
    chart.on("plotly_click", event => pick(event.points[0].customdata));
  }

  /* --- Parallel coordinates --- */

  function drawParallel() {
    const { axes, accuracies } = data.parallel;
    const font = { family: FAMILY, color: color("ink"), size: 12 };
    Plotly.react(find("parallel"), [{
      type: "parcoords", dimensions: axes, labelfont: { ...font, size: 13 }, tickfont: font,
      rangefont: { ...font, color: "rgba(0,0,0,0)" },  // the ticks say it already
      line: {
        color: accuracies, showscale: true,
        colorscale: [[0, color("low")], [0.6, color("middle")], [1, color("high")]],
        colorbar: { title: { text: "accuracy", side: "right" }, ticksuffix: " %", thickness: 12, outlinewidth: 0 },
      },
      unselected: { line: { color: color("faint"), opacity: 0.08 } },
    }], { ...basicLayout(), margin: { l: 60, r: 20, t: 45, b: 25 } }, CONFIG);
    const left = data.parallel.left_out;
    find("parallel-left-out").textContent =
      left === 0 ? "" : `${left} far worse ${left === 1 ? "trial is" : "trials are"} left out.`;
  }

  /* --- Progress --- */

  function drawProgress() {
    const { numbers, minutes, hypervolumes } = data.progress;
    const byTrial = document.querySelector("input[name=progress]:checked").value === "numbers";
    const x = byTrial ? numbers : minutes;
    Plotly.react(find("progress"), [{
      type: "scatter", mode: "lines", x, y: hypervolumes, customdata: numbers,
      line: { color: color("front"), width: 2.5, shape: "hv" },
      hovertemplate: `trial %{customdata}: hypervolume %{y:.4f}${byTrial ? "" : " after %{x:.1f} min"}<extra></extra>`,
    }], {
      ...basicLayout(), hovermode: "x",
      xaxis: { ...axis(), title: titled(byTrial ? "Trial" : "Minutes that trials took, together") },
      yaxis: { ...axis(), title: titled("Hypervolume"), rangemode: "tozero" },
    }, CONFIG);
  }

  /* --- Start --- */

  const drawn = [];

  /* Draws what lies further down only when it is about to be seen: lines take their time. */
  function drawWhenNear(section, drawing) {
    section.hidden = false;
    const start = () => {
      if (drawn.includes(drawing)) return;
      observer.disconnect();
      drawn.push(drawing);
      drawing();
    };
    const observer = new IntersectionObserver(entries => {
      if (entries.some(entry => entry.isIntersecting)) start();
    }, { rootMargin: "300px" });
    observer.observe(section);
    addEventListener("beforeprint", start);
  }

  drawn.push(draw);
  startChoice();
  draw();
  startTable();
  if (data.parallel.accuracies.length > 1) drawWhenNear(find("parallel-section"), drawParallel);
  if (data.progress.numbers.length > 1) drawWhenNear(find("progress-section"), drawProgress);
  document.querySelector(".key").addEventListener("change", draw);
  find("progress-by").addEventListener("change", drawProgress);
  dark.addEventListener("change", () => drawn.forEach(drawing => drawing()));
})();
