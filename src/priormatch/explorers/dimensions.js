// Choose how many latent dimensions: the measures of a training, and any two dimensions of its codes.
import { announcer, begin, choice, make, number, setter, slider, valueCells, whenWanted } from "./controls.js";
import { tensorsOf } from "./network.js";
import { digitLegend, LIMIT, Plane } from "./plane.js";

// What the measures of the study are called here.
const LABELS = {
  train_rate: "rate",
  test_elbo: "test ELBO",
  density_bound: "joint bound, held out",
  dimension_wise_kl: "sum of marginal KLs",
  total_correlation: "total correlation",
  in_sample_kl: "in-sample KL",
  floor: "its floor",
  active_units: "active units",
  hole_share: "hole share",
  classifier_accuracy: "classifier accuracy",
};
const SHARES = ["hole_share", "classifier_accuracy"];

/** As many decimals as show two digits of a standard error. */
const decimals = (error) => Math.max(0, 1 - Math.floor(Math.log10(error)));
/** Write a value and its standard error as Python does. */
const estimate = (value, error) => `${number(value, decimals(error))} ± ${number(error, decimals(error))}`;
const nameOf = (dimension) => `z${[...String(dimension)].map((digit) => String.fromCharCode(0x2080 + Number(digit))).join("")}`;

async function render({ model, el }) {
  let wanted = false; // until then a page shows what it brought with it
  const cellsOf = (d) => tensorsOf(wanted ? model.get(`codes_${d}`) : model.get("snapshot"));
  const offers = model.get("offers");
  if (model.get("snapshot")) await cellsOf(); // so that what fails, fails while the still is there
  begin(el, "dimensions");
  const set = setter(model);
  const say = announcer(el);
  let dots = null;

  const plane = new Plane(
    () => plane.circles(plane.ink, getComputedStyle(plane.node).getPropertyValue("--explorer-paper")),
    () => dots && plane.dots(dots.values, dots.labels, 2.2),
  );
  plane.asPicture();

  const options = (values) => values.map((value) => [Number(value), String(value)]);
  const chooseD = (d) => {
    if (!offers[d].includes(model.get("seed"))) model.set("seed", offers[d][0]);
    if (Math.max(...model.get("pair")) > d) model.set("pair", [1, 2]);
    set("d")(d);
  };
  const latent = choice({ legend: "d", options: options(Object.keys(offers)), change: chooseD });
  const seeds = Object.entries(offers).map(([d, some]) => [Number(d), choice({ legend: "seed", options: options(some), change: set("seed") })]);
  const axes = ["across", "up"].map((way, axis) => slider({
    label: `dimension ${way}`,
    min: 1, max: 2, step: 1,
    say: (dimension) => `${dimension} of ${model.get("d")}`,
    // The two stay different: a dimension that is taken changes places.
    input: (dimension) => {
      const pair = model.get("pair");
      set("pair")(pair[1 - axis] === dimension ? pair.toReversed() : pair.with(axis, dimension));
    },
  }));
  const note = make("p", { class: "explorer-note", "data-value": "outside" });
  const heading = make("p", { class: "explorer-heading" });
  const values = valueCells(Object.keys(LABELS));
  const names = [0, 1].map(() => make("dt"));
  const ofPair = [0, 1].map((axis) => valueCells([`rate_${axis}`, `marginal_kl_${axis}`]));

  const show = (cells, d, seed, pair) => {
    const { labels } = cells, training = cells.seeds.indexOf(seed);
    const places = pair.map((dimension) => training * cells.dimensions.length + cells.dimensions.indexOf(dimension));
    const at = (tensor, place) => estimate(tensor[2 * place], tensor[2 * place + 1]);
    for (const name of Object.keys(LABELS)) {
      if (cells[name].shape.length === 2) values[name].textContent = at(cells[name], training) + (SHARES.includes(name) ? "" : " nats");
    }
    values.floor.textContent = `${number(cells.floor[training], decimals(cells.in_sample_kl[2 * training + 1]))} nats`;
    values.active_units.textContent = `${cells.active_units[training]} of ${d}`;
    heading.textContent = `The training with d = ${d} and seed ${seed}:`;
    places.forEach((place, axis) => {
      names[axis].textContent = `rate of ${nameOf(pair[axis])}`;
      ofPair[axis][`rate_${axis}`].textContent = `${at(cells.rates, place)} nats`;
      ofPair[axis][`marginal_kl_${axis}`].textContent = `${at(cells.marginal_kls, place)} nats`;
    });
    const [right, up] = places.map((place) => cells.codes.subarray(place * labels.length, (place + 1) * labels.length));
    dots = { labels, values: Float64Array.from({ length: 2 * labels.length }, (_, i) => (i % 2 ? up : right)[i >> 1]) };
    const outside = labels.filter((_, i) => Math.max(Math.abs(right[i]), Math.abs(up[i])) > LIMIT).length;
    note.textContent = `${outside} of ${labels.length} codes lie outside the frame`;
    plane.name(...pair.map(nameOf));
    plane.drawTop();
    const words = `dimensions ${pair.join(" and ")} of ${d}, seed ${seed}`;
    plane.top.setAttribute("aria-label", `Codes of ${labels.length} test images in latent ${words}`);
    say(`Latent ${words}: rates ${places.map((place) => at(cells.rates, place)).join(" and ")} nats. `
      + `Rate of all ${values.train_rate.textContent}, joint bound ${values.density_bound.textContent}, sum of marginal KLs ${values.dimension_wise_kl.textContent}.`);
  };
  const read = async () => {
    const [d, seed, pair] = ["d", "seed", "pair"].map((name) => model.get(name));
    // From a kernel the three come one after the other.
    if (!offers[d].includes(seed) || Math.max(...pair) > d) return;
    // Where there is nothing to choose there is no control.
    latent.node.hidden = Object.keys(offers).length < 2;
    latent.update(d);
    for (const [own, one] of seeds) {
      one.node.hidden = own !== d || offers[d].length < 2;
      one.update(seed);
    }
    axes.forEach((axis, k) => {
      axis.range.max = d;
      axis.update(pair[k]);
    });
    heading.textContent = `Loading d = ${d} …`;
    const cells = await cellsOf(d);
    if (d !== model.get("d") || seed !== model.get("seed") || pair !== model.get("pair")) return;
    show(cells, d, seed, pair);
  };

  const table = (labels) => make("dl", { class: "explorer-table" },
    ...labels.flatMap((name) => [make("dt", {}, LABELS[name]), values[name]]));
  const half = Object.keys(LABELS).length / 2;
  el.append(
    make("div", { class: "explorer-columns" },
      make("div", { class: "explorer-main" }, plane.node, digitLegend(), note),
      make("div", { class: "explorer-side" }, latent.node, ...seeds.map(([, one]) => one.node), ...axes.map((axis) => axis.node),
        make("dl", { class: "explorer-table" },
          ...names.flatMap((name, axis) => [name, ofPair[axis][`rate_${axis}`], make("dt", {}, "its marginal KL"), ofPair[axis][`marginal_kl_${axis}`]])))),
    heading,
    make("div", { class: "explorer-pair" }, table(Object.keys(LABELS).slice(0, half)), table(Object.keys(LABELS).slice(half))));
  for (const name of ["d", "seed", "pair"]) model.on(`change:${name}`, read);
  if (model.get("snapshot")) await read();
  whenWanted(el, typeof model.get(`codes_${model.get("d")}`) !== "string", () => {
    wanted = true;
    return read();
  });
}

export default { render };
