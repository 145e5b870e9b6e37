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
