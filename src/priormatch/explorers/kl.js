// Move the mean and the scale of a posterior; see what the KL term costs and where it pulls.
import { announcer, arrows, begin, button, follow, make, number, reducedMotion, saver, slider, valueCells } from "./controls.js";

const MEAN = 3; // means from -3 to 3
const LOW = Math.log(0.05), HIGH = Math.log(3); // logarithms of scales
const WIDTH = 320, HEIGHT = 240, TOP = 1.3; // of the densities
const LEVELS = [0.5, 1, 2, 3, 4, 6];

const square = (x) => x * x;
const klFromPrior = (mean, scale) => 0.5 * (square(mean) + square(scale) - 1) - Math.log(scale);
const klToPrior = (mean, scale) => 0.5 * ((1 + square(mean)) / square(scale) - 1) + Math.log(scale);
const density = (x, mean, scale) => Math.exp(-0.5 * square((x - mean) / scale)) / (scale * Math.sqrt(2 * Math.PI));
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");

function text(x, y, words, attributes = {}) {
  return make("text", { x, y, "text-anchor": "middle", ...attributes }, words);
}

function densities() {
  const x = (value) => ((value + 4.5) / 9) * WIDTH, y = (value) => HEIGHT - 26 - (Math.min(value, TOP) / TOP) * (HEIGHT - 40);
  const curve = (mean, scale) => {
    const values = Array.from({ length: 451 }, (_, i) => i / 50 - 4.5);
    // A narrow posterior must not lose its peak between two points.
    if (scale < 0.2) values.push(...Array.from({ length: 81 }, (_, i) => mean + (i / 10 - 4) * scale));
    return path(values.sort((a, b) => a - b).map((value) => [x(value), y(density(value, mean, scale))]));
  };
  const posterior = make("path", { class: "explorer-q" });
  const node = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" },
    make("line", { class: "explorer-axis", x1: 0, x2: WIDTH, y1: HEIGHT - 26, y2: HEIGHT - 26 }),
    ...[-4, -2, 0, 2, 4].map((tick) => text(x(tick), HEIGHT - 10, number(tick, 0))),
    make("path", { class: "explorer-p", d: curve(0, 1) }), posterior,
    make("line", { class: "explorer-p", x1: 6, x2: 26, y1: 14, y2: 14 }), text(32, 18, "prior p", { "text-anchor": "start" }),
    make("line", { class: "explorer-q", x1: 6, x2: 26, y1: 32, y2: 32 }), text(32, 36, "posterior Q", { "text-anchor": "start" }));
  return {
    node,
    update(mean, scale) {
      posterior.setAttribute("d", curve(mean, scale));
      node.setAttribute("aria-label", `Densities of the prior N(0, 1) and of a posterior with mean ${number(mean, 2)} and scale ${number(scale, 3)}`);
    },
  };
}

