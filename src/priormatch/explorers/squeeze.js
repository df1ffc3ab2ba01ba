// Squeeze the posterior of one digit: what the decoder rebuilds from it, and what both terms charge.
import { announcer, begin, button, choice, digitCanvas, follow, make, number, pictureOf, saver, slider, valueCells } from "./controls.js";
import { sigmoid, tensorsOf, whenDecoderIsWanted } from "./network.js";

const PER_DECADE = 20, STEPS = 40, HALVING = 6; // six steps of a twentieth of a decade are a half
const WIDTH = 360, HEIGHT = 200, LEFT = 42, RIGHT = 8, TOP = 8, BOTTOM = 30;
const PLANE = 4.2; // half the width of the latent plane shown
const MASSES = [0.5, 0.9, 0.99];

const scaleAt = (step) => 10 ** (-step / PER_DECADE);
const stepOf = (scale) => Math.round(-PER_DECADE * Math.log10(scale));
const radius = (mass) => Math.sqrt(-2 * Math.log(1 - mass));
const path = (points) => points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
const text = (x, y, words, attributes = {}) => make("text", { x, y, "text-anchor": "middle", ...attributes }, words);

/** The latent plane: the prior's circles, the posterior's patch, and the draws that are decoded. */
function latentPlane(draws) {
  const patch = make("circle", { class: "explorer-patch" });
  const dots = Array.from({ length: draws }, () => make("circle", { class: "explorer-draw", r: 0.09 }));
  const node = make("svg", { viewBox: `${-PLANE} ${-PLANE} ${2 * PLANE} ${2 * PLANE}`, role: "img", class: "explorer-patches" },
    ...MASSES.map((mass) => make("circle", { class: "explorer-circle", r: radius(mass) })), patch, ...dots);
  return {
    node,
    update(mean, scale, codes) {
      patch.setAttribute("cx", mean[0]);
      patch.setAttribute("cy", -mean[1]);
      patch.setAttribute("r", Math.max(0.06, scale * radius(0.9)));
      codes.forEach(([first, second], i) => {
        dots[i].setAttribute("cx", first);
        dots[i].setAttribute("cy", -second);
      });
      node.setAttribute("aria-label", `The latent plane: circles of N(0, I), and the posterior at ${number(mean[0], 1)}, ${number(mean[1], 1)} with a scale of ${number(scale, 2)}`);
    },
  };
}

/** The two prices over the scale, one on top of the other. */
function priceChart() {
  const x = (step) => LEFT + (step / STEPS) * (WIDTH - LEFT - RIGHT);
  const [kl, reconstruction] = ["explorer-kl-area", "explorer-reconstruction-area"].map((name) => make("path", { class: `explorer-area ${name}` }));
  const own = make("line", { class: "explorer-prior", y1: TOP, y2: HEIGHT - BOTTOM });
  const here = make("line", { class: "explorer-here", y1: TOP, y2: HEIGHT - BOTTOM });
  const ownLabel = text(0, TOP + 11, "the encoder’s σ", { "text-anchor": "end" });
  const ticks = make("g");
  const node = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", class: "explorer-surface" },
    reconstruction, kl, own, here, ownLabel, ticks,
    make("line", { class: "explorer-axis", x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }),
    ...[1, 0.3, 0.1, 0.03, 0.01].map((scale) => text(x(-PER_DECADE * Math.log10(scale)), HEIGHT - BOTTOM + 13, String(scale))),
    text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 2, "scale σ of the posterior"),
    text(10, (HEIGHT - BOTTOM) / 2, "nats", { transform: `rotate(-90 10 ${(HEIGHT - BOTTOM) / 2})` }));
  return {
    node,
    stepAt: (right) => ((right * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT)) * STEPS,
    /** Draw the prices of another digit. */
    draw(prices, ownScale) {
      const most = 100 * Math.ceil(Math.max(...prices.map((price) => price.sum)) / 100);
      const y = (nats) => TOP + (1 - nats / most) * (HEIGHT - BOTTOM - TOP);
      const line = (name) => prices.map((price, step) => [x(step), y(price[name])]);
      const floor = [[x(STEPS), y(0)], [x(0), y(0)]];
      kl.setAttribute("d", `${path([...line("kl"), ...floor])}Z`);
      reconstruction.setAttribute("d", `${path([...line("sum"), ...line("kl").reverse()])}Z`);
      ticks.replaceChildren(...[0, most / 2, most].map((nats) => text(LEFT - 4, y(nats) + 4, String(nats), { "text-anchor": "end" })));
      const place = x(-PER_DECADE * Math.log10(ownScale));
      for (const end of ["x1", "x2"]) own.setAttribute(end, place);
      ownLabel.setAttribute("x", place - 4);
    },
    move(step, words) {
      for (const end of ["x1", "x2"]) here.setAttribute(end, x(step));
      node.setAttribute("aria-label", `Both prices over the scale σ from 1 to 0.01. ${words}`);
    },
  };
}

