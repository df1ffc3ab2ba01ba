// Point at a code, and the decoder draws its digit.
import { announcer, arrows, begin, checkbox, choice, digitCanvas, follow, make, number, pictureOf, setter, slider } from "./controls.js";
import { sigmoid, tensorsOf, whenDecoderIsWanted } from "./network.js";
import { colourKey, digitLegend, fieldOf, LIMIT, Plane, snap, STEPS } from "./plane.js";

const HOME = [0, 0];

/** Say in words what kind of place it is. */
function describe({ thinner, tenTimes, hole }) {
  const density = tenTimes ? "more than ten times thinner than the prior" : thinner ? "thinner than the prior" : "at least as dense as the prior";
  return hole
    ? `A hole: the codes are thinner here than where 99 % of them lie, and ${density}.`
    : `No hole: the codes are ${density} here.`;
}

async function render({ model, el }) {
  const field = await fieldOf(model.get("field"));
  begin(el, "latent");
  const set = setter(model);
  const pictures = new Map();
  let decoder = null, codes = null;

  const plane = new Plane(
    () => {
      const view = model.get("view");
      if (view === "digits") {
        if (codes) plane.dots(codes[model.get("points")], codes.labels);
        plane.circles(plane.ink, getComputedStyle(plane.node).getPropertyValue("--explorer-paper"));
      } else {
        if (!pictures.has(view)) pictures.set(view, field.picture(view));
        plane.image(pictures.get(view));
        plane.circles(...(view === "ratio" ? ["#222", "#fff"] : ["#fff", "#222"]));
      }
      if (model.get("ellipses") && codes) plane.posteriors(codes, view === "digits" ? null : view === "ratio" ? "#222" : "#fff");
    },
    () => plane.mark(model.get("z")),
  );
  Object.entries({
    tabindex: "0",
    role: "application",
    "aria-label": "Latent plane. The arrow keys move z, with Shift by small steps; Home goes to the origin.",
  }).forEach((attribute) => plane.top.setAttribute(...attribute));

  const digit = digitCanvas("");
  const status = make("p", { class: "explorer-status" });
  const ratio = make("span", { class: "explorer-value" });
  const kind = make("p", { class: "explorer-kind" });
  const say = announcer(el);

  const move = (z) => set("z")(snap(z));
  const sliders = [0, 1].map((j) => slider({
    label: ["z₁", "z₂"][j],
    min: -LIMIT, max: LIMIT, step: 1 / STEPS,
    say: (value) => number(value, 2),
    input: (value) => move(model.get("z").with(j, value)),
  }));
  const view = choice({
    legend: "Show",
    options: [["density", "density"], ["ratio", "against prior"], ["digits", "digits"]],
    change: set("view"),
  });
  const points = choice({ legend: "Digits as", options: [["draws", "draws"], ["means", "means"]], change: set("points") });
  const ellipses = checkbox({ label: "single posteriors, out to two standard deviations", change: set("ellipses") });
  const keys = { density: colourKey("density"), ratio: colourKey("ratio"), digits: digitLegend() };

  const readZ = () => {
    const z = model.get("z");
    if (decoder) digit.draw(Float64Array.from(decoder.forward(z), sigmoid));
    plane.drawTop();
    sliders.forEach((one, j) => one.update(z[j]));
    const words = `z is ${number(z[0], 2)}, ${number(z[1], 2)}`;
    ratio.textContent = number(field.logRatio(z), 2);
    kind.textContent = describe(field.kind(z));
    digit.node.setAttribute("aria-label", `The picture that the decoder makes where ${words}`);
    say(`${words}; the log ratio of q to the prior is ${ratio.textContent} nats. ${kind.textContent}`);
  };
  const readView = async () => {
    const inDigits = model.get("view") === "digits";
    view.update(model.get("view"));
    points.update(model.get("points"));
    ellipses.update(model.get("ellipses"));
    points.node.hidden = !inDigits;
    for (const [name, key] of Object.entries(keys)) key.hidden = name !== model.get("view");
    if (!codes && (inDigits || model.get("ellipses"))) codes = await tensorsOf(model.get("codes"));
    plane.drawBase();
  };

  follow(plane.top, (right, down) => move(Plane.code(right, down)));
  arrows(plane.top, (right, up, small) => {
    const [x, y] = model.get("z"), size = small ? 1 / STEPS : 0.1;
    move([x + size * right, y + size * up]);
  }, () => move(HOME));

  el.append(
    make("div", { class: "explorer-columns" },
      make("div", { class: "explorer-main" }, plane.node, ...Object.values(keys)),
      make("div", { class: "explorer-side" },
        make("div", { class: "explorer-result" },
          make("div", { class: "explorer-card" }, digit.node, status),
          make("div", {}, make("p", { class: "explorer-line" }, "ln q(z)/p(z) = ", ratio, " nats"), kind)),
        ...sliders.map((one) => one.node), view.node, points.node, ellipses.node)),
  );
  if (model.get("picture")) digit.draw(pictureOf(model.get("picture")));
  model.on("change:z", readZ);
  for (const name of ["view", "points", "ellipses"]) model.on(`change:${name}`, readView);
  await readView();
  readZ();

  whenDecoderIsWanted(el, model, status, (loaded) => {
    decoder = loaded;
    readZ();
  });
}

export default { render };
