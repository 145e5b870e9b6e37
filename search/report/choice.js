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
    none ? "No point" : chosen.original ? "The original" : `Trial ${named(chosen)}`;
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
