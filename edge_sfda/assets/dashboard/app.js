"use strict";
// The page asks; the server never pushes: a slow page gets fewer pictures and nobody waits for it.

const PICTURE_MS = 100, STATE_MS = 1000, KEPT_POINTS = 900, KEPT_EVENTS = 200;
const CURVES = {
  doubt: ["Shift", " spreads", 6],
  uncertainty: ["Uncertainty", "", null],
  reliability: ["Reliability of labels", "", null],
  agreement: ["Student agrees", "", null],
  loss: ["Loss", "", null],
  fps: ["Frames a second", "", null],
  latency_ms: ["Latency", " ms", null],
};
const SCALES = { confidence: "confidence of each pixel", reliability: "reliability of the teacher's label, on a frame that is learned from" };
const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

const have = { points: 0, events: 0, picture: 0 };
let view = "overlay", shown = "", points = [], swapsShown = "", signedIn = true;

const wait = (ms) => new Promise((done) => setTimeout(done, ms));

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  const token = sessionStorage.getItem("token");
  if (token) headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (answer.status === 401) {
    signedIn = false;
    $("login").hidden = false;
    throw new Error("the dashboard needs its token");
  }
  return answer;
}

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

const number = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));

// --- the picture ---

async function showPictures() {
  for (;;) {
    const began = performance.now();
    if (!document.hidden && signedIn) {
      try {
        const wanted = view;
        const answer = await ask(`api/view/${wanted}.jpg?have=${shown === wanted ? have.picture : 0}`);
        if (answer.status === 200) {
          const url = URL.createObjectURL(await answer.blob());
          const before = $("picture").src;
          $("picture").src = url;
          $("picture").hidden = false;
          $("empty").hidden = true;
          if (before) URL.revokeObjectURL(before);
          have.picture = Number(answer.headers.get("X-Number"));
          shown = wanted;
        } else if (shown !== wanted) {
          $("picture").hidden = true;
          $("empty").hidden = false;
          $("empty").textContent = wanted === "reliability" ? "Known from the first burst on." : "No picture yet.";
        }
      } catch { await wait(STATE_MS); }
    }
    await wait(Math.max(0, PICTURE_MS - (performance.now() - began)));
  }
}

for (const button of document.querySelectorAll("[data-view]")) {
  button.addEventListener("click", () => {
    view = button.dataset.view;
    for (const other of document.querySelectorAll("[data-view]")) other.setAttribute("aria-pressed", String(other === button));
    $("scale").hidden = !(view in SCALES);
    $("scale-name").textContent = SCALES[view] || "";
  });
}

// --- everything else ---

async function showState() {
  for (;;) {
    if (!document.hidden && signedIn) {
      try {
        const answer = await ask(`api/state?points=${have.points}&events=${have.events}`);
        const state = await answer.json();
        if (state.history.count < have.points) { location.reload(); return; } // another run
        trouble("");
        showStatus(state.status);
        showShares(state.classes, state.shares);
        showCurves(state.history);
        showSwaps(state.swaps);
        showEvents(state.events);
      } catch (error) {
        trouble(signedIn ? "The loop does not answer; trying again." : error.message);
      }
    }
    await wait(STATE_MS);
  }
}

function showStatus(status) {
  $("phase").textContent = status.phase;
  $("phase").className = `pill ${status.phase}`;
  $("detail").textContent = status.detail;
  $("generation").textContent = status.generation === 0 ? "0 (source)" : status.generation;
  $("fps").textContent = number(status.fps, 1);
  $("latency").textContent = status.latency_ms[1] === null ? "–" : `${number(status.latency_ms[1], 0)} ms`;
  $("frames").textContent = status.frames.toLocaleString("en");
  $("dropped").textContent = status.capture.dropped.toLocaleString("en");
  $("learned").textContent = `${number(status.learned_s, 0)} s`;
  $("stale").hidden = !status.stale || status.frames === 0;
  if (status.capture.trouble) trouble(status.capture.trouble);
  $("burst").textContent = status.steps ? `step ${status.step} of ${status.steps}` : "none under way";
  $("progress").value = status.steps ? status.step / status.steps : 0;
  const off = status.phase === "off", paused = status.phase === "paused";
  const usable = { pause: !off && !paused, resume: paused, adapt: !off && status.phase !== "adapting" && !paused,
                   accept: status.phase === "recommending", rollback: status.generation > 0 };
  for (const button of document.querySelectorAll("[data-do]")) button.disabled = !usable[button.dataset.do];
}