function parameters() {
  const left = 52, bottom = 34, wide = WIDTH - left - 6, high = HEIGHT - bottom - 6;
  const x = (mean) => left + ((mean + MEAN) / (2 * MEAN)) * wide;
  const y = (log) => 6 + ((HIGH - log) / (HIGH - LOW)) * high;
  // At a scale, the KL has the level at one mean and its opposite; the ends are where that mean is 0.
  const contour = (level) => {
    const halves = { 1: "", "-1": "" };
    let inside = false;
    for (let log = LOW; log <= HIGH + 1e-9; log += 0.005) {
      const mean = Math.sqrt(Math.max(0, 2 * level - square(Math.exp(log)) + 1 + 2 * log));
      const seen = mean <= MEAN && klFromPrior(0, Math.exp(log)) < level + 0.02;
      for (const sign of [1, -1]) if (seen) halves[sign] += path([[x(sign * mean), y(log)]]).replace("M", inside ? "L" : "M");
      inside = seen;
    }
    return make("path", { class: "explorer-contour", d: halves[1] + halves[-1] });
  };
  const label = (level) => {
    // Where the contour crosses the vertical axis below the origin.
    let log = -0.2;
    while (klFromPrior(0, Math.exp(log)) < level) log -= 0.005;
    return log > LOW ? [text(x(0), y(log) + 3, String(level), { class: "explorer-level" })] : [];
  };
  const arrow = make("path", { class: "explorer-arrow" });
  const point = make("circle", { class: "explorer-point", r: 7 });
  const trail = make("path", { class: "explorer-trail" });
  const node = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}` },
    ...LEVELS.map(contour), ...LEVELS.flatMap(label),
    make("circle", { class: "explorer-goal", cx: x(0), cy: y(0), r: 5 }), trail, arrow, point,
    ...[-2, 0, 2].map((tick) => text(x(tick), HEIGHT - 18, number(tick, 0))),
    text(x(0), HEIGHT - 3, "mean µ"),
    ...[0.1, 0.3, 1, 3].map((tick) => text(left - 5, y(Math.log(tick)) + 4, String(tick), { "text-anchor": "end" })),
    text(12, HEIGHT / 2 - 14, "scale σ", { transform: `rotate(-90 12 ${HEIGHT / 2 - 14})` }));
  return {
    node,
    /** Turn shares of the picture's size into a mean and the logarithm of a scale. */
    at: (right, down) => [((right * WIDTH - left) / wide) * 2 * MEAN - MEAN, HIGH - ((down * HEIGHT - 6) / high) * (HIGH - LOW)],
    update(mean, scale) {
      const here = [x(mean), y(Math.log(scale))];
      const pull = [-mean, 1 - square(scale)];
      // Half of the negative gradient, in the units of the axes.
      const there = [x(mean + pull[0] / 2), y(Math.log(scale) + pull[1] / 2)];
      const length = Math.hypot(there[0] - here[0], there[1] - here[1]);
      const [dx, dy] = [(there[0] - here[0]) / length, (there[1] - here[1]) / length];
      const head = [there, [there[0] - 7 * dx + 4 * dy, there[1] - 7 * dy - 4 * dx], [there[0] - 7 * dx - 4 * dy, there[1] - 7 * dy + 4 * dx], there];
      arrow.setAttribute("d", length > 1 ? path([here, there]) + path(head) : "");
      point.setAttribute("cx", here[0]);
      point.setAttribute("cy", here[1]);
    },
    trace: (points) => trail.setAttribute("d", path(points.map(([mean, log]) => [x(mean), y(log)]))),
  };
}

function render({ model, el }) {
  begin(el, "kl");
  const save = saver(model);
  const say = announcer(el);
  const left = densities(), right = parameters();
  const move = (mean, scale) => {
    model.set("mu", Math.round(100 * clamp(mean, -MEAN, MEAN)) / 100);
    model.set("sigma", Math.round(1000 * clamp(scale, 0.05, 3)) / 1000);
    save();
  };
  let falling = null;
  const stop = () => {
    cancelAnimationFrame(falling);
    falling = null;
    right.trace([]);
  };
  const byHand = (mean, scale) => {
    stop();
    move(mean, scale);
  };
  const fall = () => {
    stop();
    let mean = model.get("mu"), log = Math.log(model.get("sigma"));
    if (reducedMotion()) return move(0, 1);
    const points = [[mean, log]];
    const step = () => {
      mean -= 0.05 * mean;
      log -= 0.05 * (Math.exp(2 * log) - 1);
      points.push([mean, log]);
      right.trace(points);
      const done = Math.hypot(mean, log) < 0.004;
      move(done ? 0 : mean, done ? 1 : Math.exp(log));
      falling = done ? null : requestAnimationFrame(step);
    };
    falling = requestAnimationFrame(step);
  };
  const sliders = {
    mu: slider({ label: "mean µ", min: -MEAN, max: MEAN, step: 0.01, say: (mean) => number(mean, 2), input: (mean) => byHand(mean, model.get("sigma")) }),
    sigma: slider({ label: "scale σ", min: LOW, max: HIGH, step: 0.01, say: (log) => number(Math.exp(log), 3), input: (log) => byHand(model.get("mu"), Math.exp(log)) }),
  };
  const values = valueCells(["there", "back", "mean", "scale"]);
  const table = make("dl", { class: "explorer-table" },
    make("dt", {}, "KL(Q‖p)"), values.there, make("dt", {}, "KL(p‖Q)"), values.back,
    make("dt", {}, "pull on µ, −µ"), values.mean, make("dt", {}, "pull on ln σ, 1 − σ²"), values.scale);

  const update = () => {
    const mean = model.get("mu"), scale = model.get("sigma");
    left.update(mean, scale);
    right.update(mean, scale);
    sliders.mu.update(mean);
    sliders.sigma.update(Math.log(scale));
    values.there.textContent = `${number(klFromPrior(mean, scale), 4)} nats`;
    values.back.textContent = `${number(klToPrior(mean, scale), 4)} nats`;
    values.mean.textContent = number(-mean, 2);
    values.scale.textContent = number(1 - square(scale), 2);
    say(`KL from the prior ${values.there.textContent}, the other way round ${values.back.textContent}`);
  };
  Object.entries({
    tabindex: "0",
    role: "application",
    class: "explorer-surface",
    "aria-label": "Plane of the mean and the scale. The arrow keys move the posterior, with Shift by small steps; Home goes to N(0, 1).",
  }).forEach((attribute) => right.node.setAttribute(...attribute));
  follow(right.node, (across, down) => {
    const [mean, log] = right.at(across, down);
    byHand(mean, Math.exp(log));
  }, { hover: false });
  arrows(right.node, (across, up, small) => {
    const size = small ? 0.01 : 0.1;
    byHand(model.get("mu") + size * across, model.get("sigma") * Math.exp(size * up));
  }, () => byHand(0, 1));

  el.append(
    make("div", { class: "explorer-pair" }, left.node, right.node),
    make("div", { class: "explorer-pair" },
      make("div", { class: "explorer-side" }, sliders.mu.node, sliders.sigma.node, button("Follow the pull", fall)), table));
  model.on("change:mu", update);
  model.on("change:sigma", update);
  update();
}

export default { render };