async function render({ model, el }) {
  const stored = await tensorsOf(model.get("posteriors"));
  begin(el, "squeeze");
  const save = saver(model);
  const say = announcer(el);
  const [digits, nodes] = stored.distortion.shape, draws = stored.noise.shape[0];
  const images = Array.from({ length: digits }, (_, i) => Float64Array.from(stored.images.subarray(784 * i, 784 * (i + 1))));
  let decoder = null, prices = [], cheapest = 0, shown = null;

  const meanOf = (digit) => [stored.means[2 * digit], stored.means[2 * digit + 1]];
  const codesOf = (mean, scale) =>
    Array.from({ length: draws }, (_, i) => mean.map((m, j) => m + scale * stored.noise[2 * i + j]));
  const klOf = (mean, scale) => mean.reduce((sum, m) => sum + 0.5 * (m * m + scale * scale - 1) - Math.log(scale), 0);

  const plane = latentPlane(draws), chart = priceChart();
  const target = digitCanvas("X, the test image");
  const rebuilt = Array.from({ length: draws }, (_, i) => digitCanvas(`What the decoder makes of draw ${i + 1}`));
  const status = make("p", { class: "explorer-status" });
  const values = valueCells(["reconstruction", "kl", "sum", "above"]);
  const advice = make("p", { class: "explorer-advice" });
  const set = (name, value) => {
    model.set(name, value);
    save();
  };
  const toStep = (step) => set("sigma", scaleAt(Math.min(STEPS, Math.max(0, Math.round(step)))));
  const squeeze = slider({ label: "squeeze σ", min: 0, max: STEPS, step: 1, say: (step) => number(scaleAt(step), 2 + (step > 14)), input: toStep });
  const thumbnails = [];
  const picker = choice({
    legend: "Another X",
    options: Array.from(stored.labels, (label, i) => {
      const thumbnail = digitCanvas("", "explorer-thumbnail");
      thumbnails.push(thumbnail);
      thumbnail.node.setAttribute("aria-hidden", "true");
      return [i, thumbnail.node, `a ${label}`];
    }),
    change: (i) => set("digit", i),
  });
  picker.node.classList.add("explorer-pictures");

  const choose = () => {
    const digit = model.get("digit"), mean = meanOf(digit);
    prices = Array.from({ length: nodes }, (_, step) => {
      const distortion = stored.distortion[digit * nodes + step], kl = klOf(mean, scaleAt(step));
      return { distortion, kl, sum: distortion + kl };
    });
    cheapest = 0;
    for (let step = 1; step <= STEPS; step++) if (prices[step].sum < prices[cheapest].sum) cheapest = step;
    chart.draw(prices.slice(0, STEPS + 1), Math.sqrt(stored.scales[2 * digit] * stored.scales[2 * digit + 1]));
    target.draw(images[digit]);
    picker.update(digit);
  };
  const update = () => {
    const digit = model.get("digit");
    if (shown !== digit) choose();
    shown = digit;
    const step = stepOf(model.get("sigma")), scale = scaleAt(step), mean = meanOf(digit);
    const now = prices[step], half = prices[step + HALVING];
    const codes = codesOf(mean, scale);
    if (decoder) codes.forEach((code, i) => rebuilt[i].draw(Float64Array.from(decoder.forward(code), sigmoid)));
    squeeze.update(step);
    plane.update(mean, scale, codes);
    values.reconstruction.textContent = `${number(now.distortion, 1)} nats`;
    values.kl.textContent = `${number(now.kl, 1)} nats`;
    values.sum.textContent = `${number(now.sum, 1)} nats`;
    values.above.textContent = `${number(now.sum - prices[cheapest].sum, 1)} nats`;
    const saved = now.distortion - half.distortion, cost = half.kl - now.kl;
    advice.textContent =
      `Half this σ ${saved < 0 ? "adds" : "saves"} ${number(Math.abs(saved), 1)} nats of reconstruction and costs ${number(cost, 1)} of KL: ` +
      `${saved > cost ? "worth it" : "not worth it"}.`;
    const words = `At σ = ${squeeze.range.getAttribute("aria-valuetext")} the reconstruction costs ${values.reconstruction.textContent} and the KL ${values.kl.textContent}.`;
    chart.move(step, words);
    say(`X is a ${stored.labels[digit]}. ${words} ${advice.textContent}`);
  };
  follow(chart.node, (right) => toStep(chart.stepAt(right)), { hover: false });

  const swatch = (name) => make("span", { class: `explorer-swatch explorer-swatch-${name}`, "aria-hidden": "true" });
  const note = (words) => make("p", { class: "explorer-note" }, words);
  el.append(
    make("div", { class: "explorer-squeeze-top" },
      make("div", { class: "explorer-card" }, target.node, note("X")),
      make("div", { class: "explorer-card" }, plane.node, note("Q(z|X) over N(0, I)")),
      make("div", { class: "explorer-card" },
        make("div", { class: "explorer-rebuilt" }, ...rebuilt.map((canvas) => canvas.node)), status, note("decoded from six draws"))),
    squeeze.node,
    make("div", { class: "explorer-pair" }, chart.node,
      make("div", { class: "explorer-side" },
        make("dl", { class: "explorer-table" },
          make("dt", {}, swatch("reconstruction"), "reconstruction"), values.reconstruction,
          make("dt", {}, swatch("kl"), "KL(Q‖p)"), values.kl,
          make("dt", {}, "sum"), values.sum,
          make("dt", {}, "above the least"), values.above),
        advice, button("Go to the least sum", () => toStep(cheapest)))),
    picker.node);

  model.on("change:sigma", update);
  model.on("change:digit", update);
  update();
  // Only what is on the page knows the page's ink.
  thumbnails.forEach((thumbnail, i) => thumbnail.draw(images[i]));
  (model.get("pictures") ?? []).forEach((picture, i) => rebuilt[i].draw(pictureOf(picture)));
  whenDecoderIsWanted(el, model, status, (loaded) => {
    decoder = loaded;
    update();
  });
}

export default { render };
