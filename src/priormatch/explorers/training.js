// Go through the training: the cloud of codes, the rate, and the mismatch at chosen epochs.
import { announcer, begin, button, choice, make, number, reducedMotion, setter, slider, valueCells } from "./controls.js";
import { tensorsOf } from "./network.js";
import { digitLegend, Plane } from "./plane.js";

const WIDTH = 300, HEIGHT = 120, LEFT = 30, BOTTOM = 22;

/** Small curves over the steps of the history, with marks at the present one; all but the first are dashed. */
function curve(label, epochs, lines, top, colour) {
  const x = (step) => LEFT + (step / (epochs.length - 1)) * (WIDTH - LEFT - 8);
  const y = (value) => 8 + (1 - value / top) * (HEIGHT - BOTTOM - 8);
  const now = make("line", { class: "explorer-axis", y1: 4, y2: HEIGHT - BOTTOM });
  const dots = lines.map(() => make("circle", { class: "explorer-point", r: 4.5, style: `fill:${colour}` }));
  const node = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label },
    make("line", { class: "explorer-axis", x1: LEFT, x2: WIDTH, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }),
    ...[0, top].map((tick) => make("text", { x: LEFT - 5, y: y(tick) + 4, "text-anchor": "end" }, String(tick))),
    ...[...epochs].map((epoch, i) => make("text", { x: x(i), y: HEIGHT - 6, "text-anchor": "middle" }, String(epoch))), now,
    ...lines.map((values, k) => make("path", { style: `stroke:${colour}`, "stroke-dasharray": k ? "4 3" : null, d: values.map((value, i) => `${i ? "L" : "M"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`).join("") })),
    ...dots);
  const at = (values, step) => values[Math.floor(step)] + (step % 1) * ((values[Math.ceil(step)] ?? 0) - values[Math.floor(step)]);
  return {
    node,
    update(step) {
      now.setAttribute("x1", x(step));
      now.setAttribute("x2", x(step));
      dots.forEach((dot, k) => {
        dot.setAttribute("cx", x(step));
        dot.setAttribute("cy", y(at(lines[k], step)));
      });
    },
  };
}

/** The same draws of N(0, 1) at each visit. */
function normal(size) {
  let seed = 333018;
  const uniform = () => (seed = (16807 * seed) % 2147483647) / 2147483647;
  return Float64Array.from({ length: size }, () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
}

const roundedUp = (error) => Math.ceil(1000 * error) / 1000;

async function render({ model, el }) {
  const history = await tensorsOf(model.get("history"));
  begin(el, "training");
  const set = setter(model);
  const say = announcer(el);
  const { epochs, labels } = history;
  const priorDraws = normal(2 * labels.length);
  const last = epochs.length - 1, pairs = 2 * labels.length;
  let shown = model.get("step"); // between two steps while it moves
  let moving = null;

  const between = (values) => {
    const low = Math.floor(shown), high = Math.ceil(shown), share = shown - low;
    return Float64Array.from({ length: pairs }, (_, i) => (1 - share) * values[low * pairs + i] + share * values[high * pairs + i]);
  };
  const plane = new Plane(
    () => plane.circles(plane.ink, getComputedStyle(plane.node).getPropertyValue("--explorer-paper")),
    () => {
      if (model.get("points") === "prior") plane.dots(priorDraws, labels, 2.2, plane.ink);
      else if (model.get("points") === "posteriors") plane.posteriors({ means: between(history.means), scales: between(history.scales), labels });
      else plane.dots(between(history[model.get("points")]), labels, 2.2);
    },
  );
  plane.asPicture();

  const value = (name, step, k = 0) => history[name][2 * step + k];
  const series = (name) => Array.from(epochs, (_, i) => value(name, i));
  const rate = curve("The rate over the epochs", epochs, [series("rate")], 8, "var(--explorer-posterior)");
  const mismatch = curve("The mismatch over the epochs, bounded from both sides", epochs, [series("in_sample_kl"), series("held_out_kl")], 1.5, "var(--explorer-aggregated)");
  const values = valueCells(["rate", "in_sample_kl", "held_out_kl"], "span");
  const range = slider({ label: "epoch", min: 0, max: last, step: 1, say: (step) => String(epochs[step]), input: set("step") });
  const points = choice({
    legend: "Show",
    options: [["codes", "draws"], ["means", "means"], ["posteriors", "posteriors"], ["prior", "N(0, I)"]],
    change: set("points"),
  });
  const draw = () => {
    plane.drawTop();
    rate.update(shown);
    mismatch.update(shown);
  };
  const glide = () => {
    const goal = model.get("step");
    cancelAnimationFrame(moving);
    const frame = () => {
      shown = Math.abs(goal - shown) < 0.02 || reducedMotion() ? goal : shown + 0.18 * (goal - shown);
      draw();
      if (shown !== goal) moving = requestAnimationFrame(frame);
    };
    frame();
  };
  let playing = null;
  const play = button("Play the training", () => {
    const stop = playing !== null;
    clearInterval(playing);
    playing = null;
    play.textContent = "Play the training";
    if (stop) return;
    play.textContent = "Stop";
    if (model.get("step") === last) set("step")(0);
    playing = setInterval(() => {
      set("step")(Math.min(last, model.get("step") + 1));
      if (model.get("step") === last) play.click();
    }, 900);
  });
  const update = () => {
    const step = model.get("step");
    range.update(step);
    for (const name of Object.keys(values)) values[name].textContent = `${number(value(name, step), 3)} ± ${number(roundedUp(value(name, step, 1)), 3)}`;
    const words = `after ${epochs[step]} epochs the rate is ${values.rate.textContent} nats, the lower bound of the mismatch ${values.held_out_kl.textContent}, its upper estimate ${values.in_sample_kl.textContent} nats`;
    plane.top.setAttribute("aria-label", `Codes of ${labels.length} test images in the latent plane; ${words}`);
    say(words);
    glide();
  };

  el.append(make("div", { class: "explorer-columns" },
    make("div", { class: "explorer-main" }, plane.node, digitLegend()),
    make("div", { class: "explorer-side" }, range.node, play, points.node,
      make("p", { class: "explorer-line" }, "rate ", values.rate, " nats"), rate.node,
      make("p", { class: "explorer-line" }, "mismatch: upper estimate ", values.in_sample_kl,
        ", lower bound (dashes) ", values.held_out_kl, " nats"), mismatch.node)));
  model.on("change:step", update);
  model.on("change:points", () => {
    points.update(model.get("points"));
    draw();
  });
  points.update(model.get("points"));
  update();
}

export default { render };
