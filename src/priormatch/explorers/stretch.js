// Shift and stretch the line under three patches: the mismatch is least at mean 0 and mean square 1.
import { announcer, begin, make, number, setter, slider, valueCells } from "./controls.js";
import { bars, figure, inWords, Patches } from "./patches.js";

function render({ model, el }) {
  begin(el, "stretch");
  const set = setter(model);
  const say = announcer(el);
  const patches = new Patches(model.get("line"));
  const average = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const picture = figure(patches), costs = bars();
  const moments = valueCells(["mean", "square"]);
  const shift = slider({ label: "shift", min: -1, max: 1, step: 0.01, say: (by) => number(by, 2), input: set("shift") });
  const stretch = slider({ label: "stretch", min: 0.4, max: 1.6, step: 0.01, say: (by) => `× ${number(by, 2)}`, input: set("factor") });

  const update = () => {
    const factor = model.get("factor"), by = model.get("shift");
    const carry = (z) => factor * z + by;
    const carried = patches.nodes.map(carry), slopes = carried.map(() => factor);
    const now = {
      reconstruction: patches.reconstruction(patches.nodes),
      information: patches.information,
      mismatch: patches.mismatch(carried, slopes),
    };
    const mean = average(patches.means.map(carry));
    const square = average(patches.means.map((one, n) => carry(one) ** 2 + (factor * patches.scales[n]) ** 2));
    picture.update({ carried, slopes, codes: patches.means.map(carry), seen: patches.means });
    costs.update(now);
    shift.update(by);
    stretch.update(factor);
    moments.mean.textContent = number(mean, 2);
    moments.square.textContent = number(square, 2);
    say(`${inWords(now)}. Codes have mean ${number(mean, 2)} and mean square ${number(square, 2)}. The pictures are as before.`);
  };
  el.append(make("div", { class: "explorer-columns" }, picture.node,
    make("div", { class: "explorer-side" }, shift.node, stretch.node, costs.node,
      make("dl", { class: "explorer-table" }, make("dt", {}, "mean of the codes"), moments.mean, make("dt", {}, "mean square"), moments.square))));
  for (const trait of ["shift", "factor"]) model.on(`change:${trait}`, update);
  update();
}

export default { render };