function showShares(classes, shares) {
  const list = $("shares");
  if (list.children.length !== classes.names.length) {
    list.replaceChildren(...classes.names.map((name, index) => {
      const row = make("li"), swatch = make("b"), track = make("span"), bar = make("u");
      swatch.style.backgroundColor = `rgb(${classes.palette[index].join(",")})`;
      track.append(bar);
      row.append(swatch, make("span", name), track, make("span", "–"));
      return row;
    }));
  }
  shares.forEach((share, index) => {
    const row = list.children[index];
    row.querySelector("u").style.width = `${100 * share}%`;
    row.lastElementChild.textContent = `${(100 * share).toFixed(1)} %`;
  });
}

function showCurves(history) {
  have.points = history.count;
  points = points.concat(history.points).slice(-KEPT_POINTS);
  const box = $("curves");
  history.curves.forEach((name, index) => {
    const [title, unit, bound] = CURVES[name];
    let card = box.children[index];
    if (!card) {
      card = make("div", undefined, "curve");
      const heading = make("h3", title);
      heading.append(make("span", "–"));
      const svg = document.createElementNS(SVG, "svg");
      svg.setAttribute("viewBox", "0 0 100 100");
      svg.setAttribute("preserveAspectRatio", "none");
      svg.setAttribute("role", "img");
      svg.setAttribute("aria-label", title);
      svg.append(document.createElementNS(SVG, "line"), document.createElementNS(SVG, "path"));
      card.append(heading, svg);
      box.append(card);
    }
    const values = points.map((point) => point[index + 1]);
    const known = values.filter((value) => value !== null);
    const last = values.length ? values[values.length - 1] : null;
    const digits = Math.max(0, ...known) >= 20 ? 0 : Math.max(0, ...known) >= 2 ? 1 : 3;
    const text = last === null ? (known.length ? "not now" : "–") : `${last.toFixed(digits)}${unit}`;
    card.querySelector("h3 span").textContent = text;
    draw(card.querySelector("svg"), points.map((point) => point[0]), values, bound);
  });
}

function draw(svg, times, values, bound) {
  const known = values.filter((value) => value !== null);
  const high = Math.max(...known, bound ?? -Infinity), low = Math.min(...known, 0);
  if (!known.length) return;
  const first = times[0], span = Math.max(times[times.length - 1] - first, 1);
  const y = (value) => 95 - 90 * (value - low) / Math.max(high - low, 1e-9);
  let path = "", open = false;
  values.forEach((value, index) => {
    if (value === null) { open = false; return; }
    path += `${open ? "L" : "M"}${(100 * (times[index] - first) / span).toFixed(2)} ${y(value).toFixed(2)}`;
    open = true;
  });
  svg.querySelector("path").setAttribute("d", path);
  const line = svg.querySelector("line");
  line.setAttribute("visibility", bound === null ? "hidden" : "visible");
  if (bound !== null) for (const [key, value] of [["x1", 0], ["x2", 100], ["y1", y(bound)], ["y2", y(bound)]]) line.setAttribute(key, value);
}

async function showSwaps(swaps) {
  const state = JSON.stringify(swaps);
  if (!swaps.length || state === swapsShown) return;
  swapsShown = state;
  const cards = [...swaps].reverse().map((swap) => {
    const card = make("li"), pair = make("div", undefined, "pair");
    card.append(make("strong", `${new Date(1000 * swap.at).toLocaleTimeString("en-GB")}  generation ${swap.generation}`), pair, make("p", swap.reason));
    for (const side of ["before", "after"]) {
      const figure = make("figure"), image = make("img");
      image.alt = `${side} the swap`;
      figure.append(image, make("figcaption", side));
      pair.append(figure);
      if (swap[side]) load(image, `api/swap/${swap.number}/${side}.jpg`);
    }
    return card;
  });
  for (const image of $("swaps").querySelectorAll("img")) if (image.src) URL.revokeObjectURL(image.src);
  $("swaps").replaceChildren(...cards);
}

async function load(image, path) {
  try {
    const answer = await ask(path);
    if (answer.ok) image.src = URL.createObjectURL(await answer.blob());
  } catch { swapsShown = ""; }
}

function showEvents(events) {
  const list = $("events");
  for (const event of events) {
    have.events = Math.max(have.events, event.number);
    const row = make("li", undefined, event.event.split(" ")[0]);
    const words = event.detail || event.why || event.reason || "";
    row.append(make("time", new Date(1000 * event.at).toLocaleTimeString("en-GB")), `${event.phase || event.event}${words ? `: ${words}` : ""}`);
    list.prepend(row);
  }
  while (list.children.length > KEPT_EVENTS) list.lastElementChild.remove();
}

for (const button of document.querySelectorAll("[data-do]")) {
  button.addEventListener("click", async () => {
    if (button.dataset.do === "rollback" && !confirm("Go back to the network before?")) return;
    button.disabled = true;
    try { await ask(`api/do/${button.dataset.do}`, { method: "POST", headers: { "X-Edge-SFDA": "1" } }); } catch (error) { trouble(error.message); }
  });
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  signedIn = true;
  $("login").hidden = true;
});

showPictures();
showState();
