// Slide z along (0, 10): the decoded digit, and whose posterior lies there.
import { announcer, arrows, begin, digitCanvas, follow, make, number, pictureOf, saver, slider, valueCells } from "./controls.js";
import { sigmoid, tensorsOf, whenDecoderIsWanted } from "./network.js";
import { DIGIT_COLOURS, digitLegend } from "./plane.js";

const STEP = 0.01, PLACES = 999, LENGTH = 10;
const WIDTH = 640, HEIGHT = 190, TOP = 0.4; // TOP of the densities
const PRIOR = 1 / LENGTH;

const x = (z) => (z / LENGTH) * WIDTH;
const y = (density) => HEIGHT * (1 - Math.min(density, TOP) / TOP);
const nodeOf = (z) => Math.round(z / STEP) - 1;

/** Stack the densities of the digits; each takes its share of q(z). */
function areas(density) {
  const below = new Float64Array(PLACES);
  return DIGIT_COLOURS.map((colour, digit) => {
    const lower = [], upper = [];
    for (let i = 0; i < PLACES; i += 2) {
      const place = x((i + 1) * STEP).toFixed(1);
      lower.unshift(`L${place} ${y(below[i]).toFixed(1)}`);
      below[i] += density[digit * PLACES + i];
      upper.push(`${i ? "L" : "M"}${place} ${y(below[i]).toFixed(1)}`);
    }
    return make("path", { class: "explorer-area", style: `fill:${colour}`, d: `${upper.join("")}${lower.join("")}Z` });
  });
}

async function render({ model, el }) {
  const codes = await tensorsOf(model.get("codes"));
  begin(el, "interval");
  const save = saver(model);
  const say = announcer(el);
  let decoder = null;

  const logDensity = (image, z) =>
    (codes.alpha[image] - 1) * Math.log(z / LENGTH) + (codes.beta[image] - 1) * Math.log1p(-z / LENGTH) + codes.constant[image];
  const line = make("line", { class: "explorer-here", y1: 0, y2: HEIGHT });
  const bump = make("path", { class: "explorer-q" });
  const plot = make("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", class: "explorer-surface", tabindex: "0", role: "application",
    "aria-label": "The interval from 0 to 10. The arrow keys move z, with Shift by small steps; Home goes to the middle.",
  },
  ...areas(codes.density),
  make("line", { class: "explorer-prior", x1: 0, x2: WIDTH, y1: y(PRIOR), y2: y(PRIOR) }),
  bump, line);

  const digit = digitCanvas("");
  const test = digitCanvas("", "explorer-digit");
  const status = make("p", { class: "explorer-status" });
  const note = make("p", { class: "explorer-note" });
  const values = valueCells(["density", "shares", "kl"]);
  const move = (z) => {
    model.set("z", Math.round(Math.min(LENGTH - STEP, Math.max(STEP, z)) / STEP) / 100);
    save();
  };
  const range = slider({ label: "z", min: STEP, max: LENGTH - STEP, step: STEP, say: (z) => number(z, 2), input: move });

  const update = () => {
    const z = model.get("z"), node = nodeOf(z);
    if (decoder) digit.draw(Float64Array.from(decoder.forward([z - LENGTH / 2]), sigmoid));
    range.update(z);
    line.setAttribute("x1", x(z));
    line.setAttribute("x2", x(z));
    const joint = DIGIT_COLOURS.map((_, k) => codes.density[k * PLACES + node]);
    const total = joint.reduce((sum, one) => sum + one, 0);
    const shares = joint.map((one, k) => [k, one / total]).sort((a, b) => b[1] - a[1]).filter(([, share], i) => i < 3 && share >= 0.01);
    values.density.textContent = `${number(total, 3)}, prior 0.100`;
    values.shares.textContent = shares.map(([k, share]) => `${k}: ${number(100 * share, 0)} %`).join(", ");
    let nearest = 0;
    for (let i = 1; i < codes.labels.length; i++) if (logDensity(i, z) > logDensity(nearest, z)) nearest = i;
    test.draw(Float64Array.from(codes.images.subarray(784 * nearest, 784 * (nearest + 1))));
    values.kl.textContent = `${number(codes.kl[nearest], 2)} nats`;
    const points = Array.from({ length: PLACES }, (_, i) => logDensity(nearest, (i + 1) * STEP));
    const peak = Math.max(...points);
    bump.setAttribute("d", points.map((value, i) => `${i ? "L" : "M"}${x((i + 1) * STEP).toFixed(1)} ${(HEIGHT - 60 * Math.exp(value - peak)).toFixed(1)}`).join(""));
    digit.node.setAttribute("aria-label", `The picture that the decoder makes at z = ${number(z, 2)}`);
    test.node.setAttribute("aria-label", `A test image, a ${codes.labels[nearest]}, whose posterior lies at z`);
    note.textContent = `test image, a ${codes.labels[nearest]}`;
    say(`At z = ${number(z, 2)} the density of codes is ${number(total, 3)}, where the prior has 0.100; digits ${values.shares.textContent}.`);
  };
  follow(plot, (right) => move(right * LENGTH));
  arrows(plot, (right, up, small) => move(model.get("z") + (right + up) * (small ? STEP : 0.1)), () => move(LENGTH / 2));

  const picture = (canvas, ...caption) => make("div", { class: "explorer-card" }, canvas, ...caption);
  const ticks = make("div", { class: "explorer-ticks", "aria-hidden": "true" }, ...[0, 2, 4, 6, 8, 10].map((tick) => make("span", {}, String(tick))));
  el.append(plot, ticks, digitLegend(), range.node,
    make("div", { class: "explorer-result" },
      picture(digit.node, status, make("p", { class: "explorer-note" }, "decoded from z")),
      picture(test.node, note),
      make("dl", { class: "explorer-table" },
        make("dt", {}, "density q(z)"), values.density, make("dt", {}, "digits of the codes here"), values.shares,
        make("dt", {}, "KL(Q‖p) of the test image"), values.kl)));
  if (model.get("picture")) digit.draw(pictureOf(model.get("picture")));
  model.on("change:z", update);
  update();
  whenDecoderIsWanted(el, model, status, (loaded) => {
    decoder = loaded;
    update();
  });
}

export default { render };
